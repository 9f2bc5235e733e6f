"""A message in 7 bits, for a relay that does not offer 8BITMIME. Imported only for such a relay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.message.seven_bit import MOST_OCTETS, NotConvertibleError, convert

if TYPE_CHECKING:
    from collections.abc import Iterator

    from picoqmail.smtp.transaction import Body


class SevenBitBody:
    """What `convert` made of a body: a body itself (smtp/transaction.py), held in memory."""

    eight_bit = False

    def __init__(self, body: Body) -> None:
        """Raises NotConvertibleError; OSError where `body` cannot be read."""
        if body.size > MOST_OCTETS:
            raise NotConvertibleError(f"it is larger than {MOST_OCTETS >> 20} MiB")
        self._data = convert(b"".join(body.blocks()))
        self.size = len(self._data)
        self.newlines = self._data.count(b"\n")

    def blocks(self) -> Iterator[bytes]:
        """Yield the octets."""
        yield self._data
