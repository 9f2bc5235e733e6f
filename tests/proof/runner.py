"""Start a program through its own main: runner.py SECONDS COPY NAME [ARGUMENT ...].

Its clock is SECONDS ahead. COPY is a copy of the package, with a planted bug; "" stands for the
installed package.
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
        real_time, ahead = time.time, float(seconds)
        # Set before the first import of the package, so that every default clock is this one.
        time.time = lambda: real_time() + ahead
    if copy:
        sys.path.insert(0, copy)
    module = importlib.import_module(f"picoqmail.cli.{name}")
    where = os.path.realpath(module.__file__ or "")
    if copy and not where.startswith(os.path.realpath(copy) + "/"):
        raise SystemExit(f"not the copy, but {where}")
    return int(module.main(arguments))


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
