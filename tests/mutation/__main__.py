"""Mutation testing: `python tests/mutation [MODULE ...]`; see tests/proof/README.md."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from mutation.driver import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
