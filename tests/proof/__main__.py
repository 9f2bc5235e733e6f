"""All of the proof: `python tests/proof`; it writes docs/proof.md.

Hours are not needed: under one on two cores. `--quick` is a look at everything.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from proof.whole import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
