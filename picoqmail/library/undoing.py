"""Taking back what a block has begun, if it raises; nothing else lives here.

contextlib's ExitStack does more, and would be a tenth of the time that accepting a mail takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class OnError:
    """A context manager: calls `undo` if its block raises."""

    __slots__ = ("_undo",)

    def __init__(self, undo: Callable[[], object]) -> None:
        self._undo = undo

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._undo()
