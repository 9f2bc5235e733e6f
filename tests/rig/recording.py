"""A relay written by others, aiosmtpd, in a thread of ours; it records what it accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from rig import certificates
from rig.received import Received
from rig.server import LoopServer, MailboxRelay

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from aiosmtpd.smtp import Envelope, Session

START_SECONDS = 60


class RecordingRelay(MailboxRelay, LoopServer):
    """An SMTP server on a free port of 127.0.0.1; a context manager.

    `tls` is `starttls` (offered), `starttls-required` or `implicit`. With `users` (name to
    password) AUTH must precede mail. `answers` maps `MAIL`, `RCPT`, `RCPT <a@b>` or `DATA` (the
    reply to the content) to the replies for its next occurrences, in order. None, and every
    occurrence after the last, is the ordinary reply. Refused messages are not recorded.
    """

    def __init__(
        self,
        *,
        tls: Literal["", "starttls", "starttls-required", "implicit"] = "",
        users: Mapping[str, str] | None = None,
        answers: Mapping[str, Sequence[str | None]] | None = None,
        size_limit: int = 33554432,
        smtputf8: bool = True,
        without: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.certificate = certificates.default()
        self.connections = 0
        self._tls = tls
        self._users = users
        self._answers = {step: list(replies) for step, replies in (answers or {}).items()}
        self._options: dict[str, Any] = {
            "data_size_limit": size_limit,
            "enable_SMTPUTF8": smtputf8,
            "auth_exclude_mechanism": without,
            "hostname": "relay.rig",
            "ident": "rig",
        }

    async def listen(self) -> asyncio.Server:
        """Listen, for TLS at once if that is wanted."""
        context = self.certificate.server_context() if self._tls == "implicit" else None
        return await self._loop.create_server(self._session, self.host, 0, ssl=context)

    def _session(self) -> SMTP:
        self.connections += 1
        options = dict(self._options)
        if self._tls.startswith("starttls"):
            options["tls_context"] = self.certificate.server_context()
            options["require_starttls"] = self._tls.endswith("required")
        if self._users is not None:
            options["authenticator"] = self._authenticate
            options["auth_required"] = True
            options["auth_require_tls"] = bool(self._tls) and self._tls != "implicit"
        handler = _Handler(self, self.connections, implicit_tls=self._tls == "implicit")
        return SMTP(handler, loop=self._loop, **options)

    def _authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, proof: object
    ) -> AuthResult:
        if not isinstance(proof, LoginPassword):
            return AuthResult(success=False, handled=False)
        name = proof.login.decode()
        known = (self._users or {}).get(name) == proof.password.decode()
        return AuthResult(success=known, handled=False, auth_data=name)

    def next_answer(self, *steps: str) -> str | None:
        """Take the reply that the test chose for the first of these steps that has one."""
        for step in steps:
            replies = self._answers.get(step)
            if replies:
                return replies.pop(0)
        return None


class _Handler:
    """The hooks of aiosmtpd for one connection."""

    def __init__(self, relay: RecordingRelay, connection: int, *, implicit_tls: bool) -> None:
        self._relay = relay
        self._implicit_tls = implicit_tls
        self._connection = connection

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's name
        self,
        _server: SMTP,
        _session: Session,
        envelope: Envelope,
        address: str,
        mail_options: list[str],
    ) -> str:
        answer = self._relay.next_answer("MAIL")
        if answer is None:
            envelope.mail_from = address
            envelope.mail_options.extend(mail_options)
        return answer or "250 2.1.0 Sender noted"

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self,
        _server: SMTP,
        _session: Session,
        envelope: Envelope,
        address: str,
        rcpt_options: list[str],
    ) -> str:
        answer = self._relay.next_answer(f"RCPT <{address}>", "RCPT")
        if answer is None:
            envelope.rcpt_tos.append(address)
            envelope.rcpt_options.append(" ".join(rcpt_options))
        return answer or "250 2.1.5 Recipient noted"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        answer = self._relay.next_answer("DATA")
        if answer is None or answer.startswith("2"):
            answer = answer or "250 2.0.0 Kept"
            self._relay.mailbox.put(
                Received(
                    sender=envelope.mail_from or "",
                    recipients=tuple(envelope.rcpt_tos),
                    content=envelope.original_content or b"",
                    mail_parameters=tuple(envelope.mail_options),
                    rcpt_parameters=tuple(tuple(line.split()) for line in envelope.rcpt_options),
                    helo=session.host_name or "",
                    connection=self._connection,
                    user=session.auth_data if session.authenticated else None,
                    tls=self._implicit_tls or session.ssl is not None,
                    reply=answer,
                )
            )
        return answer
