"""A relay that speaks by script, and a source that remembers: conversations without a socket."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from attrs import Factory, define, field

from picoqmail.smtp.conversation import FLUSH, TLS, Conversation, SessionOptions
from picoqmail.smtp.transaction import Transaction
from picoqmail.smtp.wire import Encoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from picoqmail.smtp.lessons import Lessons
    from picoqmail.smtp.transaction import Verdict

BODY = b"Subject: x\n\nhello\n"
WIRE = b"Subject: x\r\n\r\nhello\r\n"


@define
class MemoryBody:
    """A body in memory; `error` is raised after the blocks."""

    data: bytes = BODY
    error: Exception | None = None
    block: int = 65536

    @property
    def size(self) -> int:
        """Octets."""
        return len(self.data)

    @property
    def newlines(self) -> int:
        """How many LF."""
        return self.data.count(b"\n")

    @property
    def eight_bit(self) -> bool:
        """Whether beyond ASCII."""
        return not self.data.isascii()

    def blocks(self) -> Iterator[bytes]:
        """Yield it block by block."""
        for start in range(0, len(self.data), self.block):
            yield self.data[start : start + self.block]
        if self.error is not None:
            raise self.error


@define
class MemorySource:
    """Gives what it was given, in order, and keeps the verdicts."""

    waiting: deque[Transaction] = Factory(deque)
    verdicts: dict[object, Verdict] = Factory(dict)
    events: list[tuple[str, object]] = Factory(list)

    def add(
        self,
        *recipients: str,
        sender: str = "s@example.org",
        body: MemoryBody | None = None,
        dsn: dict[str, object] | None = None,
        mark_error: Exception | None = None,
    ) -> MemorySource:
        """Add a message; its key is its number, from 0."""
        key = len(self.waiting) + len(self.verdicts)

        def mark() -> None:
            self.events.append(("mark", key))
            if mark_error is not None:
                raise mark_error

        self.waiting.append(
            Transaction(
                sender,
                recipients or ("r@example.net",),
                body or MemoryBody(),
                dsn=dsn,
                key=key,
                mark_in_doubt=mark,
            )
        )
        return self

    def take(self) -> Transaction | None:
        """Give the next."""
        if not self.waiting:
            return None
        self.events.append(("take", self.waiting[0].key))
        return self.waiting.popleft()

    def backlog(self) -> int:
        """How many there are."""
        return len(self.waiting)

    def done(self, transaction: Transaction, verdict: Verdict) -> None:
        """Keep the verdict; a second one for the same message is an error."""
        assert transaction.key not in self.verdicts
        self.events.append(("done", transaction.key))
        self.verdicts[transaction.key] = verdict

    def outcomes(self, key: object) -> list[str]:
        """Return the outcomes of a message by index."""
        return [result.outcome for result in self.verdicts[key].results]


@define
class Scripted:
    """A conversation, and what it has said that was not looked at yet."""

    source: MemorySource
    options: SessionOptions = field(factory=lambda: SessionOptions("me.example"))
    lessons: Lessons | None = None
    conversation: Conversation = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Begin the conversation."""
        self.conversation = Conversation(
            self.options,
            self.source.take,
            self.source.done,
            "relay:25",
            lessons=self.lessons,
        )
        self.conversation.start()

    def says(self, *lines: str) -> bytes:
        """Let the relay say these lines, and return what the client says to that."""
        return self.sends("".join(line + "\r\n" for line in lines).encode())

    def sends(self, octets: bytes) -> bytes:
        """Let the relay send exactly this."""
        self.conversation.receive(octets)
        return self.take_output()

    def take_output(self) -> bytes:
        """Take all that the client says, as a transport that is never full would."""
        said = b""
        while True:
            conversation = self.conversation
            said += b"".join(conversation.output)
            conversation.output = []
            conversation.sent = conversation.queued
            if conversation.want == FLUSH and not conversation.closed:
                conversation.flushed()
            elif conversation.want == TLS and not conversation.closed and not conversation.secure:
                said += b"<TLS>"
                conversation.tls_established()
            else:
                return said

    def greets(self, *offers: str) -> bytes:
        """Let the relay greet and offer these extensions; return what comes after EHLO."""
        assert self.says("220 relay ready").startswith((b"EHLO me.example\r\n", b"LHLO "))
        lines = ["relay", *offers]
        return self.says(*[f"250-{line}" for line in lines[:-1]], f"250 {lines[-1]}")


def group(*lines: str) -> bytes:
    """Return commands as they stand on the wire."""
    return "".join(line + "\r\n" for line in lines).encode()


def encode_whole(message: bytes, *, stuffed: bool = True) -> bytes:
    """Return the wire octets of a message that is held whole."""
    encoder = Encoder(stuffed=stuffed)
    return encoder.encode(message) + encoder.finish()
