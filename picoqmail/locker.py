"""portalocker, imported so that a read-only system is no obstacle.

What may live here: this import. portalocker asks for the directory of temporary files while it is
imported, for locks that we do not use; where none can be written to, as in a container with a
read-only root, that fails, and no mail would be sent. So it is told one for that moment.
"""

from __future__ import annotations

import tempfile

_before = tempfile.tempdir
tempfile.tempdir = _before or "/tmp"  # noqa: S108 - nothing is written there
try:
    import portalocker
finally:
    tempfile.tempdir = _before

__all__ = ["portalocker"]
