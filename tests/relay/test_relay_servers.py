"""The engine against the mail servers that people run: Postfix, Exim, OpenSMTPD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

import pytest

from picoqmail.home.secret import RelayPassword
from picoqmail.relay.engine import Engine
from picoqmail.relay.lane_options import LaneOptions
from picoqmail.relay.lookup import Endpoint
from picoqmail.relay.tls_plan import TlsPolicy
from picoqmail.smtp.relay_address import parse_relay
from picoqmail.smtp.sasl import Credentials
from rig.opensmtpd import OpenSMTPD
from rig.waiting import wait_until
from smtp.scripted import MemoryBody, MemorySource

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from picoqmail.relay.lane_options import LaneSummary
    from rig.certificates import Certificate
    from rig.exim import Exim
    from rig.received import Received

    class Server(Protocol):
        """What the servers of the rig have in common."""

        address: str
        certificate: Certificate
        messages: list[Received]


BODY = (
    b"From: a@example.org\nTo: b@example.net\nDate: Thu, 1 Jan 2026 00:00:00 +0000\n"
    b"Message-ID: <%s@example.org>\nSubject: caf\xc3\xa9\n\n"
    b".\n..\n.leading\nline\r\nMAIL FROM:<x>\r\n.\r\nnul\0cr\rend\n"
)
ARRIVES = b".\n..\n.leading\nline\nMAIL FROM:<x>\n.\nnul cr end\n"


def deliver(source: MemorySource, endpoint: Endpoint, **options: Any) -> LaneSummary:
    """Run one lane to its end."""
    (summary,) = Engine([LaneOptions("lane", (endpoint,), source, "me.example", **options)]).serve()
    return summary


@pytest.fixture(params=["postfix", "exim", "opensmtpd"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each of them."""
    running: Server = request.getfixturevalue(request.param)
    return running


@pytest.mark.parametrize(
    "options",
    [{}, {"use_chunking": False}, {"use_pipelining": False}, {"concurrency": 4}],
    ids=str,
)
@pytest.mark.parametrize("mode", ["off", "may", "require"])
def test_delivery(server: Server, mode: str, options: dict[str, Any]) -> None:
    """Twelve mails that are hard on the rules of bytes arrive once each, and as they should."""
    if mode == "require" and not offers_tls(server):
        pytest.skip("this one was set up without TLS")
    run = uuid4().hex
    source = MemorySource()
    for number in range(12):
        body = MemoryBody(BODY % b"%s-%d" % (run.encode(), number))
        source.add(f"{run}.{number}@example.net", body=body)
    policy = TlsPolicy(mode=mode, ca=server.certificate.trusted)
    summary = deliver(source, Endpoint(parse_relay(server.address), policy), **options)
    assert {"delivered"} == {out for key in source.verdicts for out in source.outcomes(key)}
    assert summary.fault is None

    def arrived() -> list[bytes]:
        return [m.unix.partition(b"\n\n")[2] for m in server.messages if run.encode() in m.unix]

    wait_until(lambda: len(arrived()) >= 12, "twelve deliveries", 20)
    assert [ARRIVES] * 12 == arrived()


def offers_tls(server: Server) -> bool:
    """Say whether this one was set up with TLS; OpenSMTPD's own TLS does not run in its root."""
    return not isinstance(server, OpenSMTPD)


def test_big(server: Server) -> None:
    """Ten megabytes of data, and not an octet lost."""
    run = uuid4().hex
    text = b"".join(b"%070d\n" % number for number in range(150_000))
    body = MemoryBody(BODY % run.encode() + text, block=100_000)
    source = MemorySource().add(f"{run}@example.net", body=body)
    deliver(source, Endpoint(parse_relay(server.address), TlsPolicy(mode="off")))
    assert source.outcomes(0) == ["delivered"]
    wait_until(lambda: any(run.encode() in m.unix for m in server.messages), "it arrives", 30)
    (message,) = [m for m in server.messages if run.encode() in m.unix]
    assert message.unix.endswith(ARRIVES + text)


@pytest.mark.parametrize("secret", ["secret", "wrong"])
def test_login_at_exim(exim: Exim, secret: str) -> None:
    """A login over TLS; a wrong one is the relay's fault."""
    policy = TlsPolicy(mode="require", ca=exim.certificate.trusted)
    credentials = Credentials("ann", RelayPassword(secret))
    source = MemorySource().add(
        "login@example.net", body=MemoryBody(BODY % uuid4().bytes.hex().encode())
    )
    summary = deliver(source, Endpoint(parse_relay(exim.address), policy, credentials))
    if secret == "secret":
        assert source.outcomes(0) == ["delivered"]
    else:
        assert source.outcomes(0) == ["untried"]
        assert summary.fault is not None
        assert summary.fault.stage == "auth"


def test_tls_that_is_broken(rig: Callable[..., Any]) -> None:
    """OpenSMTPD offers a TLS that it cannot do: `may` goes on in clear, `require` does not."""
    server = rig(OpenSMTPD(broken_tls=True))
    for mode, outcome in (("may", "delivered"), ("require", "untried")):
        source = MemorySource().add("r@example.net", body=MemoryBody(BODY % mode.encode()))
        policy = TlsPolicy(mode=mode, ca=server.certificate.trusted)
        deliver(source, Endpoint(parse_relay(server.address), policy), timeout_connect=3)
        assert [outcome] == source.outcomes(0)
