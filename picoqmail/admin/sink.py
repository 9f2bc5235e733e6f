"""A relay for trials: it takes mail on loopback, keeps it in a Maildir, and can refuse it by rules.

What may live here: the server, built on aiosmtpd (extra `demo`), and what it does with a mail.

What it keeps is what came over the wire, octet for octet, dots unstuffed, lines ending with CRLF;
with `unix_lines`, as mail readers want it, with LF. A header field would alter the mail, so its
envelope is a file beside it: `envelopes/NAME.json` in the Maildir, which mail readers ignore. It is
there before the mail appears in `new/`, and both are on disk before the 250 is sent.

It replies 4xx or 5xx where a rule says so. It serves one host's trials: no address but loopback's
is served, and what a client sends is bounded by `size_limit`, which is announced.
"""

# ruff: noqa: N802 - aiosmtpd calls handle_MAIL and its kin by these names

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any, AnyStr

from aiosmtpd.smtp import SMTP
from attrs import field, frozen

from picoqmail import durable, layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aiosmtpd.smtp import Envelope, Session

PHASES = ("ehlo", "mail", "rcpt", "data", "content")
HOST_NAME = "sink.localhost"
SIZE_LIMIT_OCTETS = 32 << 20

_LOWEST_REFUSAL = 400
_HIGHEST_REFUSAL = 599


@frozen
class Refusal:
    """A refusal instead of the usual reply to a phase.

    `phase` is one of `PHASES`: `data` is the reply to the command DATA, `content` that to the
    final dot. `times` is how many transactions get it (of `ehlo`: sessions), None for all.
    """

    phase: str
    reply: str
    times: int | None = None


@frozen
class Rules:
    """What the sink refuses: by phase, and single recipients (by address in lower case) always."""

    refusals: tuple[Refusal, ...] = ()
    recipients: Mapping[str, str] = field(factory=dict)

    def reply(self, phase: str, count: int) -> str | None:
        """Return the refusal for a phase of the transaction with this number, from 0; or None."""
        for refusal in self.refusals:
            if refusal.phase == phase and (refusal.times is None or count < refusal.times):
                return refusal.reply
        return None


@frozen
class KeptMail:
    """One mail that was taken, as `envelopes/NAME.json` has it too."""

    name: str
    path: str
    sender: str
    recipients: tuple[str, ...]
    mail_options: tuple[str, ...]
    helo: str
    size: int
    received: float


def reply_line(text: str) -> str:
    """Return the reply that `451`, or `550 5.1.1 no such user`, asks for.

    Raises ValueError if the code does not refuse (400 to 599), or the text is not printable ASCII.
    """
    code, _, rest = text.strip().partition(" ")
    is_number = code.isascii() and code.isdigit()
    if not is_number or not _LOWEST_REFUSAL <= int(code) <= _HIGHEST_REFUSAL:
        raise ValueError(f"{code!r} is not the code of a refusal, which is 400 to 599")
    if not rest.isascii() or not rest.isprintable():
        raise ValueError(f"{rest!r} cannot stand in a reply, which is printable ASCII")
    return f"{code} {rest or code[0] + '.0.0 refused on request'}"


def refusal(text: str, times: int | None = None) -> Refusal:
    """Return the rule of `[PHASE=]CODE [TEXT]`; the phase is `content` if none is named.

    Raises ValueError.
    """
    phase, equals, reply = text.partition("=")
    if not equals or not phase.isalpha():
        phase, reply = "content", text
    phase = phase.lower()
    if phase not in PHASES:
        raise ValueError(f"{phase!r} is not a phase; use {', '.join(PHASES)}")
    return Refusal(phase, reply_line(reply), times)


