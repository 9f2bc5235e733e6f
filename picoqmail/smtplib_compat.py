"""`smtplib` for code that uses it: the same names, methods and results, but mail goes to the spool.

    from picoqmail import smtplib_compat as smtplib

The spool's home names the relay; the caller's host, port, login and TLS are accepted and ignored.
Errors are those of smtplib, so that `except smtplib.SMTPException` still works.

`sendmail` and `send_message` put a message into the spool as it is. The single commands (`mail`,
`rcpt`, `data`, `docmd` ...) are smtplib's own; their replies come from the spool.
"""

from __future__ import annotations

import re
import smtplib
import socket
from smtplib import (
    CRLF,
    LMTP_PORT,
    SMTP_PORT,
    SMTP_SSL_PORT,
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPDataError,
    SMTPException,
    SMTPHeloError,
    SMTPNotSupportedError,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPSenderRefused,
    SMTPServerDisconnected,
    quoteaddr,
    quotedata,
)
from typing import TYPE_CHECKING, Any

from picoqmail.errors import (
    ConfigurationError,
    EnvelopeError,
    MessageTooLargeError,
    PicoqmailError,
)
from picoqmail.library.api import Spool
from picoqmail.library.plain_address import plain_address, qualified
from picoqmail.message.addresses import write_one
from picoqmail.message.content import is_email_object
from picoqmail.message.envelope import check_recipients, check_sender
from picoqmail.message.generator import write_object
from picoqmail.message.header_envelope import HeaderEnvelope

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from email.message import Message

    from picoqmail.library.api import HomeLike
    from picoqmail.library.mail import Receipt

__all__ = [
    "CRLF",
    "LMTP",
    "LMTP_PORT",
    "SMTP",
    "SMTP_PORT",
    "SMTP_SSL",
    "SMTP_SSL_PORT",
    "SMTPAuthenticationError",
    "SMTPConnectError",
    "SMTPDataError",
    "SMTPException",
    "SMTPHeloError",
    "SMTPNotSupportedError",
    "SMTPRecipientsRefused",
    "SMTPResponseException",
    "SMTPSenderRefused",
    "SMTPServerDisconnected",
    "quoteaddr",
    "quotedata",
]

Reply = tuple[int, bytes]

_UNSET: Any = object()
_LINE_END = re.compile(r"\r\n|\r|\n")
# A path and what follows it (RFC 5321 section 3.3); blanks behind the colon are a common slip.
_PATH = re.compile(
    rb"(?:FROM|TO):\s*(?:<(?P<path>.*)>|(?P<bare>\S*))(?P<more>(?:\s+\S+)*)\s*", re.IGNORECASE
)


