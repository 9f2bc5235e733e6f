"""The recipients of a message that has very many, in little memory. Pure.

They stay in memory as they stand in the sidecar: in blocks of a hundred objects, each compressed.
A block is decoded when one of its recipients is asked for, and encoded again after a change. The
states, which are asked for most, are kept beside, one octet each.

A sidecar of ours has one line for each recipient. So it is read line by line, and never held as a
whole. One with another layout, by another hand, is read as a whole, which takes more memory.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from itertools import compress, islice
from typing import TYPE_CHECKING, overload

from picoqmail.errors import DamagedMessageError
from picoqmail.spool import sidecar, sidecar_reading
from picoqmail.spool.json_reading import read_json
from picoqmail.spool.recipient import Recipient, recipients_of, record_of
from picoqmail.spool.sidecar import RECIPIENT_STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, BinaryIO

AT_ONCE = 100
"""Recipients in a block: as many as go to a relay in one transaction."""

# Decoded blocks. Transactions under way at the same time touch different ones.
_OPEN_BLOCKS = 16
# Fast, and addresses and replies of one message have most of their text in common.
_LEVEL = 1
_CODES = {state: code for code, state in enumerate(RECIPIENT_STATES)}


class ManyRecipients(Sequence[Recipient]):
    """Recipients by index, which may be replaced one by one.

    Those of a message are never changed: make a `copy`, which shares what is not changed.
    """

    __slots__ = ("_blocks", "_changed", "_open", "_states", "_unusual")

    def __init__(self, recipients: Iterable[Recipient] = ()) -> None:
        self._blocks: list[bytes] = []
        self._states = bytearray()
        self._unusual = bytearray()
        """For each block, whether one of its recipients has a key that an ordinary one lacks."""
        self._open: dict[int, list[Recipient]] = {}
        self._changed: set[int] = set()
        remaining = iter(recipients)
        while several := list(islice(remaining, AT_ONCE)):
            objects = [record_of(one) for one in several]
            self.append(sidecar.encode_objects(objects), objects)

    def append(self, text: bytes, objects: list[dict[str, Any]]) -> None:
        """Add a block: the objects, and their text in a sidecar. All but the last are AT_ONCE."""
        self._blocks.append(zlib.compress(text, _LEVEL))
        self._states += bytes([_CODES[one["state"]] for one in objects])
        self._unusual.append(any(len(one) > len(_USUAL_KEYS) for one in objects))

    def copy(self) -> ManyRecipients:
        """Return a copy that may be changed."""
        self._encode_changed()
        copy = ManyRecipients()
        copy._blocks = self._blocks.copy()
        copy._states = self._states.copy()
        copy._unusual = self._unusual.copy()
        return copy

    def texts(self) -> Iterator[bytes]:
        """Yield the text of each block, as it stands in a sidecar, without what is in between."""
        self._encode_changed()
        for block in self._blocks:
            yield zlib.decompress(block)

    # --- What is asked without decoding ------------------------------------------------------

    @property
    def states(self) -> set[str]:
        """The states that there are."""
        return {RECIPIENT_STATES[code] for code in set(self._states)}

    @staticmethod
    def indexes(these: Iterable[int] = ()) -> array[int]:
        """Return indexes in little memory; more may be added."""
        return array("I", these)

    def indexes_in(
        self, state: str, is_wanted: Callable[[Recipient], bool] | None = None
    ) -> array[int]:
        """Return the indexes of the recipients in a state, or of those of them that are wanted."""
        is_in = bytes([code == _CODES[state] for code in range(256)])
        found = compress(range(len(self)), self._states.translate(is_in))
        return array("I", found if is_wanted is None else (i for i in found if is_wanted(self[i])))

    @property
    def suspended(self) -> array[int]:
        """The indexes of the recipients that are suspended."""
        self._encode_changed()
        found = array("I")
        for number in compress(range(len(self._blocks)), self._unusual):
            first = number * AT_ONCE
            block = self._block(number)
            found.extend([first + n for n, one in enumerate(block) if one.suspended_until])
        return found

    # --- A sequence --------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._states)

    @overload
    def __getitem__(self, index: int) -> Recipient: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Recipient, ...]: ...

    def __getitem__(self, index: int | slice) -> Recipient | tuple[Recipient, ...]:
        """Return one, or several as a tuple."""
        if isinstance(index, slice):
            return tuple([self[one] for one in range(*index.indices(len(self)))])
        number, place = divmod(range(len(self))[index], AT_ONCE)
        return self._opened(number)[place]

    def __setitem__(self, index: int, one: Recipient) -> None:
        """Replace one."""
        number, place = divmod(index, AT_ONCE)
        self._opened(number)[place] = one
        self._states[index] = _CODES[one.state]
        self._changed.add(number)

    def __iter__(self) -> Iterator[Recipient]:
        """Yield all in order."""
        for number in range(len(self._blocks)):
            yield from self._block(number)

    def __eq__(self, other: object) -> bool:
        """Compare with any sequence of recipients."""
        if not isinstance(other, (tuple, ManyRecipients)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment] # it may change

    # --- Blocks ------------------------------------------------------------------------------

    def _block(self, number: int) -> list[Recipient]:
        return self._open.get(number) or _decode(zlib.decompress(self._blocks[number]))

    def _opened(self, number: int) -> list[Recipient]:
        """Return a decoded block that stays decoded for a while."""
        block = self._open.get(number)
        if block is None:
            if len(self._open) >= _OPEN_BLOCKS:
                self._close(next(iter(self._open)))
            block = self._open[number] = self._block(number)
        return block

    def _close(self, number: int) -> None:
        block = self._open.pop(number)
        if number in self._changed:
            self._changed.remove(number)
            objects = [record_of(one) for one in block]
            self._blocks[number] = zlib.compress(sidecar.encode_objects(objects), _LEVEL)
            self._unusual[number] = any(len(one) > len(_USUAL_KEYS) for one in objects)

    def _encode_changed(self) -> None:
        for number in list(self._changed):
            self._close(number)


_USUAL_KEYS = ("address", "state", "reply")


def _decode(text: bytes) -> list[Recipient]:
    return recipients_of(_objects_of(text))


def _objects_of(text: bytes) -> list[dict[str, Any]]:
    objects: list[dict[str, Any]] = read_json(f"[{text.decode()}]")
    return objects


# --- Reading a sidecar -----------------------------------------------------------------------


class _OtherLayoutError(Exception):
    """A sidecar is not laid out as ours are; it may be a proper one all the same."""


def read_large(file: BinaryIO, message_id: str, few: int) -> dict[str, Any]:
    """Read a large sidecar, as sidecar_reading.py does.

    The recipients of the record are a tuple if there are at most so few, else ManyRecipients.
    Raises DamagedMessageError, OSError.
    """
    try:
        record = _read_by_line(file, message_id)
        recipients: Sequence[Recipient] = record["recipients"]
    except (_OtherLayoutError, DamagedMessageError):
        # What is wrong with it, if anything, is seen where it is read as a whole.
        file.seek(0)
        record = sidecar_reading.decode(file.read(), message_id)
        recipients = recipients_of(record["recipients"])
    if len(recipients) <= few:
        recipients = tuple(recipients)
    elif not isinstance(recipients, ManyRecipients):
        recipients = ManyRecipients(recipients)
    record["recipients"] = recipients
    return record


def _read_by_line(file: BinaryIO, message_id: str) -> dict[str, Any]:
    """Read a sidecar of our layout. Raises _OtherLayoutError, DamagedMessageError.

    The list of recipients is decoded a hundred lines at a time; in its place a list of one that
    nobody else has goes into the rest, which is decoded as any sidecar. So the result is that of
    decoding the whole: where parts between commas are JSON, so is the whole.
    """
    head = []
    for line in islice(file, _LINES_BEFORE):
        if line.startswith(_OPENING):
            break
        head.append(line)
    else:
        raise _OtherLayoutError
    recipients = ManyRecipients()
    lines = [line[len(_OPENING) :], *islice(file, AT_ONCE - 1)]
    while not (ends := [n for n, one in enumerate(lines) if one.endswith(_CLOSINGS)]):
        text = b"".join(lines).strip()
        if len(lines) < AT_ONCE or not text.endswith(b","):
            raise _OtherLayoutError
        _add_block(recipients, text[:-1], AT_ONCE)
        lines = list(islice(file, AT_ONCE))
    last = ends[0]
    text, closing, after = b"".join(lines[: last + 1]).rpartition(b"]")
    _add_block(recipients, text.strip(), last + 1)
    rest = [*head, _OPENING, _PLACEHOLDER, closing, after, *lines[last + 1 :], *file]
    whole = b"".join(rest)
    record = sidecar_reading.decode(whole, message_id)
    if whole.count(b'"recipients"') != 1 or record["recipients"] != _PLACED:
        raise _OtherLayoutError
    record["recipients"] = recipients
    return record


def _add_block(recipients: ManyRecipients, text: bytes, count: int) -> None:
    try:
        objects = _objects_of(text)
    except (ValueError, RecursionError):
        raise _OtherLayoutError from None
    if len(objects) != count:
        raise _OtherLayoutError
    sidecar_reading.check_recipients(objects)
    recipients.append(text, objects)


_OPENING = b'"recipients": ['
_CLOSINGS = (b"}]\n", b"}],\n")
_PLACED: list[dict[str, Any]] = [{"address": "", "state": "pending", "": "of many.py"}]
_PLACEHOLDER = sidecar.encode_objects(_PLACED)
# Ours has four.
_LINES_BEFORE = 100
