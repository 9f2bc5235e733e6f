"""Start a program of a copy of the package: runner.py COPY NAME [ARGUMENT ...].

For the planted bugs: it runs the copy that contains the bug, through the program's own main.
"""

from __future__ import annotations

import importlib
import os
import sys


def main() -> int:
    """Run it and return its exit code."""
    copy, name, *arguments = sys.argv[1:]
    sys.path.insert(0, copy)
    module = importlib.import_module(f"picoqmail.cli.{name}")
    where = os.path.realpath(module.__file__ or "")
    if not where.startswith(os.path.realpath(copy) + "/"):
        raise SystemExit(f"not the copy, but {where}")
    return int(module.main(arguments))


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
