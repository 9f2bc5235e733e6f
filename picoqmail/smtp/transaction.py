"""What a conversation is given, and what it gives back.

The rule of this module: values and protocols only, and nothing that knows a socket or a file.
"""

from __future__ import annotations

from picoqmail.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Final, Literal, Protocol

    from picoqmail.smtp.reply import Reply

    Outcome = Literal["delivered", "deferred", "failed", "untried"]

    class Body(Protocol):
        """A message as it lies in the spool."""

        @property
        def size(self) -> int:
            """Octets as spooled."""

        @property
        def newlines(self) -> int:
            """How many LF are among them."""

        @property
        def eight_bit(self) -> bool:
            """Whether any octet is over 127."""

        def blocks(self) -> Iterator[bytes]:
            """Yield the raw octets, 64 to 256 KiB at a time; a small mail is one block.

            Raises OSError where the body cannot be read. Then the message is not sent.
            """


RECIPIENTS_LIMIT = 100
"""Recipients in one transaction: what every relay must accept (RFC 5321 4.5.3.1.8)."""


class Transaction:
    """One message for one relay.

    ``recipients`` are raw, at most RECIPIENTS_LIMIT, duplicates kept. ``dsn`` may hold ``notify``,
    ``ret``, ``envid``, ``orcpt`` (RFC 3461). ``key`` is the caller's own. ``mark_in_doubt`` is
    called just before the octets that end the data go to the transport. ``in_seven_bits`` returns
    the body for a relay without 8BITMIME; it raises ValueError if that cannot be had.
    """

    __slots__ = ("sender", "recipients", "body", "dsn", "key", "mark_in_doubt", "in_seven_bits")

    def __init__(  # noqa: PLR0913 - an argument a field
        self,
        sender: str,
        recipients: tuple[str, ...],
        body: Body,
        *,
        dsn: Mapping[str, object] | None,
        key: object,
        mark_in_doubt: Callable[[], None],
        in_seven_bits: Callable[[], Body] | None = None,
    ) -> None:
        self.sender: Final = sender
        self.recipients: Final = recipients
        self.body: Final = body
        self.dsn: Final = dsn
        self.key: Final = key
        self.mark_in_doubt: Final = mark_in_doubt
        self.in_seven_bits: Final = in_seven_bits


class RecipientResult(Value):
    """What became of one recipient.

    ``text`` says for people what the relay said, or why we failed this recipient ourselves.
    """

    __slots__ = ("outcome", "reply", "text")

    def __init__(self, outcome: Outcome, reply: Reply | None, text: str) -> None:
        self.outcome: Final = outcome
        self.reply: Final = reply
        self.text: Final = text


LONGEST_REASON = 1000
"""Characters of a relay's fault. It is kept in the spool, logged and shown in one line."""

UNTRIED = RecipientResult("untried", None, "")
"""Nothing final is known: no attempt that could be charged to this recipient."""


class RelayFault(Value):
    """The relay did not serve us, and no message is to blame.

    ``stage`` is where: ``lookup``, ``connect``, ``tls``, ``banner``, ``ehlo``, ``auth``, ``idle``,
    ``mail``, ``rcpt``, ``data``, ``final-dot``, ``rset``, ``quit``. ``too_fast``: the
    relay asked us to slow down. ``again``: what went wrong is avoided from now on, so the same
    message is to be offered to the same relay at once. ``is_session``: the relay refused an
    envelope because of our login, our host's name, or a lack of TLS; the text names the setting.
    ``text`` is cut at LONGEST_REASON characters.
    """

    __slots__ = ("stage", "text", "reply", "too_fast", "again", "is_session")

    def __init__(  # noqa: PLR0913 - an argument a field
        self,
        stage: str,
        text: str,
        reply: Reply | None = None,
        *,
        too_fast: bool = False,
        again: bool = False,
        is_session: bool = False,
    ) -> None:
        self.stage: Final = stage
        self.text: Final = (
            text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 3]}..."
        )
        self.reply: Final = reply
        self.too_fast: Final = too_fast
        self.again: Final = again
        self.is_session: Final = is_session


class Verdict(Value):
    """The end of one transaction, results by index of the recipient.

    ``in_doubt``: the end of the data went to the transport, and no final reply came.
    ``transcript`` holds the lines of this dialogue, without anything secret. ``withheld`` are the
    indexes of recipients that the relay takes in another transaction only (LIMITS, RFC 9422).
    ``too_fast`` is what the relay said about our pace in a reply that was not one recipient's.
    """

    __slots__ = ("results", "fault", "in_doubt", "transcript", "relay", "withheld", "too_fast")

    def __init__(  # noqa: PLR0913 - an argument a field
        self,
        results: tuple[RecipientResult, ...],
        fault: RelayFault | None,
        *,
        in_doubt: bool,
        transcript: tuple[str, ...],
        relay: str,
        withheld: tuple[int, ...] = (),
        too_fast: str = "",
    ) -> None:
        self.results: Final = results
        self.fault: Final = fault
        self.in_doubt: Final = in_doubt
        self.transcript: Final = transcript
        self.relay: Final = relay
        self.withheld: Final = withheld
        self.too_fast: Final = too_fast
