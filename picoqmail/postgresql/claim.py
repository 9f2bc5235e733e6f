"""Claims and their leases.

A claim writes a lease into the message's row: until when, and a fencing number, which is drawn anew
for each claim. Every later statement of the claim names that number. So a worker that was stopped
for longer than its lease, or whose claim a crash of the server undid, changes nothing any more: its
statement finds no row. It learns that at the latest from the mark before the end of the data, and
that end does not go out.

A thread renews the leases, for a loop that waits for a slow disk or a slow database cannot. It
lives as long as there are claims. The kernel ends it with its process; a process that is stopped
renews nothing.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING
from zlib import crc32

from picoqmail.errors import ConfigurationError, DamagedMessageError, LostClaimError, SpoolError
from picoqmail.value import evolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

    from picoqmail.postgresql.connections import Connections
    from picoqmail.spool.message import Message

_RENEWALS_A_LEASE = 4

_MARK = """
    UPDATE picoqmail.message
    SET doubt = true, leased_until = clock_timestamp() + %(lease)s * interval '1 second'
    WHERE id = %(id)s AND fence = %(fence)s RETURNING id
"""
_UNMARK = """
    UPDATE picoqmail.message SET doubt = false WHERE id = %(id)s AND fence = %(fence)s RETURNING id
"""
_RELEASE = """
    UPDATE picoqmail.message
    SET leased_until = '-infinity', holder = '', in_hand = in_hand AND NOT %(in_hand)s,
        suspect = suspect AND NOT %(survived)s, doubt = doubt AND NOT %(unsent)s
    WHERE id = %(id)s AND fence = %(fence)s
"""
_RENEW = """
    UPDATE picoqmail.message AS message
    SET leased_until = clock_timestamp() + %(lease)s * interval '1 second'
    FROM unnest(%(ids)s::text[], %(fences)s::bigint[]) AS mine (id, fence)
    WHERE message.id = mine.id AND message.fence = mine.fence
    RETURNING message.id, extract(epoch FROM clock_timestamp())::float8
