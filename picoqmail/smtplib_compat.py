"""`SMTP` for code that uses smtplib: the same methods and results, but mail goes to the spool.

    from picoqmail.smtplib_compat import SMTP

The spool's home names the relay; the caller's host, port, login and TLS are accepted and ignored.
Errors are those of smtplib, so that `except smtplib.SMTPException` still works.
"""

from __future__ import annotations

import re
import smtplib
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
    from collections.abc import Sequence
    from email.message import Message
    from typing import Self

    from picoqmail.library.api import HomeLike
    from picoqmail.library.mail import Receipt

__all__ = ["LMTP", "SMTP", "SMTP_SSL"]

_READY = (250, b"2.0.0 Ok")
_LINE_END = re.compile(r"\r\n|\r|\n")


class SMTP:
    """The interface of `smtplib.SMTP` for a spool.

    `home` and `send` are those of `picoqmail.Spool`. All arguments of `smtplib.SMTP` are accepted.
    `receipt` is that of the last message, None before the first.
    """

    default_port = smtplib.SMTP_PORT

    def __init__(
        self,
        host: str = "",
        port: int = 0,
        *_ignored: object,
        home: HomeLike | None = None,
        send: bool | None = None,
        **_more: object,
    ) -> None:
        """Connect to nothing; a missing home is reported with the first message."""
        self.receipt: Receipt | None = None
        self._spool = Spool(home, send=send)
        self._host = host
        self._port = port
        self.esmtp_features = {"8bitmime": "", "smtputf8": "", "size": "0"}
        self.does_esmtp = True
        self.ehlo_resp: bytes | None = None
        self.helo_resp: bytes | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- Commands that only a relay needs ------------------------------------------------------

    def connect(self, *_: object, **__: object) -> tuple[int, bytes]:
        """Connect to nothing, and return a relay's greeting."""
        return (220, b"picoqmail")

    def ehlo(self, name: str = "") -> tuple[int, bytes]:
        """Return the reply of a relay that has the abilities of the spool."""
        del name
        self.ehlo_resp = b"picoqmail\n8BITMIME\nSMTPUTF8\nSIZE 0"
        return (250, self.ehlo_resp)

    def helo(self, name: str = "") -> tuple[int, bytes]:
        """As `ehlo`."""
        del name
        self.helo_resp = b"picoqmail"
        return (250, self.helo_resp)

    def ehlo_or_helo_if_needed(self) -> None:
        """Do nothing."""

    def has_extn(self, opt: str) -> bool:
        """Say whether the spool supports the ESMTP extension of this name."""
        return opt.lower() in self.esmtp_features

    def starttls(self, *_: object, **__: object) -> tuple[int, bytes]:
        """Do nothing: the spool is no network, and settings say how to reach the relay."""
        return (220, b"2.0.0 Ready")

    def login(self, *_: object, **__: object) -> tuple[int, bytes]:
        """Do nothing: file permissions decide who may submit, and the password is a setting."""
        return (235, b"2.7.0 Ok")

    def noop(self) -> tuple[int, bytes]:
        """Do nothing."""
        return _READY

    def rset(self) -> tuple[int, bytes]:
        """Do nothing: there is no transaction."""
        return _READY

    def set_debuglevel(self, debuglevel: object) -> None:
        """Do nothing: there is no conversation to show."""

    def quit(self) -> tuple[int, bytes]:
        """End; the object may be used again."""
        return (221, b"2.0.0 Bye")

    def close(self) -> None:
        """Do nothing: nothing is open."""

    # --- Mail ----------------------------------------------------------------------------------

    def sendmail(
        self,
        from_addr: str,
        to_addrs: str | Sequence[str],
        msg: str | bytes | bytearray | memoryview,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> dict[str, tuple[int, bytes]]:
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
    ) -> dict[str, tuple[int, bytes]]:
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

    def _address(self, given: str) -> str:
        address = plain_address(given)
        try:
            return qualified(address, self._spool.home)
        except ConfigurationError:
            # Reported when the message is accepted, by the error that smtplib has for it.
            return address

    def _take(
        self, from_addr: str, to_addrs: Sequence[str], octets: bytes | bytearray | memoryview
    ) -> dict[str, tuple[int, bytes]]:
        try:
            sender = check_sender(self._address(from_addr))
        except EnvelopeError as exc:
            raise smtplib.SMTPSenderRefused(553, _reason("5.1.7", exc), from_addr) from exc
        good, refused = [], {}
        for one in to_addrs:
            try:
                good += check_recipients([self._address(one)])
            except EnvelopeError as exc:
                refused[one] = (553, _reason("5.1.3", exc))
        if not good:
            raise smtplib.SMTPRecipientsRefused(refused)
        try:
            self.receipt = self._spool.enqueue(
                octets, write_one(sender), [write_one(one) for one in good]
            )
        except MessageTooLargeError as exc:
            raise smtplib.SMTPDataError(552, _reason("5.3.4", exc)) from exc
        except ConfigurationError as exc:
            raise smtplib.SMTPDataError(451, _reason("4.3.5", exc)) from exc
        except PicoqmailError as exc:
            code, status = (554, "5.6.0") if exc.permanent else (451, "4.3.0")
            raise smtplib.SMTPDataError(code, _reason(status, exc)) from exc
        return refused


class SMTP_SSL(SMTP):  # noqa: N801 - the name that callers know
    """The same for code that uses TLS from the first byte; nothing is sent over a network."""

    default_port = smtplib.SMTP_SSL_PORT


class LMTP(SMTP):
    """The same for code that uses LMTP."""

    default_port = smtplib.LMTP_PORT


def _several(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _reason(status: str, error: Exception) -> bytes:
    return f"{status} {' '.join(str(error).split())}".encode("utf-8", "backslashreplace")
