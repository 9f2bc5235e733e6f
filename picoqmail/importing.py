"""The package's lock for imports in the middle of a call, for modules of any floor.

Taken from the package itself, which has it from the first moment on (see there what it is for),
without an import of the package, whose names reach up to every floor.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager

importing: AbstractContextManager[object] = sys.modules["picoqmail"]._import_lock  # noqa: SLF001 - ours