"""


class Lease:
    """One message that this process has: its ID and fencing number, and what is known of the row.

    `is_marked`: the row has the mark of doubt. `is_lost`: another process has taken the message.
    `is_unsure`: whether the mark was set could not be learnt, and no end of data followed.
    `is_over`: the message was removed, so there is nothing to release. `is_in_hand`: this claim has
    marked it so, and `has_survived` the attempt.
    """

    __slots__ = (
        "fence",
        "has_survived",
        "id",
        "is_in_hand",
        "is_lost",
        "is_marked",
        "is_over",
        "is_unsure",
    )

    def __init__(
        self, message_id: str, fence: int, *, is_marked: bool, is_in_hand: bool = False
    ) -> None:
        self.id = message_id
        self.fence = fence
        self.is_marked = is_marked
        self.is_unsure = False
        self.is_in_hand = is_in_hand
        self.has_survived = False
        self.is_lost = False
        self.is_over = False


class Leases:
    """The leases of one process."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self._held: dict[str, Lease] = {}
        self._pid = os.getpid()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def seconds(self) -> float:
        """How long a lease lasts."""
        return self.connections.address.lease_seconds

    @property
    def is_renewing(self) -> bool:
        """Whether this process has a thread that renews leases."""
        return self._thread is not None and self._thread.is_alive()

    def add(self, lease: Lease) -> None:
        """Renew a lease from now on."""
        self._own()
        self._held[lease.id] = lease
        if not self.is_renewing:
            self._changed = threading.Event()
            self._thread = threading.Thread(
                target=self._keep_renewing,
                args=(self._changed,),
                name="picoqmail-leases",
                daemon=True,
            )
            self._thread.start()

    def drop(self, lease: Lease) -> None:
        """Renew a lease no more."""
        self._own()
        if self._held.get(lease.id) is lease:
            del self._held[lease.id]

    def rest(self) -> None:
        """End the thread if there is nothing to renew, so that an idle process has none."""
        self._own()
        if not self._held:
            self.abandon()

    def abandon(self) -> None:
        """Renew nothing any more: what is still claimed is free when its lease runs out."""
        self._own()
        self._held = {}
        thread, self._thread = self._thread, None
        if thread is not None:
            self._changed.set()
            thread.join()

    def demand(self, lease: Lease) -> None:
        """Raise LostClaimError if a lease is known to be lost."""
        if lease.is_lost:
            raise self.lost(lease)

    def lost(self, lease: Lease) -> LostClaimError:
        """Return the error for a lease that another process has, and note that it is lost."""
        lease.is_lost = True
        return LostClaimError(
            "go on with a message",
            f"{self.connections.address.location} {lease.id}",
            None,
            reason="its lease ran out, and another process has taken it or removed it",
        )

    def renew(self) -> None:
        """Renew all. Raises SpoolError."""
        self._own()
        held = list(self._held.values())
        if not held:
            return
        values = {
            "lease": self.seconds,
            "ids": [one.id for one in held],
            "fences": [one.fence for one in held],
        }
        rows = self.connections.run("renew the leases", _RENEW, values)
        for _, now in rows[-1:]:
            self.connections.heard(now)
        renewed = {message_id for message_id, _ in rows}
        for one in held:
            # One that was released or removed meanwhile has no row of that number, either.
            one.is_lost = one.is_lost or (one.id not in renewed and self._held.get(one.id) is one)

    def _keep_renewing(self, changed: threading.Event) -> None:
        while not changed.wait(self.seconds / _RENEWALS_A_LEASE):
            try:
                self.renew()
            except (SpoolError, ConfigurationError):
                # Tried again in time. If the lease runs out first, the mark finds out.
                continue

    def _own(self) -> None:
        """Begin without leases in a process that was forked: they are its parent's."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._held = {}
            self._thread = None
            self._changed = threading.Event()


class LeasedClaim:
    """A message that this process alone may change, until `release` or the end of its lease.

    As Claim in spool/claim.py; `due` is when the row says that it is due.
    """

    __slots__ = (
        "message",
        "state",
        "_lease",
        "_leases",
        "_read",
        "_data",
        "newlines",
        "eight_bit",
        "was_in_doubt",
        "has_progress",
        "due",
    )

    def __init__(  # noqa: PLR0913 - an argument a field
        self,
        message: Message,
        state: str,
        *,
        lease: Lease,
        leases: Leases,
        read: Callable[[str, int], Iterator[bytes]],
        data: bytes | None,
        newlines: int,
        eight_bit: bool,
        was_in_doubt: bool,
        has_progress: bool,
        due: float,
    ) -> None:
        """`read` yields the chunks of a message from a number on; `data` is a body of one chunk."""
        self.message: Final = message
        self.state: Final = state
        self._lease: Final = lease
        self._leases: Final = leases
        self._read: Final = read
        self._data: Final = data
        self.newlines: Final = newlines
        self.eight_bit: Final = eight_bit
        self.was_in_doubt: Final = was_in_doubt
        self.has_progress: Final = has_progress
        self.due: Final = due

    @property
    def size(self) -> int:
        """Octets of the body as spooled."""
        return self.message.size

    @property
    def lease(self) -> Lease:
        """The lease, which later values of this claim share."""
        return self._lease

    def blocks(self) -> Iterator[bytes]:
        """Yield the body's octets, one block for a small mail. Raises SpoolError."""
        if self._data is not None:
            yield self._data
            return
        octets = 0
        for block in self._read(self.message.id, 0):
            octets += len(block)
            yield block
        if octets != self.message.size:
            # It was removed while it was read.
            raise self._leases.lost(self._lease)

    def mark_in_doubt(self) -> None:
        """Leave a mark that outlives the server, too: the end of the data is sent now.

        Raises LostClaimError if another process has the message, SpoolError if the mark could not
        be made. In either case the end of the data must not be sent.
        """
        lease = self._lease
        self._leases.demand(lease)
        values = {"id": lease.id, "fence": lease.fence, "lease": self._leases.seconds}
        was_marked = lease.is_marked
        lease.is_unsure = not was_marked
        if not self._leases.connections.run("mark the message", _MARK, values, durable=True):
            raise self._leases.lost(lease)
        lease.is_unsure = False
        lease.is_marked = True

    def clear_doubt(self) -> None:
        """Take the mark back: the reply came and is recorded. Raises SpoolError."""
        lease = self._lease
        if not (lease.is_marked or lease.is_unsure):
            return
        values = {"id": lease.id, "fence": lease.fence}
        if not self._leases.connections.run("unmark the message", _UNMARK, values):
            raise self._leases.lost(lease)
        lease.is_marked = lease.is_unsure = False

    def doubt_counted(self) -> LeasedClaim:
        """Return the claim for a record that counts what an earlier sender left in doubt.

        Any other record leaves the mark of that sender there.
        """
        return evolve(self, was_in_doubt=False)

    @property
    def is_marked(self) -> bool:
        """Whether the mark is there."""
        return self._lease.is_marked

    def has_survived(self, *, is_removed: bool = False) -> None:
        """Note that an attempt was recorded: no run died of it. `release` takes the marks away."""
        self._lease.has_survived = True
        self._lease.is_over = self._lease.is_over or is_removed

    def release(self) -> None:
        """Release the message; the claim cannot be used any more.

        Raises nothing: what cannot be released now is free when its lease runs out.
        """
        lease = self._lease
        self._leases.drop(lease)
        if lease.is_lost or lease.is_over:
            return
        values = {
            "id": lease.id,
            "fence": lease.fence,
            "in_hand": lease.is_in_hand,
            "survived": lease.has_survived,
            "unsent": lease.is_unsure,
        }
        try:
            self._leases.connections.run("release the message", _RELEASE, values)
        except (SpoolError, ConfigurationError):
            return


def measure(message: Message, blocks: Iterator[bytes]) -> tuple[int, bool]:
    """Check a body; return the number of its LF, and whether any octet is over 127.

    Raises DamagedMessageError.
    """
    checksum, newlines, eight_bit, octets = 0, 0, False, 0
    for data in blocks:
        octets += len(data)
        checksum = crc32(data, checksum)
        newlines += data.count(b"\n")
        eight_bit = eight_bit or not data.isascii()
    if octets != message.size:
        raise DamagedMessageError(f"its body has {octets} octets, and {message.size} were accepted")
    if checksum != message.crc32:
        raise DamagedMessageError(
            f"its body is not what was accepted: CRC-32 {checksum}, not {message.crc32}"
        )
    return newlines, eight_bit
