"""All trials: `python tests/proof`; it writes docs/proof.md.

They take many hours on two cores, and go on where they were interrupted with `--state DIRECTORY`.
`--quick` runs a sample of each.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from proof.whole import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
