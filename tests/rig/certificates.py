"""Certificates for the relays: one authority a test session, made by trustme."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import ssl
import tempfile
from typing import TYPE_CHECKING

import trustme
from attrs import field, frozen

if TYPE_CHECKING:
    from typing import Self


@functools.cache
def authority() -> trustme.CA:
    """Return the authority of this session; there is only one, because making keys takes time."""
    return trustme.CA()


@frozen
class Certificate:
    """A server's certificate and key as files, and what a client needs to trust it.

    `chain` and `key` are PEM files of the server, and `trusted` is a PEM file of the authority.
    `fingerprint` is the SHA-256 of the certificate in hexadecimal, for `tlsfingerprint`.
    """

    directory: str
    names: tuple[str, ...]
    chain: str = field(init=False)
    key: str = field(init=False)
    trusted: str = field(init=False)
    fingerprint: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Issue the certificate and write the files."""
        issued = authority().issue_cert(*self.names)
        files = {name: os.path.join(self.directory, name) for name in ("chain", "key", "trusted")}
        for name, path in files.items():
            object.__setattr__(self, name, path + ".pem")
        for blob in issued.cert_chain_pems:
            blob.write_to_path(self.chain, append=True)
        issued.private_key_pem.write_to_path(self.key)
        os.chmod(self.key, 0o600)
        authority().cert_pem.write_to_path(self.trusted)
        der = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
        object.__setattr__(self, "fingerprint", hashlib.sha256(der).hexdigest())

    @classmethod
    def make(cls, *names: str) -> Self:
        """Issue one for these names (default: localhost and 127.0.0.1) in a new directory."""
        directory = tempfile.mkdtemp(prefix="rig-tls-")
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        return cls(directory, names or ("localhost", "127.0.0.1"))

    def server_context(self) -> ssl.SSLContext:
        """Return a context for a server that shows this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return a context for a client that trusts the authority and checks the name."""
        return ssl.create_default_context(cafile=self.trusted)


@functools.cache
def default() -> Certificate:
    """Return the certificate of 127.0.0.1 and localhost, the same for the whole session."""
    return Certificate.make()
