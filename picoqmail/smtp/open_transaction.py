"""One transaction under way: its commands, the replies to them, who may still get the message.

The rule of this module: it decides what can be said to this relay, and whom a reply concerns. The
conversation decides when to say it, and what to wait for.
"""

from __future__ import annotations

from picoqmail.errors import PicoqmailError
from picoqmail.smtp import dsn
from picoqmail.smtp.address import (
    UnsendableAddressError,
    ascii_form,
    needs_smtputf8,
    to_xtext,
    wire_path,
)
from picoqmail.smtp.meaning import (
    is_about_our_host,
    is_limit,
    says_too_fast,
    wants_login,
    wants_tls,
)
from picoqmail.smtp.transaction import UNTRIED, RecipientResult, Verdict
from picoqmail.smtp.wire import Encoder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from picoqmail.smtp.capabilities import Capabilities
    from picoqmail.smtp.reply import Reply
    from picoqmail.smtp.transaction import Outcome, RelayFault, Transaction

WHOLE_LIMIT = 131072
"""Octets of a spooled body that is held whole, and encoded before its envelope is written."""

_TOO_MANY_RECIPIENTS = 552
_NOTIFY = frozenset({"SUCCESS", "FAILURE", "DELAY"})


class OpenTransaction:
    """One transaction in one session. Results are kept by index of the recipient.

    ``given`` is what the source gave. ``offered`` are the indexes of the recipients that this relay
    can be asked to take, ``accepted`` those that it took. ``mail`` and ``rcpts`` are the commands.
    ``encoded`` is the message as it goes over the wire, None if it is too big to hold. ``dot_at``
    is where its end stands among all octets that the conversation has written, -1 before that.
    ``envelope_is_sure``: the replies to the envelope were for this envelope, as 354 has shown.
    ``withheld`` are the recipients that must wait for another transaction (LIMITS). ``is_behind``:
    it was written behind the final dot of the one before. ``has_reply``: the relay has replied to
    some of it. ``in_chunk``: its data were written by BDAT. ``stuffed``: they are encoded for DATA.
    ``too_fast`` is what the relay said about our pace, in a reply that is not one recipient's.
    """

    __slots__ = (
        "accepted",
        "body",
        "data_written",
        "dot_at",
        "encoded",
        "envelope_is_sure",
        "given",
        "has_reply",
        "in_chunk",
        "is_behind",
        "mail",
        "mail_accepted",
        "offered",
        "rcpts",
        "results",
        "rset_written",
        "stuffed",
        "too_fast",
        "transcript",
        "withheld",
        "written",
    )

    def __init__(self, given: Transaction, offer: Capabilities, *, stuffed: bool) -> None:
        """`offer`: what the relay can do; `stuffed`: the message goes by DATA, not by BDAT."""
        self.given = given
        self.body = given.body
        self.results: list[RecipientResult] = [UNTRIED] * len(given.recipients)
        self.offered: list[int] = []
        self.accepted: list[int] = []
        self.rcpts: list[str] = []
        self.mail = ""
        self.mail_accepted = False
        self.transcript: list[str] = []
        self.encoded: bytes | None = None
        self.written = False
        self.rset_written = False
        self.data_written = False
        self.envelope_is_sure = False
        self.withheld: list[int] = []
        self.is_behind = False
        self.has_reply = False
        self.in_chunk = False
        self.stuffed = stuffed
        self.too_fast = ""
        self.dot_at = -1
        try:
            self._prepare(offer, stuffed=stuffed)
        except (OSError, PicoqmailError) as exc:
            self.unreadable(exc)

    def blocks(self) -> Iterator[bytes]:
        """Yield the raw body. Raises OSError or PicoqmailError where it cannot be read."""
        return self.body.blocks()

    def unreadable(self, exc: Exception) -> None:
        """Note that our side failed: no recipient was tried, and no relay is to blame."""
        self.offered, self.accepted, self.withheld = [], [], []
        text = f"the message cannot be sent from here: {exc}"
        self.results = [RecipientResult("untried", None, text)] * len(self.results)
        self.transcript.append(f"-- {text}")

    def mail_replied(self, reply: Reply) -> None:
        """Take the reply to MAIL: a refusal concerns the message, so every recipient."""
        self.note(self.mail, reply)
        if reply.is_success:
            self.mail_accepted = True
        else:
            self._settle([*self.offered, *self.withheld], reply, _outcome_of_envelope(reply))
            self.withheld = []

    def rcpt_replied(self, position: int, reply: Reply) -> None:
        """Take the reply to one RCPT. After a refused MAIL it says nothing about anybody."""
        self.note(self.rcpts[position], reply)
        index = self.offered[position]
        if reply.is_success:
            self.accepted.append(index)
        elif self.mail_accepted:
            outcome = _outcome_of_envelope(reply)
            if reply.code == _TOO_MANY_RECIPIENTS:  # RFC 5321 4.5.3.1.10: treat it as 452
                outcome = "deferred"
            self.results[index] = RecipientResult(outcome, reply, reply.text)

    def forget_envelope(self) -> None:
        """Take back the results of the envelope: the replies may have been for other commands.

        But not after 354, which shows that each reply before it was for its own command.
        """
        if not self.envelope_is_sure:
            self.accepted = []
            for index in self.offered:
                self.results[index] = UNTRIED

    def take_back(self) -> None:
        """Forget all that was said to this transaction: it is to be offered once more."""
        self.accepted = []
        self.results = [UNTRIED] * len(self.results)

    def data_refused(self, reply: Reply) -> None:
        """Take a refusal of DATA."""
        self._settle(self.accepted, reply, _outcome_of_envelope(reply))

    def settle(self, reply: Reply) -> None:
        """Take the reply to the data, for all recipients that the relay had accepted."""
        self._settle(self.accepted, reply, _outcome(reply))

    def settle_one(self, index: int, reply: Reply) -> None:
        """Take the reply for one recipient after the data, as LMTP gives it (RFC 2033)."""
        self.results[index] = RecipientResult(_outcome(reply), reply, reply.text)

    def note(self, command: str, reply: Reply) -> None:
        """Add a command and the reply to it to the transcript."""
        self.transcript += ("C: " + command, "S: " + reply.text)

    def note_fault(self, fault: RelayFault) -> None:
        """Add to the transcript how the session broke off."""
        self.transcript.append(f"-- {fault.stage}: {fault.text}")

    def verdict(self, relay: str, fault: RelayFault | None, *, in_doubt: bool) -> Verdict:
        """Return how this transaction ended."""
        return Verdict(
            tuple(self.results),
            fault,
            in_doubt=in_doubt,
            transcript=tuple(self.transcript),
            relay=relay,
            withheld=tuple(self.withheld),
            too_fast=self.too_fast,
        )

    @property
    def without_reply(self) -> int:
        """How many recipients still lack a final reply."""
        return sum(result is UNTRIED for result in self.results)

    def _prepare(self, offer: Capabilities, *, stuffed: bool) -> None:
        """Find out what this relay can take, then write the commands."""
        given = self.given
        try:
            own = given.sender if offer.smtputf8 else ascii_form(given.sender)
            sender = wire_path(own)
        except UnsendableAddressError as exc:
            self._fail_all(f"5.1.7 {exc}")
            return
        if not given.body.eight_bit:
            body = ""
        elif offer.eight_bit:
            body = " BODY=8BITMIME"
        else:
            body = ""
            if not self._convert():
                return
        smtputf8 = offer.smtputf8
        if not smtputf8 and needs_smtputf8(own):
            self._fail_all(f"5.6.7 {_no_smtputf8(given.sender)}")
            return
        paths = self._paths(offer)
        if not paths:
            return
        size = self._size_parameter(offer, stuffed=stuffed)
        if size is None:
            return
        self.mail = f"MAIL FROM:{sender}{size}"
        self.mail += body
        if smtputf8 and self._needs_smtputf8():
            self.mail += " SMTPUTF8"
        if offer.dsn and given.dsn:
            self.mail += self._dsn_of_mail()
            self.rcpts = [
                f"RCPT TO:{path}{self._dsn_of_rcpt(index)}"
                for index, path in zip(self.offered, paths, strict=True)
            ]
        else:
            self.rcpts = [f"RCPT TO:{path}" for path in paths]

    def _convert(self) -> bool:
        """Take the body in 7 bits; False if it has no such form, and then every recipient fails."""
        text = "5.6.3 the message holds 8-bit characters, and the relay does not offer 8BITMIME"
        if self.given.in_seven_bits is not None:
            try:
                self.body = self.given.in_seven_bits()
            except ValueError as exc:
                text += f"; it cannot be converted: {exc}"
            else:
                return True
        self._fail_all(text)
        return False

    def _paths(self, offer: Capabilities) -> list[str]:
        paths: list[str] = []
        domains: set[str] = set()
        smtputf8 = offer.smtputf8
        for index, address in enumerate(self.given.recipients):
            offered = address if smtputf8 else ascii_form(address)
            try:
                path = wire_path(offered)
            except UnsendableAddressError as exc:
                self._fail(index, f"5.1.3 {exc}")
                continue
            if path == "<>":
                self._fail(index, f"5.1.3 the recipient {address!a} is empty")
            elif not smtputf8 and needs_smtputf8(offered):
                self._fail(index, f"5.6.7 {_no_smtputf8(address)}")
            elif offer.rcpt_max and len(paths) >= offer.rcpt_max:
                self.withheld.append(index)
            else:
                domain = address.rpartition("@")[2].lower()
                if offer.domain_max and len(domains | {domain}) > offer.domain_max:
                    self.withheld.append(index)
                    continue
                domains.add(domain)
                paths.append(path)
                self.offered.append(index)
        return paths

    def _measure(self, *, stuffed: bool) -> int:
        """Return the octets on the wire, or rarely a few more; RFC 1870 5 wants no fewer."""
        body = self.body
        if body.size > WHOLE_LIMIT:
            return body.size + body.newlines + 2
        encoder = Encoder(stuffed=stuffed)
        parts = [encoder.encode(block) for block in body.blocks()]
        parts.append(encoder.finish())
        self.encoded = b"".join(parts)
        return len(self.encoded)

    def _size_parameter(self, offer: Capabilities, *, stuffed: bool) -> str | None:
        """Return SIZE= where it is offered; None if the message is too large (RFC 1870 6)."""
        size = self._measure(stuffed=stuffed)
        if offer.size and size > offer.size:
            size = self._exact_size()
            if size > offer.size:
                self._fail_all(
                    f"5.3.4 the message has {size} bytes on the wire, "
                    f"and the relay takes at most {offer.size}",
                )
                return None
        return f" SIZE={size}" if offer.declares_size else ""

    def _exact_size(self) -> int:
        encoder = Encoder(stuffed=False)
        return sum(len(encoder.encode(block)) for block in self.blocks()) + len(encoder.finish())

    def _needs_smtputf8(self) -> bool:
        recipients = self.given.recipients
        return needs_smtputf8(self.given.sender) or any(
            needs_smtputf8(recipients[index]) for index in self.offered
        )

    def _dsn_of_mail(self) -> str:
        ret, envelope_id = dsn.ret(self.given.dsn), dsn.envelope_id(self.given.dsn)
        words = f" RET={ret}" if ret else ""
        return words + (f" ENVID={to_xtext(envelope_id)}" if envelope_id else "")

    def _dsn_of_rcpt(self, index: int) -> str:
        notify, original = dsn.notify(self.given.dsn), dsn.original_recipient(self.given.dsn, index)
        words = ""
        if notify == ["NEVER"] or (notify and _NOTIFY.issuperset(notify)):
            words += f" NOTIFY={','.join(notify)}"
        if original:
            kind, address = original
            words += f" ORCPT={to_xtext(kind)};{to_xtext(address)}"
        return words

    def _fail(self, index: int, text: str) -> None:
        self.results[index] = RecipientResult("failed", None, text)
        self.transcript.append(f"-- {text}")

    def _fail_all(self, text: str) -> None:
        self.offered, self.withheld = [], []
        self.results = [RecipientResult("failed", None, text)] * len(self.results)
        self.transcript.append(f"-- {text}")

    def _settle(self, indexes: list[int], reply: Reply, outcome: Outcome) -> None:
        result = RecipientResult(outcome, reply, reply.text)
        for index in indexes:
            self.results[index] = result
        if not reply.is_success and says_too_fast(reply):
            self.too_fast = reply.text


def _outcome(reply: Reply) -> Outcome:
    if reply.is_success:
        return "delivered"
    return "deferred" if reply.is_temporary or is_limit(reply) else "failed"


def _outcome_of_envelope(reply: Reply) -> Outcome:
    """Return the outcome of a reply before the data: what is wrong with us may be repaired."""
    outcome = _outcome(reply)
    if outcome == "failed" and (wants_tls(reply) or wants_login(reply) or is_about_our_host(reply)):
        return "deferred"
    return outcome


def _no_smtputf8(address: str) -> str:
    return f"the address {address!a} needs SMTPUTF8, which the relay does not offer"