class SMTP(smtplib.SMTP):
    """`smtplib.SMTP` in front of a spool.

    `home` and `send` are those of `picoqmail.Spool`. All arguments of `smtplib.SMTP` are accepted.
    `receipt` is that of the last message, None before the first. Nothing is connected to: a missing
    home is reported with the first message.
    """

    def __init__(  # noqa: PLR0913 - those of smtplib, and two
        self,
        host: str = "",
        port: int = 0,
        local_hostname: str | None = None,
        timeout: float | None = _UNSET,
        source_address: tuple[bytearray | bytes | str, int] | None = None,
        *_ignored: object,
        home: HomeLike | None = None,
        send: bool | None = None,
        **_more: object,
    ) -> None:
        # Not smtplib's own, which looks up the name of this host.
        self.receipt: Receipt | None = None
        self._spool = Spool(home, send=send)
        self._responder: _Responder | None = None
        self._host = host
        self._port = port
        limit: Any = socket.getdefaulttimeout() if timeout is _UNSET else timeout
        self.timeout = limit
        self.esmtp_features = {}
        self.command_encoding = "ascii"
        self.source_address = source_address
        self.local_hostname = local_hostname or socket.gethostname()
        self.sock = None
        self.file = None
        if host:
            self.connect(host, port)

    # --- The line to the spool -----------------------------------------------------------------

    def connect(
        self,
        host: str = "localhost",
        port: int = 0,
        source_address: Any = None,  # noqa: ANN401 - typeshed has three kinds
    ) -> Reply:
        """Begin a conversation with the spool, whatever the host; return its greeting.

        Raises OSError for a port that is no number, ValueError for a time limit of 0, as smtplib.
        """
        if source_address:
            self.source_address = source_address
        name, colon, number = host.rpartition(":")
        is_named = not port and colon and ":" not in name
        if not (number if is_named else str(port)).isdecimal():
            raise OSError("nonnumeric port")
        # None, for no limit, is not 0; typeshed does not know it.
        if self.timeout == 0:
            raise ValueError("Non-blocking socket (timeout=0) is not supported")
        if self.debuglevel > 0:
            self._debug("connect: to", (host, port), self.source_address)
        self.sock = _Line(self.timeout)  # type: ignore[assignment] # nothing is read from it
        self._responder = _Responder(self._sender, self._recipient, self._put)
        reply = self.getreply()
        if self.debuglevel > 0:
            self._debug("connect:", repr(reply[1]))
        return reply

    def send(self, s: Any) -> None:  # noqa: ANN401 - smtplib's own
        """Say something to the spool: text of commands, or the octets of a message."""
        if self.debuglevel > 0:
            self._debug("send:", repr(s))
        if self.sock is None or self._responder is None:
            raise SMTPServerDisconnected("please run connect() first")
        self._responder.hear(s.encode(self.command_encoding) if isinstance(s, str) else bytes(s))

    def getreply(self) -> Reply:
        """Return the next reply. Raises SMTPServerDisconnected if there is none."""
        if self._responder is None or not self._responder.replies:
            self.close()
            raise SMTPServerDisconnected("Connection unexpectedly closed")
        code, text = self._responder.replies.pop(0)
        if self.debuglevel > 0:
            self._debug("reply: retcode (%s); Msg: %a" % (code, text))  # noqa: UP031 - smtplib's words
        if code == 421:
            self.close()
        return code, text

    def close(self) -> None:
        """Forget the conversation; what was accepted stays so."""
        self.sock = None
        self.file = None
        self._responder = None

    def _debug(self, *words: object) -> None:
        # Of typeshed's making a private name of smtplib's is unknown.
        getattr(self, "_print_debug")(*words)  # noqa: B009

    # --- What only a relay needs ---------------------------------------------------------------

    def starttls(self, *_: object, **__: object) -> Reply:
        """Do nothing: the spool is no network, and settings say how to reach the relay."""
        self.helo_resp = self.ehlo_resp = None
        self.esmtp_features = {}
        self.does_esmtp = False
        return (220, b"2.0.0 Ready")

    def login(self, *_: object, **__: object) -> Reply:
        """Do nothing: file permissions decide who may submit, and the password is a setting."""
        return (235, b"2.7.0 Ok")

    def auth(self, *_: object, **__: object) -> Reply:
        """Do nothing, as `login`."""
        return (235, b"2.7.0 Ok")

    # --- Mail ----------------------------------------------------------------------------------

    def sendmail(  # type: ignore[override] # more kinds of octets, and no buffers of other kinds
        self,
        from_addr: str,
        to_addrs: str | Sequence[str],
        msg: str | bytes | bytearray | memoryview,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> dict[str, Reply]:
        """Put a message into the spool, durably, for all recipients whose address can be sent.

        Returns the others, each with code and reason, as `smtplib.SMTP.sendmail` does. Options are
        for a relay, and are ignored. A str must be ASCII and may have any line ends, as in smtplib.
        Raises SMTPRecipientsRefused if no address can be sent, SMTPSenderRefused, SMTPDataError
        (552: too large; 451: the disk or the home failed, and nothing was accepted),
        UnicodeEncodeError.
        """
        del mail_options, rcpt_options
        if isinstance(msg, str):
            msg = _LINE_END.sub("\n", msg).encode("ascii")
        return self._take(from_addr, _several(to_addrs), msg)

    def send_message(
        self,
        msg: Message[Any, Any],
        from_addr: str | None = None,
        to_addrs: str | Sequence[str] | None = None,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> dict[str, Reply]:
        """Put a message object into the spool; its header replaces a missing sender or recipients.

        Bcc is removed. Returns and raises as `sendmail`; also raises ValueError if the header names
        no recipient, or was resent more than once.
        """
        del mail_options, rcpt_options
        if not is_email_object(msg):
            raise TypeError(f"{type(msg).__name__} is no email.message.Message")
        header = HeaderEnvelope.of_object(msg)
        # Back to the text form of RFC 5321, which `_take` reads.
        sender = write_one(header.sender()) if from_addr is None else from_addr
        several = (
            [write_one(one) for one in header.recipients()]
            if to_addrs is None
            else _several(to_addrs)
        )
        international = not all(one.isascii() for one in (sender, *several))
        return self._take(sender, several, write_object(msg, utf8=international))

    def _sender(self, given: str) -> str:
        """The raw sender of an address as smtplib takes it. Raises EnvelopeError."""
        return check_sender(self._address(given))

    def _recipient(self, given: str) -> str:
        """The same of a recipient."""
        return check_recipients([self._address(given)])[0]

    def _address(self, given: str) -> str:
        address = plain_address(given)
        try:
            return qualified(address, self._spool.home)
        except ConfigurationError:
            # Reported when the message is accepted, by the error that smtplib has for it.
            return address

    def _take(
        self, from_addr: str, to_addrs: Sequence[str], octets: bytes | bytearray | memoryview
    ) -> dict[str, Reply]:
        try:
            sender = self._sender(from_addr)
        except EnvelopeError as exc:
            raise SMTPSenderRefused(553, _reason("5.1.7", exc), from_addr) from exc
        good, refused = [], {}
        for one in to_addrs:
            try:
                good.append(self._recipient(one))
            except EnvelopeError as exc:
                refused[one] = (553, _reason("5.1.3", exc))
        if not good:
            raise SMTPRecipientsRefused(refused)
        self._put(sender, good, octets)
        return refused

    def _put(
        self, sender: str, recipients: Sequence[str], octets: bytes | bytearray | memoryview
    ) -> str:
        """Put a message into the spool; return its name. Raises SMTPDataError."""
        try:
            self.receipt = self._spool.enqueue(
                octets, write_one(sender), [write_one(one) for one in recipients]
            )
        except MessageTooLargeError as exc:
            raise SMTPDataError(552, _reason("5.3.4", exc)) from exc
        except ConfigurationError as exc:
            raise SMTPDataError(451, _reason("4.3.5", exc)) from exc
        except PicoqmailError as exc:
            code, status = (554, "5.6.0") if exc.permanent else (451, "4.3.0")
            raise SMTPDataError(code, _reason(status, exc)) from exc
        return self.receipt.id


class SMTP_SSL(SMTP):  # noqa: N801 - the name that callers know
    """The same for code that uses TLS from the first byte; nothing is sent over a network."""

    default_port = SMTP_SSL_PORT


class LMTP(SMTP):
    """The same for code that uses LMTP."""

    ehlo_msg = "lhlo"
    default_port = LMTP_PORT


class _Line:
    """What stands where smtplib has a socket."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        """The caller's time limit; nothing is ever waited for."""
        return self._timeout

    def close(self) -> None:
        """Nothing is open."""


class _Responder:
    """The spool's side of an SMTP session, for callers that say each command themselves.

    Replies wait in `replies`. It has no limits and no suspicion: what it hears comes from this
    process. `sender` and `recipient` check an address, `put` takes a message.
    """

    def __init__(
        self,
        sender: Callable[[str], str],
        recipient: Callable[[str], str],
        put: Callable[[str, Sequence[str], bytes], str],
    ) -> None:
        self.replies: list[Reply] = [(220, b"picoqmail")]
        self._check_sender = sender
        self._check_recipient = recipient
        self._put = put
        self._heard = b""
        self._in_data = False
        self._is_over = False
        self._sender: str | None = None
        self._recipients: list[str] = []

    def hear(self, octets: bytes) -> None:
        """Take what the client sends, in pieces of any size."""
        self._heard += octets
        while not self._is_over:
            if self._in_data:
                # A dot alone on the first line ends an empty message.
                text, end, rest = (b"\r\n" + self._heard).partition(b"\r\n.\r\n")
                if not end:
                    return
                self._heard, self._in_data = rest, False
                self._end_of_data(text.replace(b"\r\n.", b"\r\n")[2:] + b"\r\n" * (len(text) > 2))
            else:
                line, end, rest = self._heard.partition(b"\r\n")
                if not end:
                    return
                self._heard = rest
                self._command(line)

    def _reply(self, code: int, text: bytes) -> None:
        self.replies.append((code, text))

    def _command(self, line: bytes) -> None:
        verb, _, rest = line.partition(b" ")
        verb = verb.upper()
        if verb in (b"EHLO", b"LHLO"):
            self._reset()
            self._reply(250, b"picoqmail\n8BITMIME\nSMTPUTF8\nSIZE 0")
        elif verb == b"MAIL":
            self._mail(rest)
        elif verb == b"RCPT":
            self._rcpt(rest)
        elif verb == b"DATA":
            if self._recipients:
                self._in_data = True
                self._reply(354, b"End data with a dot alone on a line")
            else:
                self._reply(503, b"5.5.1 There is no recipient yet")
        else:
            if verb in (b"HELO", b"RSET"):
                self._reset()
            self._is_over = verb == b"QUIT"
            self._reply(*_REPLIES.get(verb, (500, b"5.5.1 This is no command")))

    def _reset(self) -> None:
        self._sender, self._recipients = None, []

    def _mail(self, rest: bytes) -> None:
        path = _path(rest)
        if self._sender is not None:
            self._reply(503, b"5.5.1 There is a sender already")
        elif path is None:
            self._reply(501, b"5.5.4 This is not MAIL FROM:<address>")
        else:
            try:
                self._sender = self._check_sender(path)
            except EnvelopeError as exc:
                self._reply(553, _reason("5.1.7", exc))
            else:
                self._reply(250, b"2.1.0 Ok")

    def _rcpt(self, rest: bytes) -> None:
        path = _path(rest)
        if self._sender is None:
            self._reply(503, b"5.5.1 There is no sender yet")
        elif path is None:
            self._reply(501, b"5.5.4 This is not RCPT TO:<address>")
        else:
            try:
                self._recipients.append(self._check_recipient(path))
            except EnvelopeError as exc:
                self._reply(553, _reason("5.1.3", exc))
            else:
                self._reply(250, b"2.1.5 Ok")

    def _end_of_data(self, octets: bytes) -> None:
        sender, recipients = self._sender or "", self._recipients
        self._reset()
        try:
            name = self._put(sender, recipients, octets.replace(b"\r\n", b"\n"))
        except SMTPDataError as exc:
            text = exc.smtp_error
            self._reply(exc.smtp_code, text if isinstance(text, bytes) else text.encode())
        else:
            self._reply(250, b"2.0.0 Ok: accepted as " + name.encode())


_REPLIES: dict[bytes, Reply] = {
    b"HELO": (250, b"picoqmail"),
    b"RSET": (250, b"2.0.0 Ok"),
    b"NOOP": (250, b"2.0.0 Ok"),
    b"QUIT": (221, b"2.0.0 Bye"),
    b"VRFY": (252, b"2.5.2 The address is not verified, but mail is accepted"),
    b"EXPN": (502, b"5.5.1 There are no lists here"),
    b"HELP": (214, b"2.0.0 See the manual of picoqmail"),
    b"AUTH": (235, b"2.7.0 Ok"),
    b"STARTTLS": (220, b"2.0.0 Ready"),
}


def _path(rest: bytes) -> str | None:
    """The address of a MAIL or RCPT command; None if it has none."""
    found = _PATH.fullmatch(rest)
    if found is None:
        return None
    path = found["path"] if found["path"] is not None else found["bare"]
    return path.decode("utf-8", "surrogateescape")


def _several(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _reason(status: str, error: Exception) -> bytes:
    return f"{status} {' '.join(str(error).split())}".encode("utf-8", "backslashreplace")
