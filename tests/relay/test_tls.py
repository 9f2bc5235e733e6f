"""What TLS is demanded of which relay, the layer of TLS, and when a certificate ends."""

from __future__ import annotations

import contextlib
import datetime as dt
import ssl

import pytest
import trustme

from picoqmail.relay.tls import TlsLayer, make_context, not_after
from picoqmail.relay.tls_plan import TlsPlan, TlsPolicy, plan_tls
from picoqmail.smtp.relay_address import parse_relay
from rig import certificates


@pytest.mark.parametrize(
    ("relay", "mode", "login", "plan"),
    [
        ("h", "off", False, TlsPlan(implicit=False, starttls="never", verify="nothing")),
        ("h", "may", False, TlsPlan(implicit=False, starttls="may", verify="nothing")),
        ("h", "may", True, TlsPlan(implicit=False, starttls="must", verify="authority")),
        ("h", "require", False, TlsPlan(implicit=False, starttls="must", verify="authority")),
        ("h", "implicit", False, TlsPlan(implicit=True, starttls="never", verify="authority")),
        ("h", "fingerprint", False, TlsPlan(implicit=False, starttls="must", verify="fingerprint")),
        ("smtps://h", "off", False, TlsPlan(implicit=True, starttls="never", verify="authority")),
        ("smtps://h", "may", False, TlsPlan(implicit=True, starttls="never", verify="authority")),
        (
            "smtps://h",
            "fingerprint",
            False,
            TlsPlan(implicit=True, starttls="never", verify="fingerprint"),
        ),
        (
            "smtp+starttls://h",
            "off",
            False,
            TlsPlan(implicit=False, starttls="must", verify="authority"),
        ),
        (
            "smtp+starttls://h",
            "may",
            True,
            TlsPlan(implicit=False, starttls="must", verify="authority"),
        ),
        ("lmtp://h", "may", False, TlsPlan(implicit=False, starttls="may", verify="nothing")),
        (
            "lmtp+unix:///x",
            "require",
            False,
            TlsPlan(implicit=False, starttls="never", verify="nothing"),
        ),
    ],
)
def test_plan(relay: str, mode: str, login: bool, plan: TlsPlan) -> None:  # noqa: FBT001
    """The scheme of a relay and a login can demand more than the setting, never less."""
    assert plan == plan_tls(parse_relay(relay), TlsPolicy(mode=mode), guards_login=login)


@pytest.mark.parametrize("verify", ["nothing", "authority", "fingerprint"])
def test_context(verify: str) -> None:
    """TLS 1.2 at least, and certificates looked at where they have to be."""
    plan = TlsPlan(implicit=True, starttls="never", verify=verify)  # type: ignore[arg-type]
    context = make_context(TlsPolicy(), plan)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert (verify == "authority") == context.check_hostname
    assert (verify == "authority") == (context.verify_mode == ssl.CERT_REQUIRED)


def test_a_name_in_the_subject_is_none() -> None:
    """RFC 9525 2: a certificate that names the relay in its CN alone is refused."""
    authority = trustme.CA()
    with authority.cert_pem.tempfile() as trusted:
        issued = authority.issue_cert(common_name="relay.example.org")
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued.configure_cert(server_context)
        policy = TlsPolicy(mode="require", ca=trusted)
        plan = TlsPlan(implicit=True, starttls="never", verify="authority")
        layer = TlsLayer(make_context(policy, plan), plan, policy, "relay.example.org")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = server_context.wrap_bio(incoming, outgoing, server_side=True)
        with pytest.raises(ssl.SSLCertVerificationError, match=r"relay\.example\.org"):
            shake_hands(layer, server, incoming, outgoing)


def shake_hands(
    layer: TlsLayer, server: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> None:
    """Carry octets between the two until the layer is done. Raises what it raises."""
    while not layer.handshake():
        incoming.write(layer.ciphertext())
        with contextlib.suppress(ssl.SSLWantReadError):
            server.do_handshake()
        layer.receive(outgoing.read())


def test_client_certificate() -> None:
    """Our own certificate is read with its key; a file that is not there is an OSError."""
    certificate = certificates.default()
    plan = TlsPlan(implicit=True, starttls="never", verify="nothing")
    with open(certificate.chain, "rb") as chain, open(certificate.key, "rb") as key:
        both = chain.read() + key.read()
    path = certificate.directory + "/both.pem"
    with open(path, "wb") as file:
        file.write(both)
    make_context(TlsPolicy(certificate=path), plan)
    with pytest.raises(OSError, match=r"."):
        make_context(TlsPolicy(certificate="/nonexistent"), plan)


@pytest.mark.parametrize("spelling", ["plain", "COLONS"])
def test_layer(spelling: str) -> None:
    """A handshake in memory, then octets both ways, with a fingerprint in either spelling."""
    certificate = certificates.default()
    fingerprint = certificate.fingerprint
    if spelling == "COLONS":
        pairs = zip(fingerprint[::2], fingerprint[1::2], strict=True)
        fingerprint = ":".join(a + b for a, b in pairs).upper()
    policy = TlsPolicy(mode="fingerprint", fingerprints=(fingerprint,))
    plan = TlsPlan(implicit=True, starttls="never", verify="fingerprint")
    layer = TlsLayer(make_context(policy, plan), plan, policy, "localhost")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = certificate.server_context().wrap_bio(incoming, outgoing, server_side=True)
    done = False
    while not (layer.handshake() and done):
        incoming.write(layer.ciphertext())
        try:
            server.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            pass
        layer.receive(outgoing.read())
    incoming.write(layer.ciphertext())
    server.write(b"220 hello\r\n")
    layer.receive(outgoing.read())
    assert layer.read() == b"220 hello\r\n"
    assert layer.write(memoryview(b"EHLO x\r\n"))
    incoming.write(layer.ciphertext())
    assert server.read() == b"EHLO x\r\n"
    assert layer.describe()["verified"] == "fingerprint"


def test_the_end_of_a_certificate() -> None:
    """Read from real ones, of both kinds of date; nothing else is taken for one."""
    for year, month in ((2031, 2), (2077, 12)):
        when = dt.datetime(year, month, 3, 4, 5, 6, tzinfo=dt.UTC)
        made = trustme.CA().issue_cert("relay.example.org", not_after=when)
        der = ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())
        assert int(when.timestamp()) == not_after(der)
        for length in range(len(der) // 2):
            assert not_after(der[:length]) in (None, int(when.timestamp()))
    assert None is not_after(b"")
