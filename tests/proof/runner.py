"""Start a program through its own main: runner.py SECONDS COPY NAME [ARGUMENT ...].

Its clock is SECONDS ahead. COPY is a copy of the package, with a planted bug; "" stands for the
installed package. PROOF_PATIENCE_SECONDS is for how long it waits for an answer of a database.
"""

from __future__ import annotations

import importlib
import os
import sys
import time


def main() -> int:
    """Run it and return its exit code."""
    seconds, copy, name, *arguments = sys.argv[1:]
    if seconds != "0":
        real_time, real_time_ns, ahead = time.time, time.time_ns, float(seconds)
        # Set before the first import of the package, so that every default clock is this one.
        time.time = lambda: real_time() + ahead
        time.time_ns = lambda: real_time_ns() + int(ahead) * 1_000_000_000
    if copy:
        sys.path.insert(0, copy)
    if patience := os.environ.pop("PROOF_PATIENCE_SECONDS", ""):
        link = importlib.import_module("picoqmail.postgresql.connections").Link
        link.patience = float(patience)
    module = importlib.import_module(f"picoqmail.cli.{name}")
    where = os.path.realpath(module.__file__ or "")
    if copy and not where.startswith(os.path.realpath(copy) + "/"):
        raise SystemExit(f"not the copy, but {where}")
    return int(module.main(arguments))


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