class Maildir:
    """A Maildir that is written by this process; made if it is not there."""

    def __init__(self, path: str, *, unix_lines: bool = False) -> None:
        """Make the directories. Raises OSError."""
        self.path = os.path.abspath(path)
        self._unix_lines = unix_lines
        durable.make_directories(os.path.dirname(self.path), 0o777)
        for name in ("", "tmp", "new", "cur", "envelopes"):
            durable.make_directory(os.path.join(self.path, name))

    def keep(self, content: bytes, **facts: Any) -> KeptMail:  # noqa: ANN401 - fields of KeptMail
        """Write a mail and its envelope; on disk when it returns. Raises OSError."""
        name = layout.make_id(HOST_NAME, os.getpid(), time.time_ns(), os.urandom(8))
        kept = content.replace(b"\r\n", b"\n") if self._unix_lines else content
        scratch = os.path.join(self.path, "tmp", name)
        path = os.path.join(self.path, "new", name)
        mail = KeptMail(name=name, path=path, size=len(content), received=time.time(), **facts)
        durable.create_whole(scratch, kept)
        envelope = json.dumps(as_document(mail), indent=2).encode()
        durable.create_whole(f"{self.path}/envelopes/{name}.json", envelope + b"\n")
        durable.sync_directory(f"{self.path}/envelopes")
        durable.rename(scratch, path)
        durable.sync_directory(f"{self.path}/new")
        return mail


def as_document(mail: KeptMail) -> dict[str, object]:
    """Return a mail's facts for JSON."""
    return {
        "name": mail.name,
        "path": mail.path,
        "sender": mail.sender,
        "recipients": list(mail.recipients),
        "mail_options": list(mail.mail_options),
        "helo": mail.helo,
        "size": mail.size,
        "received": mail.received,
    }


