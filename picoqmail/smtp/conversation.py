"""The conversation with a relay: what is said when, and whom a bad reply is charged to.

The rule of this module: no socket, no clock, no file. A driver hands in what it received and takes
what is to be sent; between the two, the dialogue is a generator that reads like the RFC. Who is
charged for what is decided here and in `open_transaction`, nowhere else:

    banner, EHLO, STARTTLS, AUTH, 421, 530, a lost connection, a time limit, what is no reply: relay
    MAIL, DATA and the reply after the data: the message
    RCPT, and in LMTP each reply after the data: that recipient
    a reply to the envelope that is about our login or our host (`meaning`): relay

What is offered and does not work is noted in the `lessons` of the relay, and avoided from then on.
"""

from __future__ import annotations

from functools import partial

from picoqmail.errors import PicoqmailError
from picoqmail.smtp.capabilities import Capabilities, read_capabilities
from picoqmail.smtp.lessons import LOGINS, LONE_DOT, NO_BDAT, SERVED, Lessons
from picoqmail.smtp.meaning import (
    SESSION_CODES,
    blames_pipelining,
    is_about_our_host,
    says_too_fast,
    wants_login,
    wants_tls,
)
from picoqmail.smtp.open_transaction import OpenTransaction
from picoqmail.smtp.reply import ReplyError, ReplyParser
from picoqmail.smtp.transaction import UNTRIED, RelayFault, Verdict
from picoqmail.smtp.wire import Encoder
from picoqmail.value import Value, evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Final, Literal

    from picoqmail.smtp.redaction import Redactor
    from picoqmail.smtp.reply import Reply
    from picoqmail.smtp.sasl import Credentials, Login
    from picoqmail.smtp.transaction import Transaction

    Steps = Generator[int, None, None]

REPLY, FLUSH, TLS, PAUSE = range(4)
"""What a conversation waits for: octets, its output to be sent, TLS to be set up, time to pass."""

# Seconds to wait for each reply: RFC 5321 4.5.3.2.
BANNER_LIMIT = 300.0
COMMAND_LIMIT = 300.0
DATA_LIMIT = 120.0
BLOCK_LIMIT = 180.0
FINAL_LIMIT = 600.0
BEHIND_LIMIT = 20.0
"""Seconds for the first reply to what was written behind a final dot. Some relays drop that."""

QUIT_LIMIT = 0.3
"""Seconds to wait for the reply to QUIT. It changes nothing, so a long wait serves nobody."""

SLOWEST_OCTETS_PER_SECOND = 16384
"""A message may take its size divided by this on top of the time limit of a transaction."""

_FLUSH_AT = 131072
_AUTH_ROUNDS_LIMIT = 8
_NEVER_MESSAGE = frozenset({421, 530})
_BAD_SEQUENCE = 503
_CLOSING = 421
_NO_SUCH_COMMAND = frozenset({500, 501, 502, 503, 504})


