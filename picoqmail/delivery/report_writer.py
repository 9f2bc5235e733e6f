"""Writing a report into the spool's tmp/, where nobody sees it yet.

The rule of this module: it commits nothing; report.py says when. All that only reports need is
imported here, so that report.py can import it in one step, when there is something to report.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from picoqmail.delivery import report_text
from picoqmail.delivery.report_state import KIND_FAILED
from picoqmail.errors import SpoolError
from picoqmail.home.limits import Limits
from picoqmail.smtp import dsn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from picoqmail.home.settings import Settings
    from picoqmail.spool.message import Indexes, Message
    from picoqmail.store.protocol import ClaimedMessage, IncomingMessage, Store


_HEADER_LIMIT_OCTETS = 65536


class ReportWriter:
    """Writes the reports of one run; `limit` says how many one address may get."""

    def __init__(self, spool: Store, settings: Settings, clock: Callable[[], float]) -> None:
        """`clock` gives Unix seconds."""
        self.limit = spool.report_limit(settings.bouncelimit)
        self._spool = spool
        self._settings = settings
        self._clock = clock

    def new(self) -> IncomingMessage:
        """Begin a message; a context manager, which takes it back unless it was committed."""
        # Reports must get through where mail is refused, so the limits of acceptance do not hold.
        limits = Limits(self._settings.me, queuelifetime=self._settings.queuelifetime)
        return self._spool.incoming(
            limits,
            program="picoqmail-bounce",
            uid=os.getuid(),
            pid=os.getpid(),
            now_ns=int(self._clock() * 1_000_000_000),
        )

    def write(
        self, claim: ClaimedMessage, message: Message, indexes: Indexes, kind: str, to: str
    ) -> IncomingMessage:
        """Write a report on the recipients at these indexes, and keep its lock. Raises SpoolError.

        `kind` is `failed` or `delayed`, `to` the address that the report goes to.
        """
        header = _header_of(claim)
        whole = kind == KIND_FAILED and self._returns_whole(message)
        incoming = self.new()
        try:
            with ExitStack() as undo:
                undo.enter_context(incoming)
                report = report_text.Report(
                    id=incoming.id,
                    kind=kind,
                    message=message,
                    indexes=indexes,
                    host=self._settings.me,
                    author=self._author,
                    to=to,
                    now=int(self._clock()),
                    header=header,
                    whole=whole,
                    eight_bit=claim.eight_bit if whole else not header.isascii(),
                )
                # 128 random bits: no message can hold them by chance or by guessing.
                before, after = report_text.frame(report, f"=_{os.urandom(16).hex()}")
                for block in before:
                    incoming.write(block)
                for block in claim.blocks() if whole else (header,):
                    incoming.write(block)
                incoming.write(after)
                undo.pop_all()
        except SpoolError:
            raise
        except OSError as exc:
            raise SpoolError("read the message", message.id, exc) from exc
        return incoming

    def write_digest(
        self, incoming: IncomingMessage, address: str, kept: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write the digest for an address, about what was kept in an hour. Raises SpoolError."""
        text = report_text.digest(
            incoming.id,
            address,
            kept,
            host=self._settings.me,
            author=self._author,
            now=int(self._clock()),
        )
        incoming.write(text)

    @property
    def _author(self) -> str:
        return f"{self._settings.bouncefrom}@{self._settings.bouncehost}"

    def _returns_whole(self, message: Message) -> bool:
        """Say whether the message itself goes back: RET of RFC 3461 4.3, up to bouncemaxbytes."""
        wanted = dsn.ret(message.unknown.get("dsn")) != "HDRS"
        return wanted and message.size <= self._settings.bouncemaxbytes


def _header_of(claim: ClaimedMessage) -> bytes:
    """Return the header of a message as spooled, cut if it is larger than any header should be."""
    data = b""
    for block in claim.blocks():
        data += block
        end = data.find(b"\n\n")
        if end >= 0:
            return data[: min(end + 1, _HEADER_LIMIT_OCTETS)]
        if len(data) > _HEADER_LIMIT_OCTETS:
            break
    return data[:_HEADER_LIMIT_OCTETS]
