"""The conversation with a relay: what is said when, and whose fault an answer is.

The rule of this module: no socket, no clock, no file. A driver hands in what it received and takes
what is to be sent; between the two, the dialogue is a generator that reads like the RFC. Who is
charged for what is decided here and in `running`, nowhere else:

    banner, EHLO, STARTTLS, AUTH, 421, 530, a lost connection, a time limit, what is no reply: relay
    MAIL, DATA and the answer after the data: the message
    RCPT, and in LMTP each answer after the data: that recipient
"""

from __future__ import annotations

from picoqmail.errors import PicoqmailError
from picoqmail.smtp.capabilities import Capabilities, read_capabilities
from picoqmail.smtp.reply import ReplyError, ReplyParser
from picoqmail.smtp.transaction import UNTRIED, RelayFault, Verdict
from picoqmail.smtp.transaction_run import Running
from picoqmail.smtp.wire import Encoder
from picoqmail.value import Value, evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Final, Literal

    from picoqmail.smtp.reply import Reply
    from picoqmail.smtp.sasl import Credentials, Login
    from picoqmail.smtp.transaction import Source

    Steps = Generator[int, None, None]

REPLY, FLUSH, TLS, PAUSE = range(4)
"""What a conversation waits for: octets, its output to be sent, TLS to be set up, time to pass."""

# Seconds to wait for each answer: RFC 5321 4.5.3.2.
BANNER_LIMIT = 300.0
COMMAND_LIMIT = 300.0
DATA_LIMIT = 120.0
BLOCK_LIMIT = 180.0
FINAL_LIMIT = 600.0
QUIT_LIMIT = 0.3
"""Seconds for the answer to QUIT: it changes nothing, so waiting long for it serves nobody."""

SLOWEST_OCTETS_PER_SECOND = 16384
"""A big message adds its size divided by this to the total limit of its transaction."""

_FLUSH_AT = 131072
_AUTH_ROUNDS_LIMIT = 8
_NEVER_MESSAGE = frozenset({421, 530})
_TRY_ANOTHER_MECHANISM = frozenset({504, 534})


class SessionOptions(Value):
    """How to talk to one relay.

    ``helo`` is our name. ``starttls`` says whether to ask for TLS in the conversation.
    ``cleartext_auth`` allows a login without TLS. ``messages`` is the most that one connection
    carries, ``timeout`` the seconds that bound each step and each transaction.
    """

    __slots__ = (
        "helo",
        "is_lmtp",
        "starttls",
        "credentials",
        "cleartext_auth",
        "messages",
        "timeout",
        "use_pipelining",
        "use_chunking",
    )

    def __init__(  # noqa: PLR0913 - an argument a field
        self,
        helo: str,
        *,
        is_lmtp: bool = False,
        starttls: Literal["never", "may", "must"] = "never",
        credentials: Credentials | None = None,
        cleartext_auth: bool = False,
        messages: int = 500,
        timeout: float = 1200.0,
        use_pipelining: bool = True,
        use_chunking: bool = True,
    ) -> None:
        self.helo: Final = helo
        self.is_lmtp: Final = is_lmtp
        self.starttls: Final = starttls
        self.credentials: Final = credentials
        self.cleartext_auth: Final = cleartext_auth
        self.messages: Final = messages
        self.timeout: Final = timeout
        self.use_pipelining: Final = use_pipelining
        self.use_chunking: Final = use_chunking


class FaultError(Exception):
    """The relay failed us; the session is over. Carries the RelayFault.

    ``is_muddled``: what the relay said could not be an answer to what we asked, so that the answers
    before it may not belong where we put them.
    """

    def __init__(self, fault: RelayFault, *, is_muddled: bool = False) -> None:
        super().__init__(fault.text)
        self.fault = fault
        self.is_muddled = is_muddled


class _HangUpError(Exception):
    """The connection has to be closed, and nobody is to blame."""