class SessionOptions(Value):
    """How to speak to one relay in one session.

    ``helo`` is our name. ``starttls`` says whether to ask for TLS in the conversation.
    ``cleartext_auth`` allows a login without TLS. ``messages`` is the most that one session
    carries, ``timeout`` the seconds that each step and each transaction may take. ``mechanisms``
    are the logins that may be used, in upper case; none means all that we know.
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
        "mechanisms",
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
        mechanisms: tuple[str, ...] = (),
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
        self.mechanisms: Final = mechanisms


class FaultError(Exception):
    """The relay did not serve us; the session is over. Carries the RelayFault.

    ``is_muddled``: what the relay said cannot be a reply to what we asked. So the replies before it
    may not belong to the commands that we took them for.
    """

    def __init__(self, fault: RelayFault, *, is_muddled: bool = False) -> None:
        super().__init__(fault.text)
        self.fault = fault
        self.is_muddled = is_muddled


class _HangUpError(Exception):
    """The connection has to be closed, and nobody is to blame."""


class Conversation:
    """One session with one relay, any number of transactions.

    The driver calls `start` once, then `receive`, `receive_eof`, `flushed`, `tls_established`,
    `wake` or `fail` as things happen. After each call it sends what ``output`` holds, and counts
    the octets in ``sent``, until ``closed``. While the conversation waits, ``want`` says for what,
    ``stage`` what that is called, and ``limit`` how many seconds it may take. ``turn`` changes with
    each new thing that is waited for, ``epoch`` with each transaction. A transaction may take
    ``total_limit`` seconds.

    The conversation calls ``take`` for the next message; None ends the session, unless ``pause``
    was set to the seconds after which to ask again. It calls ``done`` with the verdict on each
    message, before it says anything more.
    """

    def __init__(  # noqa: PLR0913 - what it needs, and the two ways back
        self,
        options: SessionOptions,
        take: Callable[[], Transaction | None],
        done: Callable[[Transaction, Verdict], None],
        relay: str,
        *,
        secure: bool = False,
        lessons: Lessons | None = None,
    ) -> None:
        """`relay` is the name that the verdicts give; `lessons` are shared with its other ones."""
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
        self.is_waiting_for_login = False
        """Whether it pauses because another conversation logs in; then `wake` when that ends."""
        self.fault: RelayFault | None = None
        self.served = 0
        self.pause = 0.0
        self.lessons = lessons or Lessons()
        self.capabilities = Capabilities()
        self._take = take
        self._done = done
        self._parser = ReplyParser()
        self._begun = 0
        self._current: OpenTransaction | None = None
        self._following: OpenTransaction | None = None
        self._is_leaving = False  # the relay holds an envelope that was given back
        self._dirty = False  # the relay may hold a transaction that was not ended: RSET is due
        # With a login: what the relay said last. Decisions are made by that, and not by what may be
        # shown.
        self._unredacted: Reply | None = None
        self._redactor: Redactor | None = None
        self._next_reply = self._parser.next
        if options.credentials is not None:
            self._redactor = _make_redactor(options.credentials)
            self._parser.redact = self._redactor.redact
            self._next_reply = partial(self._next_redacted, self._redactor)
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
        text = "the relay did not reply in time"
        if self.stage == "banner" and not self.secure:
            text += "; if it speaks TLS from the first byte, as port 465 does, write smtps://"
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
    def is_holding(self) -> bool:
        """Whether an envelope waits for the reply to the message before it."""
        return self._following is not None and self.stage == "final-dot"

    def let_go(self) -> None:
        """Give that envelope back. The session ends after the reply, because the relay has it."""
        following, self._following = self._following, None
        if following is None:
            return
        self._is_leaving = True
        fault = RelayFault("idle", "the relay takes long to reply to the message before")
        untried = (UNTRIED,) * len(following.given.recipients)
        verdict = Verdict(untried, fault, in_doubt=False, transcript=(), relay=self.relay)
        self._done(following.given, verdict)

    @property
    def in_transaction(self) -> bool:
        """Whether a message is under way."""
        return self._current is not None

    def _resume(self) -> None:
        try:
            self.want = next(self._steps)
        except StopIteration:
            self.closed = True

    # --- The session ---------------------------------------------------------------------------

    def _session(self) -> Steps:
        try:
            yield from self._greet()
            self.ready = True
            yield from self._transactions()
            yield from self._quit()
        except FaultError as exc:
            self._break_off(exc.fault, is_muddled=exc.is_muddled)
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
            self.capabilities = read_capabilities(self._unredacted or reply)
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
                raise FaultError(RelayFault("tls", "the relay does not offer STARTTLS"))
            return
        reply = yield from self._ask("tls", "STARTTLS")
        if not reply.is_success:
            if must:
                raise self._refused("tls", "STARTTLS", reply)
            return
        # What follows the 220 in clear text may have been put there by somebody on the way.
        if not self._parser.is_empty:
            raise FaultError(
                RelayFault("tls", "bytes followed the reply to STARTTLS in clear text"),
            )
        yield TLS
        yield from self._hello()

    def _authenticate(self, credentials: Credentials) -> Steps:
        from picoqmail.smtp import sasl

        if not self.secure and not self.options.cleartext_auth:
            raise FaultError(
                RelayFault(
                    "auth",
                    "no password is sent without TLS, and here is none (settings tls and "
                    "cleartextauth)",
                ),
            )
        lessons, user = self.lessons, credentials.user
        if user not in lessons.logged_in:
            yield from self._await_first_login(user)
        if user in lessons.refusals:
            raise FaultError(lessons.refusals[user])
        is_first = user not in lessons.logged_in
        if is_first:
            lessons.logging_in.add(user)
        try:
            yield from self._log_in(credentials)
        except (OSError, sasl.SaslError) as exc:  # OSError: the password could not be read
            fault = RelayFault("auth", str(exc))
        except FaultError as exc:
            fault = exc.fault
        else:
            lessons.logged_in.add(user)
            return
        finally:
            if is_first:
                lessons.logging_in.discard(user)
        if not fault.again:
            # A relay that counts bad logins is not asked a second time in this run.
            lessons.refusals[user] = fault
        raise FaultError(fault)

    def _await_first_login(self, user: str) -> Steps:
        """Wait until another connection has found out whether the relay knows our password.

        A wrong one must be tried once, and not by all connections that were opened at once.
        """
        while user in self.lessons.logging_in:
            self.stage, self.limit = "auth", COMMAND_LIMIT
            self.turn += 1
            self.is_waiting_for_login = True
            yield PAUSE
            self.is_waiting_for_login = False
            self._quiet("auth")

    def _log_in(self, credentials: Credentials) -> Steps:
        """Log in by the strongest mechanism that works. Raises FaultError, OSError, SaslError."""
        from picoqmail.smtp import sasl

        lessons = self.lessons
        tried = lessons.tried.setdefault(credentials.user, set())
        oauth2 = credentials.secret.oauth2
        offered, allowed = self.capabilities.auth, self.options.mechanisms
        mechanisms = sasl.choose(offered, oauth2=oauth2, allowed=allowed)
        if not mechanisms:
            wanted = " ".join(sasl.known_mechanisms(oauth2=oauth2, allowed=allowed)) or "any"
            text = f"{' '.join(offered) or 'nothing'}, not one of {wanted}"
            if allowed:
                text += " (setting authmechanisms)"
            raise FaultError(
                RelayFault("auth", f"the relay offers no login that we know: {text}"),
            )
        left = [name for name in mechanisms if name not in tried]
        # What failed in another run, where something weaker served, is the last resort.
        left.sort(key=lambda name: name in lessons.bad_logins)
        refusal = FaultError(RelayFault("auth", "every login that the relay offers has failed"))
        refusals: list[str] = []
        while left:
            mechanism = left.pop(0)
            login = sasl.Login(mechanism, credentials, self._redactor)
            try:
                reply = yield from self._login(login)
            except sasl.ImpostorError:
                raise
            except sasl.SaslError as exc:
                tried.add(mechanism)
                refusal = FaultError(RelayFault("auth", str(exc)))
                refusals.append(f"{mechanism}: {exc}")
                continue
            except FaultError as exc:
                # It did not survive this mechanism. The next connection tries another one.
                tried.add(mechanism)
                is_mute = exc.fault.reply is None and not exc.is_muddled
                raise FaultError(evolve(exc.fault, again=is_mute and bool(left))) from None
            if reply.is_success:
                bad = (lessons.bad_logins | tried) - {mechanism}
                if bad != lessons.bad_logins:
                    lessons.learn(LOGINS, " ".join(sorted(bad)))
                return
            tried.add(mechanism)
            refusal = self._refused("auth", f"the login ({mechanism})", reply)
            refusals.append(f"{mechanism}: {reply.text}")
            if reply.is_temporary:
                break
        if len(refusals) > 1:
            text = f"the relay refused every login: {'; '.join(refusals)}"
            refusal = FaultError(evolve(refusal.fault, text=text))
        raise refusal

    def _login(self, login: Login) -> Generator[int, None, Reply]:
        line = login.command()
        for _ in range(_AUTH_ROUNDS_LIMIT):
            self._quiet("auth")
            self._write(line + b"\r\n")
            reply = yield from self._reply("auth", COMMAND_LIMIT)
            if reply.code != 334:
                login.check(accepted=reply.is_success)
                return reply
            line = login.respond((self._unredacted or reply).lines[0])
        raise FaultError(RelayFault("auth", "the relay asks without end"))

    def _quit(self) -> Steps:
        # Everything was recorded before, so whatever happens from here on does not matter.
        try:
            self._write(b"QUIT\r\n")
            yield from self._reply("quit", QUIT_LIMIT)
        except FaultError:
            return

    # --- Transactions --------------------------------------------------------------------------

    def _transactions(self) -> Steps:
        following: OpenTransaction | None = None
        while True:
            transaction = following or (yield from self._next())
            if transaction is None:
                return
            self._current, self._following, following = transaction, None, None
            self.epoch += 1
            self.total_limit = self.options.timeout
            self.total_limit += transaction.given.body.size / SLOWEST_OCTETS_PER_SECOND
            blind = False
            if not self._pipelines:
                yield from self._envelope_in_steps(transaction)
            else:
                if not transaction.written:
                    self._quiet("mail")
                    # A relay that took nothing behind a dot may have hung up instead. Then only
                    # the envelope is lost, and no data are in doubt.
                    is_sure = not (self.served and self.lessons.knows(LONE_DOT))
                    blind = self._write_envelope(transaction, blind=is_sure)
                yield from self._envelope_replies(transaction)
            self._check_session(transaction)
            if blind:
                yield from self._blind_final(transaction)
            elif not transaction.accepted or not transaction.mail_accepted:
                yield from self._nobody(transaction)
            elif self._chunks(transaction):
                self._quiet("final-dot")
                self._write_bdat(transaction)
                self._write_following()
                yield from self._finals(transaction)
            else:
                yield from self._data(transaction)
            following = self._following
            self._finish(transaction)
            if self._is_leaving:
                raise _HangUpError

    def _next(self) -> Generator[int, None, OpenTransaction | None]:
        while True:
            transaction = self._begin()
            if transaction is not None:
                return transaction
            if self.pause <= 0 or self._begun >= self._most_messages:
                return None
            self.stage, self.limit = "idle", self.pause
            self.turn += 1
            yield PAUSE
            self._quiet("idle")

    def _begin(self) -> OpenTransaction | None:
        """Take the next message that can be offered to this relay at all."""
        while self._begun < self._most_messages:
            given = self._take()
            if given is None:
                return None
            transaction = OpenTransaction(given, self.capabilities, stuffed=not self._may_chunk)
            if transaction.offered:
                self._begun += 1
                return transaction
            self._done(given, transaction.verdict(self.relay, None, in_doubt=False))
        return None

    @property
    def _most_messages(self) -> int:
        """How many messages this session carries at most; RFC 9422 4.1 for MAILMAX."""
        limits = (self.options.messages, self.capabilities.mail_max, self.lessons.mail_limit)
        return min([limit for limit in limits if limit])

    @property
    def _pipelines(self) -> bool:
        return self.capabilities.pipelining and self.options.use_pipelining

    @property
    def _may_chunk(self) -> bool:
        return (
            self.capabilities.chunking
            and self.options.use_chunking
            and not self.options.is_lmtp
            and not self.lessons.knows(NO_BDAT)
        )

    @staticmethod
    def _chunks(transaction: OpenTransaction) -> bool:
        # What was encoded for BDAT must not go by DATA, even if BDAT was found broken since.
        return not transaction.stuffed and transaction.encoded is not None

    def _write_envelope(self, transaction: OpenTransaction, *, blind: bool) -> bool:
        """Write the commands of an envelope as one group; return whether its data went along."""
        parts = [transaction.mail, *transaction.rcpts]
        if self._dirty:
            parts.insert(0, "RSET")
            transaction.rset_written = True
            self._dirty = False
        chunks = self._chunks(transaction)
        if not chunks:
            parts.append("DATA")
            transaction.data_written = True
        parts.append("")
        self._write("\r\n".join(parts).encode())
        transaction.written = True
        if not chunks or not blind:
            return False
        # Nothing else is in doubt on this connection, so the data need not wait for the replies.
        self._write_bdat(transaction)
        self._write_following()
        return True

    def _write_bdat(self, transaction: OpenTransaction) -> None:
        """Write the whole message as the last chunk (RFC 3030 2)."""
        encoded = transaction.encoded or b""
        self._mark_end(transaction)
        self._write(b"BDAT %d LAST\r\n" % len(encoded) + encoded)
        transaction.dot_at = self.queued
        transaction.encoded = b""
        transaction.in_chunk = True
        # RFC 3030 2: a chunk that is refused leaves the transaction open, until RSET.
        self._dirty = True

    def _write_following(self) -> None:
        """Write the next envelope behind the end of this message (RFC 2920 3.1)."""
        if not self._pipelines or self.lessons.knows(LONE_DOT):
            return
        following = self._begin()
        if following is not None:
            self._following = following
            following.is_behind = True
            self._write_envelope(following, blind=False)

    def _envelope_replies(self, transaction: OpenTransaction) -> Steps:
        limit = BEHIND_LIMIT if transaction.is_behind else COMMAND_LIMIT
        if transaction.rset_written:
            self._check_rset((yield from self._reply("rset", limit)))
            transaction.has_reply = True
        reply = yield from self._reply("mail", COMMAND_LIMIT if transaction.has_reply else limit)
        self._take_mail_reply(transaction, reply)
        for position in range(len(transaction.rcpts)):
            reply = yield from self._reply("rcpt", COMMAND_LIMIT)
            self._check(reply, "rcpt")
            transaction.rcpt_replied(position, reply)

    def _envelope_in_steps(self, transaction: OpenTransaction) -> Steps:
        if self._dirty:
            yield from self._reset()
            transaction.has_reply = True
        self._take_mail_reply(transaction, (yield from self._ask("mail", transaction.mail)))
        if not transaction.mail_accepted:
            return
        for position, command in enumerate(transaction.rcpts):
            reply = yield from self._ask("rcpt", command)
            self._check(reply, "rcpt")
            transaction.rcpt_replied(position, reply)

    def _take_mail_reply(self, transaction: OpenTransaction, reply: Reply) -> None:
        self._check(reply, "mail")
        if transaction.is_behind and not transaction.has_reply and blames_pipelining(reply):
            raise self._refused("mail", "what followed the final dot", reply)
        if (fault := self._session_fault("mail", reply)) is not None:
            raise fault
        if reply.code == _BAD_SEQUENCE:
            # The first command of a transaction is in no wrong place because of this message.
            raise self._refused("mail", "MAIL", reply)
        transaction.has_reply = True
        transaction.mail_replied(reply)

    def _check_session(self, transaction: OpenTransaction) -> None:
        """Raise FaultError if nobody was accepted, and that because of our login or our host."""
        if transaction.accepted or not transaction.mail_accepted:
            return
        for index in transaction.offered:
            reply = transaction.results[index].reply
            if reply is not None and (fault := self._session_fault("rcpt", reply)) is not None:
                transaction.take_back()
                raise fault

    def _session_fault(self, stage: str, reply: Reply) -> FaultError | None:
        """Return the fault of a reply that is about this session and not about the message."""
        if reply.is_success:
            return None
        credentials = self.options.credentials
        if wants_tls(reply) and not self.secure:
            advice = "it wants TLS: see the setting tls"
        elif wants_login(reply):
            user = credentials.user if credentials is not None else ""
            known = self.lessons.serves
            if stage != "mail":
                known = known or self.lessons.facts.get(SERVED) == user
            if known and reply.code not in SESSION_CODES:
                # It serves others as we are, so this is about one sender or recipient.
                return None
            if credentials is None:
                advice = (
                    "it wants a login: write the user before the host in relayip, as in "
                    "user@host, and the password into relaypass"
                )
            else:
                advice = "it does not know our login: see the user in relayip, and relaypass"
        elif is_about_our_host(reply):
            advice = (
                f"it does not accept the name of this host, {self.options.helo}: set helohost (or "
                "me) to the name that the DNS has for this host's address"
            )
        else:
            return None
        said = f"the relay replied to {stage.upper()} with: {reply.text}"
        return FaultError(RelayFault(stage, f"{said}; {advice}", reply, is_session=True))

    def _reset(self) -> Steps:
        self._check_rset((yield from self._ask("rset", "RSET")))
        self._dirty = False

    def _check_rset(self, reply: Reply) -> None:
        if not reply.is_success:
            raise self._refused("rset", "RSET", reply, is_muddled=_is_intermediate(reply))

    def _nobody(self, transaction: OpenTransaction) -> Steps:
        """Leave a transaction in which there is nobody to deliver to."""
        self._dirty = transaction.mail_accepted
        if not transaction.data_written:
            return
        reply = yield from self._reply("data", DATA_LIMIT)
        transaction.note("DATA", reply)
        if reply.is_temporary or reply.is_permanent:
            return
        if reply.code != 354:
            raise self._refused("data", "DATA without a recipient", reply, is_muddled=True)
        # RFC 2920 3.1: the relay waits for data that nobody shall get.
        if transaction.accepted or self.options.is_lmtp:
            # A dot would deliver an empty message, and nobody knows how many replies LMTP gives.
            self._finish(transaction)
            raise _HangUpError
        self._quiet("final-dot")
        self._write(b".\r\n")
        reply = yield from self._reply("final-dot", FINAL_LIMIT)
        transaction.note(".", reply)
        self._dirty = False

    def _blind_final(self, transaction: OpenTransaction) -> Steps:
        """Read the reply to data that did not wait for the replies to its envelope."""
        if transaction.accepted and transaction.mail_accepted:
            yield from self._finals(transaction)
            return
        reply = yield from self._reply("final-dot", FINAL_LIMIT)
        transaction.note("BDAT", reply)

    def _data(self, transaction: OpenTransaction) -> Steps:
        if not transaction.data_written:
            self._quiet("data")
            self._write(b"DATA\r\n")
        reply = yield from self._reply("data", DATA_LIMIT)
        transaction.note("DATA", reply)
        if reply.is_temporary or reply.is_permanent:
            if (fault := self._session_fault("data", reply)) is not None:
                transaction.take_back()
                raise fault
            transaction.data_refused(reply)
            # If the relay has sent a reply too many before, this one belongs to the last RCPT and
            # must not be charged to everybody. RSET shows it: the reply to it would be the 354.
            yield from self._reset()
            return
        if reply.code != 354:
            raise self._refused("data", "DATA", reply, is_muddled=True)
        transaction.envelope_is_sure = True
        if transaction.encoded is None:
            yield from self._stream(transaction)
            ending = b".\r\n"
        else:
            ending = transaction.encoded + b".\r\n"
            transaction.encoded = b""
        self._quiet("final-dot")
        self._mark_end(transaction)
        self._write(ending)
        transaction.dot_at = self.queued
        self._write_following()
        yield from self._finals(transaction)

    def _stream(self, transaction: OpenTransaction) -> Steps:
        """Send a message that is too big to hold, all but the dot."""
        encoder = Encoder()
        try:
            for block in transaction.blocks():
                self._write(encoder.encode(block))
                if self.queued - self.sent >= _FLUSH_AT:
                    yield from self._flush()
            self._write(encoder.finish())
        except (OSError, PicoqmailError) as exc:
            # Without the dot nothing was sent (RFC 5321 4.1.1.10); closing is the only way out.
            transaction.unreadable(exc)
            self._finish(transaction)
            raise _HangUpError from None
        yield from self._flush()

    def _flush(self) -> Steps:
        while self.queued > self.sent:
            self.stage, self.limit = "data", BLOCK_LIMIT
            self.turn += 1
            yield FLUSH
            self._quiet("data")

    def _finals(self, transaction: OpenTransaction) -> Steps:
        if not self.options.is_lmtp:
            reply = yield from self._reply("final-dot", FINAL_LIMIT)
            transaction.note(".", reply)
            self._check(reply, "final-dot")
            self._check_end(transaction, reply)
            transaction.settle(reply)
            if reply.is_success:
                self._note_service(transaction)
            return
        for index in transaction.accepted:
            reply = yield from self._reply("final-dot", FINAL_LIMIT)
            transaction.note(f". for <{transaction.given.recipients[index]}>", reply)
            self._check(reply, "final-dot")
            transaction.settle_one(index, reply)
            if reply.is_success:
                self._note_service(transaction)

    def _check_end(self, transaction: OpenTransaction, reply: Reply) -> None:
        """Raise FaultError if the reply is about how the message was sent, and not about it."""
        if transaction.in_chunk and reply.code in _NO_SUCH_COMMAND:
            self.lessons.learn(NO_BDAT)
            text = f"the relay offers CHUNKING and replied to BDAT with: {reply.text}"
        elif self._following is not None and reply.code == _BAD_SEQUENCE:
            self.lessons.learn(LONE_DOT)
            text = f"the relay replied to the final dot and what followed it with: {reply.text}"
        else:
            return
        transaction.take_back()
        raise FaultError(RelayFault("final-dot", text, reply, again=True))

    def _note_service(self, transaction: OpenTransaction) -> None:
        """Note what a relay that has taken a message has shown."""
        lessons, credentials = self.lessons, self.options.credentials
        lessons.serves = True
        lessons.chunks = lessons.chunks or transaction.in_chunk
        lessons.learn(SERVED, credentials.user if credentials is not None else "")

    def _mark_end(self, transaction: OpenTransaction) -> None:
        """Let the caller note that from here on the message may have arrived."""
        try:
            transaction.given.mark_in_doubt()
        except (OSError, PicoqmailError) as exc:
            # Without the mark nobody could see after a crash that the message may have been sent.
            transaction.unreadable(exc)
            self._finish(transaction)
            raise _HangUpError from None

    def _finish(self, transaction: OpenTransaction) -> None:
        self._current = None
        self.served += 1
        self._done(transaction.given, transaction.verdict(self.relay, None, in_doubt=False))

    def _break_off(self, fault: RelayFault, *, is_muddled: bool) -> None:
        """Give back what was taken: only replies count, and the fault is charged to nobody."""
        if self._redactor is not None:
            fault = evolve(fault, text=self._redactor.redact(fault.text))
        transaction, following = self._current, self._following
        if transaction is not None and not is_muddled:
            fault = self._draw_lesson(transaction, fault)
        self.fault = fault
        if transaction is not None and is_muddled:
            transaction.forget_envelope()
        self._current = self._following = None
        if transaction is not None:
            # A 421 in place of a final reply is one: this message was not taken.
            reply = fault.reply if fault.stage == "final-dot" else None
            replies = 1 if reply is not None and reply.code >= 400 else 0
            if replies and not self.options.is_lmtp:
                replies = len(transaction.results)
            in_doubt = 0 <= transaction.dot_at <= self.sent and transaction.without_reply > replies
            in_doubt = in_doubt and not _was_refused(transaction, fault)
            transaction.note_fault(fault)
            verdict = transaction.verdict(self.relay, fault, in_doubt=in_doubt)
            self._done(transaction.given, verdict)
        if following is not None:
            untried = (UNTRIED,) * len(following.given.recipients)
            verdict = Verdict(untried, fault, in_doubt=False, transcript=(), relay=self.relay)
            self._done(following.given, verdict)

    def _draw_lesson(self, transaction: OpenTransaction, fault: RelayFault) -> RelayFault:
        """Learn from how a session broke off; return the fault, ``again`` if that helps."""
        reply, lessons = fault.reply, self.lessons
        if fault.again:
            return fault
        if self.served and not transaction.has_reply and fault.stage in ("mail", "rset"):
            # Nothing was said to this envelope, so it is not to blame.
            is_closing = reply is not None and reply.code == _CLOSING
            if reply is not None and not is_closing and not blames_pipelining(reply):
                return fault
            if transaction.is_behind and not is_closing:
                lessons.learn(LONE_DOT)
            elif reply is None or is_closing:
                lessons.mail_limit = self.served
            return evolve(fault, again=True)
        if transaction.in_chunk and fault.stage == "final-dot" and reply is None:
            if lessons.chunks:
                return fault
            # It hung up on BDAT, before any BDAT has worked.
            lessons.learn(NO_BDAT)
            transaction.take_back()
            return evolve(fault, again=True)
        return fault

    # --- Commands and replies ------------------------------------------------------------------

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
            reply = self._next_reply()
            while reply is None:
                yield REPLY
                reply = self._next_reply()
        except ReplyError as exc:
            raise FaultError(self._fault(str(exc)), is_muddled=True) from None
        if reply.code in _NEVER_MESSAGE:
            fault = None
            if reply.code != _CLOSING and self._current is not None:
                fault = self._session_fault(stage, reply)
            raise fault or self._refused(stage, "us", reply)
        return reply

    def _next_redacted(self, redactor: Redactor) -> Reply | None:
        """Return the next reply without the secrets that the relay repeats, or None."""
        reply = self._unredacted = self._parser.next()
        if reply is None:
            return None
        lines = redactor.redact_lines(reply.lines)
        return reply if lines is reply.lines else evolve(reply, lines=lines)

    def _check(self, reply: Reply, stage: str) -> None:
        """Raise FaultError for a reply that makes no sense here."""
        if reply.code >= 300 and not reply.is_temporary and not reply.is_permanent:
            raise self._refused(stage, "what it cannot mean", reply, is_muddled=True)

    def _quiet(self, stage: str) -> None:
        """Raise FaultError if the relay has said anything that nobody asked for."""
        if self._parser.is_empty:
            return
        try:
            reply = self._next_reply()
        except ReplyError as exc:
            raise FaultError(self._fault(str(exc)), is_muddled=True) from None
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
                too_fast=says_too_fast(reply),
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
                f"the relay replied to {what} with: {reply.text}",
                reply,
                too_fast=says_too_fast(reply)
                and stage != "tls",  # 454 there: no TLS now (RFC 3207 4)
            ),
            is_muddled=is_muddled,
        )


def _is_intermediate(reply: Reply) -> bool:
    return 300 <= reply.code < 400


def _make_redactor(credentials: Credentials) -> Redactor:
    """Return what keeps the password out, from the banner on: the relay knows it from before."""
    from picoqmail.smtp import redaction, sasl

    redactor = redaction.Redactor()
    sasl.add_secret(redactor, credentials)
    return redactor


def _was_refused(transaction: OpenTransaction, fault: RelayFault) -> bool:
    """Say whether data that went along with an envelope were for nobody."""
    reply = fault.reply
    if reply is None or reply.code < 400 or fault.stage not in ("rset", "mail", "rcpt"):
        return False
    if reply.code == _CLOSING:
        return True
    # A relay that refuses RSET may still take what follows it.
    return fault.stage != "rset" and not transaction.accepted
