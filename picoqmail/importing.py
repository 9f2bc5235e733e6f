"""The package's lock for late imports, for the modules of every room.

`picoqmail/__init__.py` makes the lock and says what it is for. This module fetches it without an
import of the package, because the names of the package belong to all rooms.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager

importing: AbstractContextManager[object] = sys.modules["picoqmail"]._import_lock  # noqa: SLF001 - ours