def is_pace(reply: Reply) -> bool:
    """Return whether this answer asks us to be slower: 421, 454, 45x with 4.7.x (not greylists)."""
    if reply.code in (421, 454):
        return True
    return (
        reply.is_temporary
        and reply.enhanced.startswith("4.7.")
        and "grey" not in reply.text.lower()
        and "gray" not in reply.text.lower()
    )


class Conversation:
    """One session with one relay, any number of transactions.

    The driver calls `start` once, then `receive`, `receive_eof`, `flushed`, `tls_established`,
    `wake` or `fail` as things happen, and after each of them sends what ``output`` holds (and says
    so in ``sent``), until ``closed``. While it waits, ``want`` says for what, ``stage`` and
    ``limit`` (seconds) how it is called and how long that may take; ``turn`` changes with each
    new thing waited for, ``epoch`` with each transaction, which may take ``total_limit`` in all.
    """

    def __init__(
        self,
        options: SessionOptions,
        source: Source,
        relay: str,
        *,
        secure: bool = False,
    ) -> None:
        self.options = options
        self.relay = relay
        self.secure = secure
        self.output: list[bytes] = []
        self.queued = 0
        self.sent = 0
        self.want = REPLY
        self.stage = "banner"
        self.limit = 0.0
        self.turn = 0
        self.epoch = 0
        self.total_limit = options.timeout
        self.closed = False
        self.ready = False
        self.fault: RelayFault | None = None
        self.served = 0
        self.pause = 0.0
        self.capabilities = Capabilities()
        self._source = source
        self._parser = ReplyParser()
        self._taken = 0
        self._current: Running | None = None
        self._following: Running | None = None
        self._dirty = False
        self._login_done: Login | None = None
        self._steps = self._session()

    def start(self) -> None:
        """Begin. The relay speaks first."""
        self._resume()

    def receive(self, data: bytes) -> None:
        """Take octets from the relay."""
        self._parser.feed(data)
        self._resume()

    def receive_eof(self) -> None:
        """Take the end of what the relay sends."""
        cut = "" if self._parser.is_empty else " in the middle of a reply"
        self.fail(self._fault(f"the relay closed the connection{cut}"))

    def flushed(self) -> None:
        """Continue after the output was sent."""
        self._resume()

    def wake(self) -> None:
        """Continue after a pause."""
        self._resume()

    def tls_established(self) -> None:
        """Continue under TLS."""
        self.secure = True
        self._resume()

    def timed_out(self) -> None:
        """End the session: what was waited for did not come in time."""
        text = "the relay did not answer in time"
        if self.stage == "banner" and not self.secure:
            text += "; if it speaks TLS from the first octet, as port 465 does, write smtps://"
        self.fail(self._fault(text))

    def fail(self, fault: RelayFault) -> None:
        """End the session: the transport broke."""
        if self.closed:
            return
        try:
            self.want = self._steps.throw(FaultError(fault))
        except StopIteration:
            self.closed = True

    @property
    def in_transaction(self) -> bool:
        """Whether a message is under way."""
        return self._current is not None

    def _resume(self) -> None:
        if self.closed:
            return
        try:
            self.want = next(self._steps)
        except StopIteration:
            self.closed = True

    # The session.

    def _session(self) -> Steps:
        try:
            yield from self._greet()
            self.ready = True
            yield from self._transactions()
            yield from self._quit()
        except FaultError as error:
            self._break_off(error.fault, is_muddled=error.is_muddled)
        except _HangUpError:
            pass

    def _greet(self) -> Steps:
        reply = yield from self._reply("banner", BANNER_LIMIT)
        if not reply.is_success:
            raise self._refused("banner", "the connection", reply)
        yield from self._hello()
        if not self.secure and self.options.starttls != "never":
            yield from self._start_tls()
        if self.options.credentials is not None:
            yield from self._authenticate(self.options.credentials)

    def _hello(self) -> Steps:
        verb = "LHLO" if self.options.is_lmtp else "EHLO"
        reply = yield from self._ask("ehlo", f"{verb} {self.options.helo}")
        if reply.is_success:
            self.capabilities = read_capabilities(reply)
            return
        if reply.is_permanent and not self.options.is_lmtp:
            reply = yield from self._ask("ehlo", f"HELO {self.options.helo}")
            verb = "HELO"
        if not reply.is_success:
            raise self._refused("ehlo", verb, reply)
        self.capabilities = Capabilities()

    def _start_tls(self) -> Steps:
        must = self.options.starttls == "must"
        if not self.capabilities.starttls:
            if must:
                raise FaultError(
                    RelayFault("tls", "the relay does not offer STARTTLS", temporary=False),
                )
            return
        reply = yield from self._ask("tls", "STARTTLS")
        if not reply.is_success:
            if must:
                raise self._refused("tls", "STARTTLS", reply)
            return
        # What was sent behind the 220 was sent in clear: somebody on the way may have put it there.
        if not self._parser.is_empty:
            raise FaultError(
                RelayFault("tls", "octets followed the answer to STARTTLS in clear text"),
            )
        yield TLS
        yield from self._hello()

    def _authenticate(self, credentials: Credentials) -> Steps:
        from picoqmail.smtp import sasl

        if not self.secure and not self.options.cleartext_auth:
            raise FaultError(
                RelayFault(
                    "auth",
                    "no password is sent without TLS, and here is none (setting tls)",
                    temporary=False,
                ),
            )
        try:
            oauth2 = credentials.secret.oauth2
            mechanisms = sasl.choose(self.capabilities.auth, oauth2=oauth2)
            offered = " ".join(self.capabilities.auth) or "nothing"
            wanted = " ".join(sasl.TOKEN_MECHANISMS if oauth2 else sasl.PASSWORD_MECHANISMS)
            refusal = FaultError(
                RelayFault(
                    "auth",
                    f"the relay offers no login that we know: {offered}, not one of {wanted}",
                    temporary=False,
                ),
            )
            for mechanism in mechanisms:
                login = sasl.Login(mechanism, credentials)
                reply = yield from self._login(login)
                if reply.is_success:
                    self._login_done = login
                    return
                refusal = self._refused("auth", f"the login ({mechanism})", reply)
                if reply.code not in _TRY_ANOTHER_MECHANISM:
                    break
        except (OSError, sasl.SaslError) as error:  # an OSError: the password could not be had
            raise FaultError(RelayFault("auth", str(error))) from None
        raise refusal

    def _login(self, login: Login) -> Generator[int, None, Reply]:
        line = login.command()
        for _ in range(_AUTH_ROUNDS_LIMIT):
            self._quiet("auth")
            self._write(line + b"\r\n")
            try:
                reply = yield from self._reply("auth", COMMAND_LIMIT)
            except FaultError as error:
                raise FaultError(_redacted_fault(error.fault, login)) from None
            if reply.code != 334:
                login.check(accepted=reply.is_success)
                return _redacted(reply, login)
            line = login.respond(reply.lines[0])
        raise FaultError(RelayFault("auth", "the relay asks without end"))

    def _quit(self) -> Steps:
        # Everything was recorded before: whatever happens from here on is nobody's concern.
        try:
            self._write(b"QUIT\r\n")
            yield from self._reply("quit", QUIT_LIMIT)
        except FaultError:
            return

    # Transactions.

    def _transactions(self) -> Steps:
        following: Running | None = None
        while True:
            run = following or (yield from self._next_run())
            if run is None:
                return
            self._current, self._following, following = run, None, None
            self.epoch += 1
            self.total_limit = self.options.timeout
            self.total_limit += run.transaction.body.size / SLOWEST_OCTETS_PER_SECOND
            blind = False
            if not self._pipelines:
                yield from self._envelope_in_steps(run)
            else:
                if not run.written:
                    self._quiet("mail")
                    blind = self._write_envelope(run, blind=True)
                yield from self._envelope_answers(run)
            if blind:
                yield from self._blind_final(run)
            elif not run.accepted or not run.mail_accepted:
                yield from self._nobody(run)
            elif self._chunks(run):
                self._quiet("final-dot")
                self._write_bdat(run)
                self._write_following()
                yield from self._finals(run)
            else:
                yield from self._data(run)
            following = self._following
            self._finish(run)

    def _next_run(self) -> Generator[int, None, Running | None]:
        while True:
            run = self._take()
            if run is not None:
                return run
            if self.pause <= 0 or self._taken >= self.options.messages:
                return None
            self.stage, self.limit = "idle", self.pause
            self.turn += 1
            yield PAUSE
            self._quiet("idle")

    def _take(self) -> Running | None:
        """Take the next message that this relay can be offered at all."""
        while self._taken < self.options.messages:
            transaction = self._source.take()
            if transaction is None:
                return None
            run = Running(transaction, self.capabilities, stuffed=not self._may_chunk)
            if run.offered:
                self._taken += 1
                return run
            self._source.done(transaction, run.verdict(self.relay, None, in_doubt=False))
        return None

    @property
    def _pipelines(self) -> bool:
        return self.capabilities.pipelining and self.options.use_pipelining

    @property
    def _may_chunk(self) -> bool:
        return self.capabilities.chunking and self.options.use_chunking and not self.options.is_lmtp

    def _chunks(self, run: Running) -> bool:
        return self._may_chunk and run.encoded is not None

    def _write_envelope(self, run: Running, *, blind: bool) -> bool:
        """Write the commands of an envelope as one group; return whether its data went along."""
        parts = [run.mail, *run.rcpts]
        if self._dirty:
            parts.insert(0, "RSET")
            run.rset_written = True
            self._dirty = False
        chunks = self._chunks(run)
        if not chunks:
            parts.append("DATA")
            run.data_written = True
        parts.append("")
        self._write("\r\n".join(parts).encode())
        run.written = True
        if not chunks or not blind:
            return False
        # Nothing else is in doubt on this connection, so the data need not wait for the answers.
        self._write_bdat(run)
        self._write_following()
        return True

    def _write_bdat(self, run: Running) -> None:
        """Write the whole message as the last chunk (RFC 3030 2)."""
        encoded = run.encoded or b""
        self._mark_end(run)
        self._write(b"BDAT %d LAST\r\n" % len(encoded) + encoded)
        run.dot_at = self.queued
        run.encoded = b""
        # RFC 3030 2: a chunk that is refused leaves the transaction open, until RSET.
        self._dirty = True

    def _write_following(self) -> None:
        """Write the next envelope behind the end of this message (RFC 2920 3.1)."""
        if not self._pipelines:
            return
        following = self._take()
        if following is not None:
            self._following = following
            self._write_envelope(following, blind=False)

    def _envelope_answers(self, run: Running) -> Steps:
        if run.rset_written:
            self._check_rset((yield from self._reply("rset", COMMAND_LIMIT)))
        reply = yield from self._reply("mail", COMMAND_LIMIT)
        self._judge(reply, "mail")
        run.mail_answer(reply)
        for position in range(len(run.rcpts)):
            reply = yield from self._reply("rcpt", COMMAND_LIMIT)
            self._judge(reply, "rcpt")
            run.rcpt_answer(position, reply)

    def _envelope_in_steps(self, run: Running) -> Steps:
        if self._dirty:
            yield from self._reset()
        run.written = True
        reply = yield from self._ask("mail", run.mail)
        self._judge(reply, "mail")
        run.mail_answer(reply)
        if not run.mail_accepted:
            return
        for position, command in enumerate(run.rcpts):
            reply = yield from self._ask("rcpt", command)
            self._judge(reply, "rcpt")
            run.rcpt_answer(position, reply)

    def _reset(self) -> Steps:
        self._check_rset((yield from self._ask("rset", "RSET")))
        self._dirty = False

    def _check_rset(self, reply: Reply) -> None:
        if not reply.is_success:
            raise self._refused("rset", "RSET", reply, is_muddled=_is_intermediate(reply))

    def _nobody(self, run: Running) -> Steps:
        """Leave a transaction in which there is nobody to deliver to."""
        self._dirty = run.mail_accepted
        if not run.data_written:
            return
        reply = yield from self._reply("data", DATA_LIMIT)
        run.note("DATA", reply)
        if reply.is_temporary or reply.is_permanent:
            return
        if reply.code != 354:
            raise self._refused("data", "DATA without a recipient", reply, is_muddled=True)
        # RFC 2920 3.1: the relay waits for data that nobody shall get.
        if run.accepted or self.options.is_lmtp:
            # A dot would deliver an empty message, or be answered nobody knows how many times.
            self._finish(run)
            raise _HangUpError
        self._quiet("final-dot")
        self._write(b".\r\n")
        reply = yield from self._reply("final-dot", FINAL_LIMIT)
        run.note(".", reply)
        self._dirty = False

    def _blind_final(self, run: Running) -> Steps:
        """Read the answer to data that did not wait for the answers to their envelope."""
        if run.accepted and run.mail_accepted:
            yield from self._finals(run)
            return
        reply = yield from self._reply("final-dot", FINAL_LIMIT)
        run.note("BDAT", reply)

    def _data(self, run: Running) -> Steps:
        if not run.data_written:
            self._quiet("data")
            self._write(b"DATA\r\n")
        reply = yield from self._reply("data", DATA_LIMIT)
        run.note("DATA", reply)
        if reply.is_temporary or reply.is_permanent:
            self._judge(reply, "data")
            run.settle(reply)
            # An answer too many, earlier on, would make this one that of the last RCPT, and charge
            # everybody with it. Then 354 comes in the place of the answer to RSET.
            yield from self._reset()
            return
        if reply.code != 354:
            raise self._refused("data", "DATA", reply, is_muddled=True)
        run.envelope_is_sure = True
        if run.encoded is None:
            yield from self._stream(run)
            ending = b".\r\n"
        else:
            ending = run.encoded + b".\r\n"
            run.encoded = b""
        self._quiet("final-dot")
        self._mark_end(run)
        self._write(ending)
        run.dot_at = self.queued
        self._write_following()
        yield from self._finals(run)

    def _stream(self, run: Running) -> Steps:
        """Send a message that is too big to hold, all but the dot."""
        encoder = Encoder()
        try:
            for block in run.blocks():
                self._write(encoder.encode(block))
                if self.queued - self.sent >= _FLUSH_AT:
                    yield from self._flush()
            self._write(encoder.finish())
        except (OSError, PicoqmailError) as error:
            # Without the dot it was never sent (RFC 5321 4.1.1.10); there is no other way out.
            run.unreadable(error)
            self._finish(run)
            raise _HangUpError from None
        yield from self._flush()

    def _flush(self) -> Steps:
        while self.queued > self.sent:
            self.stage, self.limit = "data", BLOCK_LIMIT
            self.turn += 1
            yield FLUSH
            self._quiet("data")

    def _finals(self, run: Running) -> Steps:
        if not self.options.is_lmtp:
            reply = yield from self._reply("final-dot", FINAL_LIMIT)
            run.note(".", reply)
            self._judge(reply, "final-dot")
            run.settle(reply)
            return
        for index in run.accepted:
            reply = yield from self._reply("final-dot", FINAL_LIMIT)
            run.note(f". for <{run.transaction.recipients[index]}>", reply)
            self._judge(reply, "final-dot")
            run.settle_one(index, reply)

    def _mark_end(self, run: Running) -> None:
        """Let the caller note that from here on the message may have arrived."""
        try:
            run.transaction.mark_in_doubt()
        except (OSError, PicoqmailError) as error:
            # Without the mark a crash could not be told from an attempt that never was.
            run.unreadable(error)
            self._finish(run)
            raise _HangUpError from None

    def _finish(self, run: Running) -> None:
        self._current = None
        self.served += 1
        self._source.done(run.transaction, run.verdict(self.relay, None, in_doubt=False))

    def _break_off(self, fault: RelayFault, *, is_muddled: bool) -> None:
        """Give back what was taken: nobody is charged, only what was answered counts."""
        if self._login_done is not None:
            fault = _redacted_fault(fault, self._login_done)
        self.fault = fault
        run, following = self._current, self._following
        if run is not None and is_muddled:
            run.forget_envelope()
        self._current = self._following = None
        if run is not None:
            # A 421 in the place of a final answer is one: this message was not taken.
            reply = fault.reply if fault.stage == "final-dot" else None
            answered = 1 if reply is not None and reply.code >= 400 else 0
            if answered and not self.options.is_lmtp:
                answered = len(run.results)
            in_doubt = 0 <= run.dot_at <= self.sent and run.unanswered > answered
            run.note_fault(fault)
            self._source.done(run.transaction, run.verdict(self.relay, fault, in_doubt=in_doubt))
        if following is not None:
            untried = (UNTRIED,) * len(following.transaction.recipients)
            verdict = Verdict(untried, fault, in_doubt=False, transcript=(), relay=self.relay)
            self._source.done(following.transaction, verdict)

    # Saying and hearing.

    def _write(self, data: bytes) -> None:
        if data:
            self.output.append(data)
            self.queued += len(data)

    def _ask(self, stage: str, command: str) -> Generator[int, None, Reply]:
        self._quiet(stage)
        self._write(command.encode() + b"\r\n")
        return (yield from self._reply(stage, COMMAND_LIMIT))

    def _reply(self, stage: str, limit: float) -> Generator[int, None, Reply]:
        self.stage, self.limit = stage, limit
        self.turn += 1
        try:
            reply = self._parser.next()
            while reply is None:
                yield REPLY
                reply = self._parser.next()
        except ReplyError as error:
            raise FaultError(self._fault(str(error)), is_muddled=True) from None
        if reply.code in _NEVER_MESSAGE:
            raise self._refused(stage, "us", reply)
        if self._login_done is not None:
            return _redacted(reply, self._login_done)
        return reply

    def _judge(self, reply: Reply, stage: str) -> None:
        """Refuse an answer that cannot be one here."""
        if reply.is_success:
            return
        if not reply.is_temporary and not reply.is_permanent:
            raise self._refused(stage, "what it cannot mean", reply, is_muddled=True)

    def _quiet(self, stage: str) -> None:
        """Make sure that the relay has said nothing that nobody asked for."""
        if self._parser.is_empty:
            return
        try:
            reply = self._parser.next()
        except ReplyError as error:
            raise FaultError(self._fault(str(error)), is_muddled=True) from None
        if reply is None:
            raise FaultError(
                self._fault("the relay speaks though nothing was asked"),
                is_muddled=True,
            )
        raise FaultError(
            RelayFault(
                stage,
                f"the relay said, though nothing was asked: {reply.text}",
                reply,
                pace=is_pace(reply),
            ),
            is_muddled=reply.code not in _NEVER_MESSAGE,
        )

    def _fault(self, text: str) -> RelayFault:
        return RelayFault(self.stage, text)

    def _refused(
        self, stage: str, what: str, reply: Reply, *, is_muddled: bool = False
    ) -> FaultError:
        return FaultError(
            RelayFault(
                stage,
                f"the relay answered {what} with: {reply.text}",
                reply,
                temporary=reply.is_temporary,
                pace=is_pace(reply) and stage != "tls",  # 454 there: no TLS now (RFC 3207 4)
            ),
            is_muddled=is_muddled,
        )


def _is_intermediate(reply: Reply) -> bool:
    return 300 <= reply.code < 400


def _redacted(reply: Reply, login: Login) -> Reply:
    return evolve(reply, lines=tuple(map(login.redact, reply.lines)))


def _redacted_fault(fault: RelayFault, login: Login) -> RelayFault:
    said = fault.reply and _redacted(fault.reply, login)
    return evolve(fault, text=login.redact(fault.text), reply=said)
