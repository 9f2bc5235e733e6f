"""TLS to a relay: the layer between socket and conversation.

The rule of this module: it moves octets between two memory buffers and judges certificates; it
owns no socket, so nothing here can block. Imported when TLS starts: many a relay is on this host
and offers none, and OpenSSL takes longer to load than a mail to send.
"""

from __future__ import annotations

import hashlib
import ssl
from typing import TYPE_CHECKING

from picoqmail.relay import certificate

if TYPE_CHECKING:
    from picoqmail.relay.tls_plan import TlsPlan, TlsPolicy

_READ_OCTETS = 65536
_NO_MORE_NOW = (
    ssl.SSLWantReadError,
    ssl.SSLWantWriteError,
    ssl.SSLZeroReturnError,
    ssl.SSLEOFError,  # an end without the farewell of TLS; SMTP has its own
)


def make_context(policy: TlsPolicy, plan: TlsPlan) -> ssl.SSLContext:
    """Return the context for a plan: TLS 1.2 at least.

    Raises OSError (ssl.SSLError is one) where a file of the policy cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A relay that starts a new handshake in mid-session wants nothing that we need.
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
        # An encrypted key would make OpenSSL ask at the terminal; there is nobody to answer.
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

        Raises ssl.SSLError where it fails or the certificate is not what was demanded.
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
        """Return all plaintext that came; may be empty. Raises ssl.SSLError."""
        if self._error is not None:
            raise self._error
        parts = []
        try:
            while part := self._tls.read(_READ_OCTETS):
                parts.append(part)
        except _NO_MORE_NOW:
            pass
        except ssl.SSLError as error:
            # An answer that came before TLS broke is an answer.
            self._error = error
            if not parts:
                raise
        return b"".join(parts)

    def write(self, plaintext: memoryview) -> bool:
        """Take plaintext to send; False if TLS has to hear something first. Raises ssl.SSLError."""
        try:
            self._tls.write(plaintext)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        return True

    def ciphertext(self) -> bytes:
        """Return what has to go to the socket now."""
        return self._outgoing.read()

    def describe(self) -> dict[str, str]:
        """Return facts for an event: protocol, cipher, and what the certificate was held to."""
        cipher = self._tls.cipher()
        facts = {
            "version": self._tls.version() or "",
            "cipher": cipher[0] if cipher else "",
            "verified": self._plan.verify,
        }
        end = certificate.not_after(self._tls.getpeercert(binary_form=True) or b"")
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