class Sink:
    """The server: `await serve(...)` runs it until SIGINT, SIGTERM or `stop()`."""

    def __init__(
        self,
        maildir: Maildir,
        rules: Rules,
        *,
        size_limit: int = SIZE_LIMIT_OCTETS,
        on_mail: Callable[[KeptMail], None] | None = None,
        on_refusal: Callable[[str, str], None] | None = None,
    ) -> None:
        """Call `on_mail` with each mail that is kept, `on_refusal` with phase and reply."""
        self._maildir = maildir
        self._rules = rules
        self._size_limit = size_limit
        self._on_mail = on_mail
        self._on_refusal = on_refusal
        self._transactions = 0
        self._sessions = 0
        self._connections: set[_SinkConnection] = set()
        self._stopping = asyncio.Event()
        self.mails = 0

    async def serve(
        self,
        host: str,
        port: int,
        on_listening: Callable[[int], None],
        *,
        until_end_of: int | None = None,
    ) -> None:
        """Serve until stopped; `on_listening` gets the port, which the kernel chooses for 0.

        The end of the descriptor `until_end_of`, a pipe or terminal, stops it, too.
        Raises ValueError for a host that is not a loopback address, OSError for a port in use.
        """
        if not ipaddress.ip_address(host).is_loopback:
            raise ValueError(f"{host} is not a loopback address")
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        if until_end_of is not None:
            loop.add_reader(until_end_of, self._at_end_of, until_end_of)
        server = await loop.create_server(self._connection, host, port)
        try:
            on_listening(server.sockets[0].getsockname()[1])
            await self._stopping.wait()
        finally:
            server.close()
            for connection in tuple(self._connections):
                connection.hang_up()
            await server.wait_closed()

    def stop(self) -> None:
        """End `serve`; open connections are closed."""
        self._stopping.set()

    def _at_end_of(self, descriptor: int) -> None:
        if not os.read(descriptor, 4096):
            asyncio.get_running_loop().remove_reader(descriptor)
            self.stop()

    def _connection(self) -> SMTP:
        return _SinkConnection(
            self,
            self._connections,
            data_size_limit=self._size_limit,
            enable_SMTPUTF8=True,
            hostname=HOST_NAME,
            ident="picoqmail sink",
        )

    # aiosmtpd finds the next five by their names; each returns the reply.

    async def handle_HELO(
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str
    ) -> str:
        """Greet a client that knows no extensions, or refuse it."""
        return self._greeting(session, hostname) or f"250 {HOST_NAME}"

    async def handle_EHLO(
        self,
        _server: SMTP,
        session: Session,
        _envelope: Envelope,
        hostname: str,
        responses: list[str],
    ) -> list[str]:
        """Greet a client with what aiosmtpd offers, or refuse it."""
        refusal = self._greeting(session, hostname)
        return [refusal] if refusal else responses

    async def handle_MAIL(
        self,
        _server: SMTP,
        _session: Session,
        envelope: Envelope,
        address: str,
        options: Iterable[str],
    ) -> str:
        """Begin a transaction, or refuse it."""
        refusal = self._refusal("mail", self._transactions)
        self._transactions += 1
        if refusal:
            return refusal
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 Ok"

    async def handle_RCPT(
        self,
        _server: SMTP,
        _session: Session,
        envelope: Envelope,
        address: str,
        options: Iterable[str],
    ) -> str:
        """Take a recipient, or refuse it."""
        refusal = self._rules.recipients.get(address.lower())
        if refusal:
            self._report("rcpt", refusal)
        else:
            refusal = self._refusal("rcpt", self._transactions - 1)
        if refusal:
            return refusal
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, _server: SMTP, session: Session, envelope: Envelope) -> str:
        """Keep a mail, or refuse it."""
        refusal = self._refusal("content", self._transactions - 1)
        if refusal:
            return refusal
        try:
            mail = self._maildir.keep(
                bytes(envelope.original_content or b""),
                # aiosmtpd has the null sender as it is spelled.
                sender="" if envelope.mail_from in (None, "<>") else envelope.mail_from,
                recipients=tuple(envelope.rcpt_tos),
                mail_options=tuple(envelope.mail_options),
                helo=session.host_name or "",
            )
        except OSError as exc:
            refusal = f"451 4.3.0 the sink cannot write: {exc.strerror}"
            self._report("content", refusal)
            return refusal
        self.mails += 1
        if self._on_mail is not None:
            self._on_mail(mail)
        return f"250 2.0.0 Ok: kept as {mail.name}"

    def _greeting(self, session: Session, hostname: str) -> str | None:
        refusal = self._refusal("ehlo", self._sessions)
        self._sessions += 1
        # Without a name aiosmtpd refuses what comes next.
        session.host_name = None if refusal else hostname
        return refusal

    def data_refusal(self) -> str | None:
        """Return the refusal of the command DATA in the current transaction, or None."""
        return self._refusal("data", self._transactions - 1)

    def _refusal(self, phase: str, count: int) -> str | None:
        reply = self._rules.reply(phase, count)
        if reply:
            self._report(phase, reply)
        return reply

    def _report(self, phase: str, reply: str) -> None:
        if self._on_refusal is not None:
            self._on_refusal(phase, reply)


class _SinkConnection(SMTP):
    """One client's connection; adds the refusal of DATA, and that 421 ends it (RFC 5321 3.8)."""

    def __init__(self, sink: Sink, connections: set[_SinkConnection], **options: Any) -> None:  # noqa: ANN401 - aiosmtpd's own
        super().__init__(sink, **options)
        self._sink = sink
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connections.add(self)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        super().connection_lost(error)

    async def smtp_DATA(self, arg: str) -> None:
        ready = self.envelope is not None and self.envelope.rcpt_tos and not arg
        refusal = self._sink.data_refusal() if ready else None
        if refusal:
            # The transaction is over; many a client sends no RSET before its next MAIL.
            self._set_post_data_state()  # type: ignore[no-untyped-call]
            await self.push(refusal)
        else:
            await super().smtp_DATA(arg)

    async def push(self, status: AnyStr) -> None:
        await super().push(status)
        if status[:3] in ("421", b"421"):
            self.hang_up()

    def hang_up(self) -> None:
        """Close the connection, whatever it is doing."""
        if self.transport is not None:
            self.transport.close()
