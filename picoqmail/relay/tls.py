"""TLS to a relay: the layer between the socket and the conversation, and its certificates.

The rule of this module: it moves octets between two memory buffers and checks certificates. It owns
no socket, so nothing here can block. It is imported when TLS starts. Many a relay is on this host
and offers no TLS, and it takes longer to load OpenSSL than to send a mail.
"""

from __future__ import annotations

import calendar
import hashlib
import ssl
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from picoqmail.relay.tls_plan import TlsPlan, TlsPolicy

_READ_OCTETS = 65536
_NO_MORE_NOW = (
    ssl.SSLWantReadError,
    ssl.SSLWantWriteError,
    ssl.SSLZeroReturnError,
    ssl.SSLEOFError,  # the relay closed without TLS's own farewell; SMTP has QUIT
)

# ASN.1 types (X.690 8.1.2).
_SEQUENCE = 0x30
_VERSION = 0xA0
_UTC_TIME = 0x17
_GENERALIZED_TIME = 0x18


def make_context(policy: TlsPolicy, plan: TlsPlan) -> ssl.SSLContext:
    """Return the context for a plan: TLS 1.2 at least.

    Raises OSError (ssl.SSLError is one) where a file of the policy cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # RFC 9525 2: a name in the subject is no identity; only the alternative names count.
    context.hostname_checks_common_name = False
    # No relay needs a second handshake in the middle of a session.
    context.options |= ssl.OP_NO_RENEGOTIATION
    if plan.verify == "authority":
        if policy.ca:
            context.load_verify_locations(policy.ca)
        else:
            context.load_default_certs()
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if policy.certificate:
        # For an encrypted key OpenSSL would ask at the terminal, where there is nobody.
        context.load_cert_chain(policy.certificate, password="")
    return context


class TlsLayer:
    """TLS over memory: ciphertext in and out, plaintext in and out."""

    def __init__(
        self, context: ssl.SSLContext, plan: TlsPlan, policy: TlsPolicy, host: str
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._plan = plan
        self._policy = policy
        name = host.rstrip(".") or None  # certificates are issued without the final dot
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._error: ssl.SSLError | None = None
        self.established = False

    def receive(self, ciphertext: bytes) -> None:
        """Take octets from the socket."""
        self._incoming.write(ciphertext)

    def receive_eof(self) -> None:
        """Take the end of what the socket gives."""
        self._incoming.write_eof()

    def handshake(self) -> bool:
        """Go on with the handshake; return whether it is done.

        Raises ssl.SSLError if it fails, or if the certificate is not what the plan demands.
        """
        try:
            self._tls.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        if self._plan.verify == "fingerprint":
            self._check_fingerprint()
        self.established = True
        return True

    def read(self) -> bytes:
        """Return the plaintext that has come; may be empty. Raises ssl.SSLError."""
        if self._error is not None:
            raise self._error
        parts = []
        try:
            while part := self._tls.read(_READ_OCTETS):
                parts.append(part)
        except _NO_MORE_NOW:
            pass
        except ssl.SSLError as exc:
            # A reply that came before TLS broke still counts; the error is raised at the next read.
            self._error = exc
            if not parts:
                raise
        return b"".join(parts)

    def write(self, plaintext: memoryview) -> bool:
        """Take plaintext to send; False if TLS must receive something first.

        Raises ssl.SSLError.
        """
        try:
            self._tls.write(plaintext)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        return True

    def ciphertext(self) -> bytes:
        """Return what must go to the socket now."""
        return self._outgoing.read()

    def describe(self) -> dict[str, str]:
        """Return facts for an event: version, cipher, and how the certificate was verified."""
        cipher = self._tls.cipher()
        facts = {
            "version": self._tls.version() or "",
            "cipher": cipher[0] if cipher else "",
            "verified": self._plan.verify,
        }
        end = not_after(self._tls.getpeercert(binary_form=True) or b"")
        if end is not None:
            facts["certificate_ends"] = str(end)
        return facts

    def _check_fingerprint(self) -> None:
        shown = self._tls.getpeercert(binary_form=True) or b""
        digest = hashlib.sha256(shown).hexdigest()
        wanted = {text.replace(":", "").lower() for text in self._policy.fingerprints}
        if digest not in wanted:
            raise ssl.SSLCertVerificationError(
                f"the relay's certificate has the SHA-256 fingerprint {digest}, "
                f"and tlsfingerprint allows {', '.join(sorted(wanted)) or 'none'}",
            )


def not_after(der: bytes) -> int | None:
    """Return when a certificate ends, in Unix seconds; None if this is none, or has no such date.

    The ssl module gives the dates only of certificates that it has verified, and `tls may` verifies
    none. So skip to the second time of `validity` in the DER (RFC 5280 4.1).
    """
    try:
        certificate = _content(der, 0, _SEQUENCE)
        fields = _content(certificate, 0, _SEQUENCE)
        position = 0
        if fields[0] == _VERSION:
            position = _end(fields, position)
        for _ in range(3):  # serialNumber, signature, issuer
            position = _end(fields, position)
        validity = _content(fields, position, _SEQUENCE)
        position = _end(validity, 0)  # notBefore
        kind = validity[position]
        start, length = _header(validity, position)
        return _seconds(kind, validity[start : start + length].decode("ascii"))
    except (IndexError, ValueError, OverflowError):
        return None


def _header(data: bytes, position: int) -> tuple[int, int]:
    """Return where the content of an element starts, and its length (X.690 8.1.3)."""
    length = data[position + 1]
    if length < 0x80:
        return position + 2, length
    count = length & 0x7F
    start = position + 2 + count
    if not count or start > len(data):
        raise ValueError("a length that DER does not have")
    return start, int.from_bytes(data[position + 2 : start])


def _end(data: bytes, position: int) -> int:
    start, length = _header(data, position)
    return start + length


def _content(data: bytes, position: int, kind: int) -> bytes:
    if data[position] != kind:
        raise ValueError("another kind of element")
    start, length = _header(data, position)
    return data[start : start + length]


def _seconds(kind: int, text: str) -> int:
    if kind == _UTC_TIME:
        # RFC 5280 4.1.2.5.1: two digits of the year, from 1950 to 2049.
        text = ("19" if text[:2] >= "50" else "20") + text
    elif kind != _GENERALIZED_TIME:
        raise ValueError("no time")
    return calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ"))
