"""The engine against relays that run: delivery, failover, limits of time, TLS, logins."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from picoqmail.home.secret import RelayPassword
from picoqmail.relay.engine import Engine
from picoqmail.relay.lane_options import LaneOptions, LaneSummary
from picoqmail.relay.lookup import Endpoint
from picoqmail.relay.tls_plan import TlsPolicy
from picoqmail.smtp.lessons import SERVED, Lessons
from picoqmail.smtp.relay_address import Relay, parse_relay
from picoqmail.smtp.sasl import Credentials
from rig import certificates, faults
from rig.hostile import EVERYTHING, OFFERS, HostileRelay
from rig.proxy import SlowLine
from rig.recording import RecordingRelay
from rig.sink import Sink
from rig.waiting import wait_until
from smtp.scripted import MemoryBody, MemorySource, encode_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Literal

    from rig.faults import Fault, Line

OFF = TlsPolicy(mode="off")
# Enough for a machine whose processors are busy with other things.
PATIENCE = 60.0


class Served:
    """What an engine did with one lane: its events and its summary."""

    def __init__(self, source: MemorySource, *endpoints: Endpoint, **options: Any) -> None:
        self.source = source
        self.events: list[tuple[str, dict[str, object]]] = []
        options = {"timeout_connect": PATIENCE, "timeout_remote": PATIENCE} | options
        lane = LaneOptions("lane", endpoints, source, "me.example", **options)
        started = time.monotonic()
        (self.lane,) = Engine([lane], on_event=self._note).serve()
        self.seconds = time.monotonic() - started

    def _note(self, name: str, **facts: object) -> None:
        self.events.append((name, facts))

    def outcomes(self) -> list[str]:
        """Return all outcomes, message by message."""
        return [
            outcome
            for key in sorted(self.source.verdicts, key=str)
            for outcome in self.source.outcomes(key)
        ]

    def named(self, name: str) -> list[dict[str, object]]:
        """Return the facts of all events of a name."""
        return [facts for event, facts in self.events if event == name]


def to(relay: HostileRelay | RecordingRelay | Sink | SlowLine, tls: TlsPolicy = OFF) -> Endpoint:
    """Return the endpoint of a relay of the rig."""
    return Endpoint(parse_relay(relay.address), tls)


def mails(count: int, **options: Any) -> MemorySource:
    """Return a source with so many messages."""
    source = MemorySource()
    for number in range(count):
        source.add(f"r{number}@example.net", **options)
    return source


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, and nobody else can take."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def dead(port: int) -> Endpoint:
    """Return the endpoint of a relay that is not there."""
    return Endpoint(Relay("smtp", "127.0.0.1", port), OFF)


def test_aiosmtpd(relay: RecordingRelay) -> None:
    """A relay without PIPELINING that somebody else wrote gets the bytes as they are."""
    served = Served(mails(3, body=MemoryBody(b"Subject: x\n\n.\nline\r\n..\nend")), to(relay))
    assert served.outcomes() == ["delivered"] * 3
    assert [b"Subject: x\n\n.\nline\n..\nend\n"] * 3 == [m.unix for m in relay.messages]


@pytest.mark.parametrize("offers", [(), OFFERS, EVERYTHING, ("CHUNKING",), None])
def test_strict_receiver(rig: Callable[..., Any], offers: tuple[str, ...] | None) -> None:
    """A receiver that forgives nothing has no complaint, whatever it offers."""
    relay = rig(HostileRelay(offers=offers))
    source = mails(6)
    source.add("a@b", "c@d", "a b@example.net", sender="", body=MemoryBody(b"x" * 5000))
    source.add(body=MemoryBody(b"\r\n.\r\n\n.\r\0\n.\rMAIL FROM:<x>\n"), dsn={"notify": "NEVER"})
    source.add(body=MemoryBody((b"." + b"y" * 996 + b"\n") * 1000))
    served = Served(source, to(relay))
    assert [] == relay.complaints
    assert set(served.outcomes()) == {"delivered"}
    assert len(relay.wait_for(9)) == 9


ODD = (
    *(b"\n", b"\r", b"\r\n", b"\r\r\n", b"\n\r", b"\r\0\n", b"\r\n\0", b"\0"),
    *(b"\x0b", b"\x0c", b"\xc2\x85", b"\x85"),
)


@pytest.mark.parametrize("offers", [OFFERS, EVERYTHING])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_nothing_is_smuggled(rig: Callable[..., Any], offers: tuple[str, ...], end: bytes) -> None:
    """Every A.B in a body arrives as one message with its dot, and nothing else arrives."""
    relay = rig(HostileRelay(offers=offers))
    source = MemorySource()
    bodies = [
        b"Subject: x" + end + end + first + b"." + second + b"MAIL FROM:<evil@x>" + end
        for first in ODD
        for second in ODD
    ]
    for body in bodies:
        source.add(body=MemoryBody(body, block=7))
    served = Served(source, to(relay), timeout_remote=30, concurrency=1)
    assert served.outcomes() == ["delivered"] * len(bodies)
    assert [] == relay.complaints
    assert [encode_whole(body, stuffed=False) for body in bodies] == [
        message.content for message in relay.messages
    ]


def test_in_doubt(rig: Callable[..., Any]) -> None:
    """A connection lost behind the dot leaves one message in doubt, and no other."""
    relay = rig(HostileRelay({".": [None, faults.drop()]}))
    served = Served(mails(5), to(relay), concurrency=1)
    assert served.outcomes() == ["delivered", "untried", "untried", "delivered", "delivered"]
    verdicts = served.source.verdicts
    assert [1] == [key for key, verdict in verdicts.items() if verdict.in_doubt]


def test_lmtp(rig: Callable[..., Any]) -> None:
    """LMTP: a reply for each recipient."""
    relay = rig(HostileRelay({". <b@x>": faults.reply("550 5.1.1 gone")}, lmtp=True))
    endpoint = Endpoint(parse_relay(f"lmtp://{relay.address}"), OFF)
    served = Served(MemorySource().add("a@x", "b@x", "c@x"), endpoint)
    assert served.outcomes() == ["delivered", "failed", "delivered"]
    assert [] == relay.complaints


def test_lmtp_over_a_socket_file(rig: Callable[..., Any], tmp_path: object) -> None:
    """LMTP over a UNIX socket, into Postfix's own smtp-sink."""
    sink = rig(Sink(["-L"]))
    path = f"{tmp_path}/lmtp"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with forwarding(listener, sink.port):
            served = Served(mails(2), Endpoint(parse_relay(f"lmtp+unix://{path}"), OFF))
    assert served.outcomes() == ["delivered", "delivered"]
    assert len(sink.wait_for(2)) == 2


def forwarding(listener: socket.socket, port: int) -> Any:
    """Forward one connection from a socket file to a port while the context lasts."""

    def pump(source: socket.socket, target: socket.socket) -> None:
        # A client that has said QUIT does not wait for the reply.
        with contextlib.suppress(ConnectionError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        near, _ = listener.accept()
        with near, socket.create_connection(("127.0.0.1", port)) as far:
            other = threading.Thread(target=pump, args=(far, near))
            other.start()
            pump(near, far)
            other.join()

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(10)

    return context()


def test_failover(rig: Callable[..., Any], closed_port: int) -> None:
    """The next relay serves where the first is not there; nothing is charged."""
    relay = rig(HostileRelay())
    served = Served(mails(2), dead(closed_port), to(relay))
    assert served.outcomes() == ["delivered", "delivered"]
    assert [facts["stage"] for facts in served.named("connection_lost")] == ["connect"]
    assert not served.lane.gave_up


@pytest.mark.parametrize("banner", ["554 5.7.1 not you", "421 4.3.2 busy", "nonsense"])
def test_failover_on_banner(rig: Callable[..., Any], banner: str) -> None:
    """A relay that greets with a refusal is passed over."""
    first = rig(HostileRelay({"banner": faults.reply(banner)}))
    second = rig(HostileRelay())
    served = Served(mails(2), to(first), to(second))
    assert served.outcomes() == ["delivered", "delivered"]
    assert first.connections == 1


def test_every_address_of_a_name(rig: Callable[..., Any]) -> None:
    """A name with several addresses is tried to the last: localhost is ::1 too, or is it not."""
    relay = rig(HostileRelay())
    served = Served(mails(1), Endpoint(Relay("smtp", "localhost", relay.port), OFF))
    assert served.outcomes() == ["delivered"]


def test_unknown_name() -> None:
    """A name that is none is the relay's fault."""
    served = Served(mails(1), Endpoint(Relay("smtp", "no-such-host.invalid", 25), OFF))
    assert served.outcomes() == ["untried"]
    assert served.lane.fault is not None
    assert served.lane.fault.stage == "lookup"
    assert served.lane.gave_up


def test_no_relay_at_all() -> None:
    """A lane without a relay takes nothing, and says why."""
    source = mails(1)
    served = Served(source)
    assert served.lane.gave_up
    assert served.lane.fault is not None
    assert "relayip" in served.lane.fault.text
    assert len(source.waiting) == 1


def test_nothing_to_do_opens_nothing(rig: Callable[..., Any]) -> None:
    """Without a message there is no connection."""
    relay = rig(HostileRelay())
    served = Served(MemorySource(), to(relay))
    assert relay.connections == 0
    assert served.lane == lane_of(served, reached=False)


def lane_of(served: Served, *, reached: bool) -> LaneSummary:
    """Return the summary of a lane that had nothing to tell."""
    return LaneSummary(
        served.lane.name,
        reached=reached,
        gave_up=False,
        fault=None,
        connections=0,
        too_fast=False,
    )


def test_dead_relay_costs_one_connection(closed_port: int) -> None:
    """However many messages wait, one connection finds out, and they all stay as they were."""
    source = mails(50)
    served = Served(source, dead(closed_port))
    assert served.lane.connections == 1
    assert served.outcomes() == ["untried"]
    assert len(source.waiting) == 49
    assert served.lane.gave_up


def test_few_connections_for_a_fast_relay(rig: Callable[..., Any]) -> None:
    """Five messages for a relay next door do not need twenty connections."""
    relay = rig(HostileRelay())
    served = Served(mails(5), to(relay))
    assert served.outcomes() == ["delivered"] * 5
    assert relay.connections == 1


@pytest.mark.slow
def test_421_after_some(rig: Callable[..., Any]) -> None:
    """A relay that serves three a connection is called again, until all are through."""
    thrice: list[Fault | None] = [None, None, None, faults.final("421 4.7.0 enough")]
    relay = rig(HostileRelay({"MAIL": thrice * 2}))
    source = mails(10)
    served = Served(source, to(relay), concurrency=1)
    assert not served.lane.gave_up
    assert len(relay.messages) == served.outcomes().count("delivered") == 8
    assert served.outcomes().count("untried") == 2
    assert served.lane.too_fast


ANYWHERE = ("banner", "EHLO", "MAIL", "RCPT", "DATA", ".")
BREAKING: dict[str, Callable[[], Fault]] = {
    "drop": faults.drop,
    "reset": faults.reset,
    "stall": faults.stall,
    "flood": faults.flood,
    "endless": faults.endless,
    "half": lambda: faults.closing(b"250 2."),
    "garbage": lambda: faults.reply("lorem ipsum"),
    "bare": lambda: faults.raw(b"250 ok\n"),
    "mixed": lambda: faults.raw(b"250-ok\r\n550 no\r\n"),
    "421": lambda: faults.final("421 4.3.2 going down"),
    "530": lambda: faults.reply("530 5.7.0 log in first"),
    "slow": lambda: faults.drip(0.3),
    "reset after": faults.answer_then_reset,
}


@pytest.mark.parametrize("name", BREAKING)
@pytest.mark.parametrize("step", ANYWHERE)
def test_hostile(rig: Callable[..., Any], step: str, name: str) -> None:
    """At every step, whatever the relay does: nobody is charged, and the engine ends."""
    if (step, name) == (".", "reset after"):
        return  # the reply was given: that is a delivery, and test_reset_after_the_reply's
    relay = rig(HostileRelay({step: BREAKING[name]()}))
    source = mails(10)
    served = Served(source, to(relay), timeout_remote=0.4, timeout_connect=0.4)
    assert set(served.outcomes()) <= {"untried"}
    assert served.lane.gave_up
    assert served.lane.fault is not None
    assert [] == relay.complaints
    in_doubt = {key for key, verdict in source.verdicts.items() if verdict.in_doubt}
    assert len(in_doubt) <= served.lane.connections
    # A reset that comes behind the 354 may overtake the dot, or not.
    if step != "." and (step, name) != ("DATA", "reset after"):
        assert in_doubt == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", BREAKING)
def test_hostile_relay_is_passed_over(rig: Callable[..., Any], name: str) -> None:
    """A relay that breaks at MAIL costs one message its turn; the others reach the next relay."""
    first = rig(HostileRelay({"MAIL": BREAKING[name]()}))
    second = rig(HostileRelay())
    # As short as a busy machine allows, and only where nothing else ends it.
    seconds = 2.0 if name in ("stall", "slow") else PATIENCE
    served = Served(mails(4), to(first), to(second), concurrency=1, timeout_remote=seconds)
    assert sorted(served.outcomes()) == ["delivered"] * 3 + ["untried"]
    assert first.connections == 1
    assert len(second.messages) == 3


def test_reset_after_the_reply(rig: Callable[..., Any]) -> None:
    """A 250 that was read counts, whatever comes behind it."""
    relay = rig(HostileRelay({".": [faults.answer_then_drop()]}))
    served = Served(mails(1), to(relay))
    assert served.outcomes() == ["delivered"]


def test_poison(rig: Callable[..., Any]) -> None:
    """A message that kills the connection does not stop those behind it."""
    relay = rig(HostileRelay({"RCPT <r0@example.net>": faults.drop()}))
    served = Served(mails(4), to(relay), concurrency=1)
    assert served.outcomes() == ["untried", "delivered", "delivered", "delivered"]


def test_refused_extra_links(rig: Callable[..., Any]) -> None:
    """A relay that wants one connection at a time is served with one."""
    relay = rig(
        HostileRelay(
            {
                "banner": faults.after(1, faults.final("421 4.7.0 too many connections")),
                "MAIL": faults.delayed(0.01),
            }
        )
    )
    served = Served(mails(20), to(relay))
    assert served.outcomes() == ["delivered"] * 20
    assert not served.lane.gave_up
    assert served.lane.too_fast


def test_connections_refused_before_the_first_is_greeted(rig: Callable[..., Any]) -> None:
    """They say nothing yet of a relay that is about to serve the first."""

    def greet_late(line: faults.Line, ordinary: bytes) -> bool:
        wait_until(lambda: relay.connections > 1, "the engine has opened another connection")
        line.send(ordinary)
        return True

    banners = [greet_late, *[faults.final("421 4.7.0 too many connections")] * 40]
    relay = rig(HostileRelay({"banner": banners}))
    served = Served(mails(20), to(relay))
    assert served.outcomes() == ["delivered"] * 20
    assert relay.connections > 1
    assert not served.lane.gave_up


def test_round_trips(rig: Callable[..., Any]) -> None:
    """With PIPELINING one message costs one round trip: 20 of them over one connection."""
    relay = rig(HostileRelay())
    line = rig(SlowLine(relay.port))
    served = Served(mails(20), to(line), concurrency=1)
    assert served.outcomes() == ["delivered"] * 20
    # EHLO, the first envelope, 20 for the messages; QUIT, if the line was still there for it. In
    # lock step it would be over 80.
    assert line.trips in ([22], [23])


def test_far_relay(rig: Callable[..., Any]) -> None:
    """200 mails of 4 KB to a relay 50 ms away, over 20 connections at most."""
    sink = rig(Sink(keep=False))
    line = rig(SlowLine(sink.port))
    source = mails(200, body=MemoryBody(b"x" * 63 + b"\n" * 64))
    served = Served(source, to(line))
    assert served.outcomes() == ["delivered"] * 200
    assert line.connections <= 20
    # How fast is the benchmarks' business; here: not one connection's round trip after the other.
    assert max(line.trips) < 200 / 2


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("mode", ["require", "fingerprint", "may"])
def test_tls(rig: Callable[..., Any], tls: Literal["starttls", "implicit"], mode: str) -> None:
    """TLS by STARTTLS or from the first byte, with the certificate held to what is demanded."""
    relay = rig(HostileRelay(tls=tls))
    certificate = relay.certificate
    policy = TlsPolicy(
        mode=mode,
        ca=certificate.trusted,
        fingerprints=(certificate.fingerprint.upper(),),
    )
    scheme = "smtps" if tls == "implicit" else "smtp"
    served = Served(mails(5), Endpoint(parse_relay(f"{scheme}://{relay.address}"), policy))
    assert served.outcomes() == ["delivered"] * 5
    assert all(message.tls for message in relay.messages)
    assert [] == relay.complaints
    assert served.named("tls")[0]["version"] in ("TLSv1.2", "TLSv1.3")


def test_tls_big_message(rig: Callable[..., Any]) -> None:
    """Big data through TLS arrive whole."""
    relay = rig(HostileRelay(tls="starttls"))
    data = b"".join(b"%080d\n" % number for number in range(40000))
    policy = TlsPolicy(mode="require", ca=relay.certificate.trusted)
    served = Served(mails(1, body=MemoryBody(data)), to(relay, policy), timeout_remote=20)
    assert served.outcomes() == ["delivered"]
    assert data == relay.messages[0].unix


BAD_TLS = {
    "unknown authority": TlsPolicy(mode="require"),
    "other fingerprint": TlsPolicy(mode="fingerprint", fingerprints=("ab" * 32,)),
    "no fingerprint": TlsPolicy(mode="fingerprint"),
    "no such file": TlsPolicy(mode="require", ca="/nonexistent/ca.pem"),
    "no such certificate": TlsPolicy(mode="may", certificate="/nonexistent/cert.pem"),
}


@pytest.mark.parametrize("name", [name for name in BAD_TLS if name != "no such certificate"])
def test_untrusted(rig: Callable[..., Any], name: str) -> None:
    """A certificate that is not what was demanded: the relay's fault, and nothing in clear."""
    relay = rig(HostileRelay(tls="starttls"))
    served = Served(mails(1), to(relay, BAD_TLS[name]))
    assert served.outcomes() == ["untried"]
    assert served.lane.fault is not None
    assert served.lane.fault.stage == "tls"
    # Words for a person: no Python in them, and the relay named once.
    assert ": (" not in served.lane.fault.text
    assert served.lane.fault.text.count(relay.address) <= 1
    assert "MAIL" not in relay.verbs()


def test_wrong_name(rig: Callable[..., Any]) -> None:
    """A certificate for another host is no certificate for this one."""
    certificate = certificates.Certificate.make("other.example")
    relay = rig(HostileRelay(tls="starttls", certificate=certificate))
    served = Served(mails(1), to(relay, TlsPolicy(mode="require", ca=certificate.trusted)))
    assert served.outcomes() == ["untried"]
    assert served.lane.fault is not None
    assert "127.0.0.1" in served.lane.fault.text


def test_tls_that_may_be_and_is_not(rig: Callable[..., Any]) -> None:
    """With tls = may a handshake that fails is followed by an attempt in clear."""
    relay = rig(HostileRelay({"STARTTLS": faults.answer_then_drop()}, tls="starttls"))
    served = Served(mails(2), to(relay, TlsPolicy(mode="may")))
    assert served.outcomes() == ["delivered", "delivered"]
    assert not any(message.tls for message in relay.messages)
    assert relay.connections == 2


def test_tls_that_failed_at_one_relay_is_tried_at_the_next(rig: Callable[..., Any]) -> None:
    """Also if it failed only after another connection had sent us to the next relay."""
    in_starttls, gone = threading.Event(), threading.Event()

    def first_mail(line: Line, _ordinary: bytes) -> bool:
        assert in_starttls.wait(PATIENCE)
        line.send(b"no reply\r\n")
        line.await_end()
        gone.set()
        return False

    def second_starttls(line: Line, ordinary: bytes) -> bool:
        in_starttls.set()
        assert gone.wait(PATIENCE)
        line.send(ordinary)
        return False

    broken = HostileRelay({"MAIL": first_mail, "STARTTLS": [None, second_starttls]}, tls="starttls")
    may = TlsPolicy(mode="may")
    relays = [rig(broken), rig(HostileRelay(tls="starttls"))]
    served = Served(mails(20), *[to(relay, may) for relay in relays], concurrency=2)
    assert ["delivered"] * 19 + ["untried"] == sorted(served.outcomes())
    assert 19 == len(relays[1].messages)
    assert all(message.tls for message in relays[1].messages)


HANDSHAKES: dict[str, Fault] = {
    "drop": faults.answer_then_drop(),
    "reset": faults.answer_then_reset(),
    "stall": faults.stall(),
    "garbage": faults.raw(b"220 go\r\n" + b"no hello of any server" * 100),
    "injection": faults.raw(b"220 go\r\n250 injected\r\n"),
    "refusal": faults.reply("454 4.7.0 TLS not available"),
    "busy": faults.final("421 4.3.2 later"),
}


@pytest.mark.parametrize("name", HANDSHAKES)
def test_hostile_handshake(rig: Callable[..., Any], name: str) -> None:
    """Whatever happens instead of a handshake: it ends, nobody is charged, nothing in clear."""
    relay = rig(HostileRelay({"STARTTLS": HANDSHAKES[name]}, tls="starttls"))
    policy = TlsPolicy(mode="require", ca=relay.certificate.trusted)
    # As short as a busy machine allows, and only where nothing else ends it.
    seconds = 2.0 if name == "stall" else PATIENCE
    served = Served(mails(2), to(relay, policy), timeout_connect=seconds, timeout_remote=seconds)
    assert set(served.outcomes()) == {"untried"}
    assert served.lane.gave_up
    assert served.lane.fault is not None
    assert served.lane.fault.stage == "tls"
    assert "MAIL" not in relay.verbs()


def test_in_clear_to_a_port_of_tls(rig: Callable[..., Any]) -> None:
    """Both wait for the other to begin; whoever reads why is told what to write instead."""
    relay = rig(RecordingRelay(tls="implicit"))
    served = Served(mails(1), to(relay), timeout_remote=0.5)
    assert served.outcomes() == ["untried"]
    assert served.lane.fault is not None
    assert "banner" == served.lane.fault.stage
    assert "write smtps://" in served.lane.fault.text


def test_tls_demanded_by_the_scheme(rig: Callable[..., Any]) -> None:
    """A URL that says starttls means it, whatever the setting tls says."""
    relay = rig(HostileRelay())
    served = Served(mails(1), Endpoint(parse_relay(f"smtp+starttls://{relay.address}"), OFF))
    assert served.outcomes() == ["untried"]
    assert "MAIL" not in relay.verbs()


ALICE = Credentials("alice", RelayPassword("hunter2"))


def logged_in(relay: RecordingRelay, secret: str, policy: TlsPolicy) -> Endpoint:
    """Return an endpoint that wants a login."""
    return Endpoint(parse_relay(relay.address), policy, Credentials("alice", RelayPassword(secret)))


@pytest.mark.parametrize("without", [(), ("PLAIN",)])
def test_login(rig: Callable[..., Any], without: tuple[str, ...]) -> None:
    """A login at aiosmtpd, over STARTTLS, by PLAIN and by LOGIN."""
    relay = rig(RecordingRelay(tls="starttls", users={"alice": "hunter2"}, without=without))
    policy = TlsPolicy(mode="require", ca=relay.certificate.trusted)
    served = Served(mails(2), logged_in(relay, "hunter2", policy))
    assert served.outcomes() == ["delivered", "delivered"]


def test_wrong_password(rig: Callable[..., Any]) -> None:
    """A wrong password charges nobody and is shown nowhere."""
    relay = rig(RecordingRelay(tls="starttls", users={"alice": "hunter2"}))
    policy = TlsPolicy(mode="require", ca=relay.certificate.trusted)
    served = Served(mails(2), logged_in(relay, "swordfish", policy))
    assert set(served.outcomes()) == {"untried"}
    assert served.lane.fault is not None
    assert served.lane.fault.stage == "auth"
    assert "swordfish" not in repr((served.lane, served.events, served.source.verdicts))


def waiting_for_login(relay: HostileRelay) -> int:
    """How many connections have said EHLO and not AUTH."""
    said = [(number, line.split()[0].upper()) for number, line in list(relay.commands)]
    greeted, tried = ({n for n, verb in said if verb == wanted} for wanted in (b"EHLO", b"AUTH"))
    return len(greeted - tried)


@pytest.mark.parametrize(
    ("code", "outcome"), [("235 2.7.0 Come in", "delivered"), ("535 5.7.8 Wrong", "untried")]
)
def test_handshakes_go_on_while_the_first_connection_logs_in(
    rig: Callable[..., Any], code: str, outcome: str
) -> None:
    """The others wait just before AUTH; a wrong password is tried once, however many they are."""

    def answer(line: faults.Line, _ordinary: bytes) -> bool:
        wait_until(lambda: waiting_for_login(relay) >= 3, "three more connections have said EHLO")
        line.send(code.encode() + b"\r\n")
        return True

    relay = rig(HostileRelay({"AUTH": [answer]}, offers=(*OFFERS, "AUTH PLAIN")))
    endpoint = Endpoint(parse_relay(relay.address), OFF, ALICE)
    served = Served(mails(40), endpoint, cleartext_auth=True)
    assert {outcome} == set(served.outcomes())
    assert relay.connections >= 4
    if outcome == "untried":
        assert 1 == relay.verbs().count("AUTH")
        assert served.lane.fault is not None
        assert "auth" == served.lane.fault.stage
        assert served.lane.gave_up
    # None of them waited for a time limit.
    assert served.seconds < PATIENCE


def test_a_connection_that_waits_for_a_login_hears_the_relay(rig: Callable[..., Any]) -> None:
    """A relay that has enough of one meanwhile says 421; the others bring the mail."""

    def greet_and_regret(line: faults.Line, ordinary: bytes) -> bool:
        line.send(ordinary + b"421 4.3.2 too many\r\n")
        return False

    def answer(line: faults.Line, ordinary: bytes) -> bool:
        wait_until(lambda: relay.connections >= 3, "two more connections were made")
        line.send(ordinary)
        return True

    steps: dict[str, list[faults.Fault | None]] = {
        "AUTH": [answer],
        "EHLO": [None, greet_and_regret],
    }
    relay = rig(HostileRelay(steps, offers=(*OFFERS, "AUTH PLAIN")))
    endpoint = Endpoint(parse_relay(relay.address), OFF, ALICE)
    served = Served(mails(40), endpoint, cleartext_auth=True)
    assert {"delivered"} == set(served.outcomes())


@pytest.mark.parametrize("is_known", [False, True])
def test_a_relay_that_served_before_is_called_by_several_at_once(is_known: bool) -> None:  # noqa: FBT001 - a table
    """The first connection need not be there; a relay that nobody knows gets one at first."""
    with socket.socket() as listener, contextlib.ExitStack() as filling:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = "{}:{}".format(*listener.getsockname())
        # Once its queue is full no connection is made any more, and none is refused.
        for _ in range(4):
            one = filling.enter_context(socket.socket())
            one.settimeout(0)
            one.connect_ex(listener.getsockname())
        lessons = {address: Lessons([(SERVED, "")] if is_known else [])}
        endpoint = Endpoint(parse_relay(address), OFF)
        served = Served(mails(40), endpoint, lessons=lessons, timeout_connect=0.5)
        assert served.lane.fault is not None
        assert "connect" == served.lane.fault.stage
        assert is_known == (served.lane.connections > 1)
        assert {"untried"} == set(served.outcomes())


def test_password_command(rig: Callable[..., Any]) -> None:
    """A command that prints the password is asked; one that fails is the relay's fault."""
    relay = rig(RecordingRelay(tls="starttls", users={"alice": "hunter2"}))
    policy = TlsPolicy(mode="require", ca=relay.certificate.trusted)
    served = Served(mails(1), logged_in(relay, "!echo hunter2", policy))
    assert served.outcomes() == ["delivered"]
    served = Served(mails(1), logged_in(relay, "!false", policy))
    assert served.outcomes() == ["untried"]
    assert served.lane.fault is not None
    assert served.lane.fault.stage == "auth"


def test_may_is_not_enough_for_a_login(rig: Callable[..., Any]) -> None:
    """With a login, tls = may demands TLS and a good certificate: no password for a stranger."""
    relay = rig(RecordingRelay(tls="starttls", users={"alice": "hunter2"}))
    served = Served(mails(1), logged_in(relay, "hunter2", TlsPolicy(mode="may")))
    assert served.outcomes() == ["untried"]
    assert served.lane.fault is not None
    assert served.lane.fault.stage == "tls"


def test_big_message_in_little_memory(rig: Callable[..., Any]) -> None:
    """Memory does not grow with the message: 100 MB, made as they are sent."""
    sink = rig(Sink(keep=False))

    class Endless(MemoryBody):
        @property
        def size(self) -> int:
            return 100_000_000

        @property
        def newlines(self) -> int:
            return 100_000_000 // 80

        def blocks(self) -> Iterator[bytes]:
            block = (b"z" * 79 + b"\n") * 2500
            for _ in range(500):
                yield block

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    served = Served(mails(1, body=Endless(b"")), to(sink), timeout_remote=60)
    assert served.outcomes() == ["delivered"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_rate_limit(rig: Callable[..., Any]) -> None:
    """A lane that has to wait between messages waits, on one connection."""
    relay = rig(HostileRelay())
    source = mails(4)
    allowed = [0.0]

    def rate_limit() -> float:
        wait = allowed[0] - time.monotonic()
        if wait <= 0:
            allowed[0] = time.monotonic() + 0.1
            return 0.0
        return wait

    served = Served(source, to(relay), rate_limit=rate_limit)
    assert served.outcomes() == ["delivered"] * 4
    assert relay.connections == 1
    assert served.seconds >= 0.3


TOO_FAST = "450 4.7.1 too fast"


@pytest.mark.slow
@pytest.mark.parametrize("step", ["MAIL", "DATA", "."])
def test_a_relay_that_is_hurried_gets_pauses(rig: Callable[..., Any], step: str) -> None:
    """Two messages meet "too fast", and are charged; those behind them wait, and get through."""
    relay = rig(HostileRelay({step: [None, None, *[faults.reply(TOO_FAST)] * 2]}))
    # With several connections the order of the replies would be anybody's guess.
    served = Served(mails(8), to(relay), concurrency=1)
    assert served.outcomes() == ["delivered"] * 2 + ["deferred"] * 2 + ["delivered"] * 4
    # Half a second, a second; then half of it for each success, until there is none.
    assert 1.5 + 0.5 + 0.25 <= served.seconds
    assert served.lane.too_fast
    assert (served.lane.throttled, served.lane.gave_up) == ("", False)


def test_a_relay_that_is_hurried_gets_one_connection(rig: Callable[..., Any]) -> None:
    """Of several connections one is left as soon as the relay says "too fast" on any of them."""
    told = threading.Event()

    def too_fast(line: faults.Line, _ordinary: bytes) -> bool:
        wait_until(lambda: relay.connections > 1, "the engine has opened another connection")
        line.send(TOO_FAST.encode() + b"\r\n")
        told.set()
        return True

    def greet(line: faults.Line, ordinary: bytes) -> bool:
        told.wait(PATIENCE)
        line.send(ordinary)
        return True

    relay = rig(HostileRelay({"MAIL": [too_fast], "banner": [None, *[greet] * 20]}))
    served = Served(mails(8), to(relay))
    assert Counter(served.outcomes()) == {"deferred": 1, "delivered": 7}
    assert served.lane.too_fast
    numbers = [number for number, line in relay.commands if line.startswith(b"MAIL")]
    assert (8, 1) == (len(numbers), len(set(numbers[1:])))


@pytest.mark.parametrize("reply", [TOO_FAST, "454 4.7.0 too fast"])
def test_a_relay_that_stays_hurried_is_left_alone(rig: Callable[..., Any], reply: str) -> None:
    """Where the last run was too fast already, one message asks, and the rest is not even taken."""
    relay = rig(HostileRelay({"RCPT": faults.reply(reply)}))
    source = mails(30)
    served = Served(source, to(relay), probe=True, was_throttled=True)
    assert served.outcomes().count("deferred") == relay.verbs().count("MAIL") <= 2
    assert served.outcomes().count("delivered") == 0
    assert served.lane.throttled == reply


@pytest.mark.parametrize(
    "answer",
    [
        "450 4.7.1 Greylisted, see you later",
        "451 4.7.1 Try again later",
        "450 4.7.1 Service unavailable",
        "452 4.2.2 Mailbox full",
    ],
)
def test_a_greylist_is_no_pace(rig: Callable[..., Any], answer: str) -> None:
    """It is about one message; the others need not wait."""
    relay = rig(HostileRelay({"RCPT": faults.reply(answer)}))
    served = Served(mails(20), to(relay))
    assert served.outcomes() == ["deferred"] * 20
    assert not served.lane.too_fast


def test_a_few_recipients_are_no_pace(rig: Callable[..., Any]) -> None:
    """What a relay says to RCPT is that recipient's, whatever the words."""
    relay = rig(HostileRelay({"RCPT": [None, None, *[faults.reply(TOO_FAST)] * 3]}))
    served = Served(mails(8), to(relay), concurrency=1)
    assert served.outcomes() == ["delivered"] * 2 + ["deferred"] * 3 + ["delivered"] * 3
    assert not served.lane.too_fast


def test_every_recipient_of_several_messages_is_pace(rig: Callable[..., Any]) -> None:
    """If nobody at all gets through, and the words are about our pace, it is about all."""
    source = mails(1)
    for number in range(1, 8):
        source.add(f"r{number}@example.net", f"s{number}@example.net")
    relay = rig(HostileRelay({"RCPT": [None, *[faults.reply(TOO_FAST)] * 10]}))
    served = Served(source, to(relay), concurrency=1)
    assert served.outcomes() == ["delivered"] + ["deferred"] * 10 + ["delivered"] * 4
    assert served.lane.too_fast
    assert 0.5 <= served.seconds


def test_source_that_fails_ends_the_run(rig: Callable[..., Any]) -> None:
    """An error of our own is not taken for one of the relay's."""

    class Broken(MemorySource):
        def done(self, transaction: Any, verdict: Any) -> None:
            super().done(transaction, verdict)
            raise OSError(28, "No space left on device")

    source = Broken()
    source.add().add()
    relay = rig(HostileRelay())
    with pytest.raises(OSError, match="No space left"):
        Served(source, to(relay))


def test_stop(rig: Callable[..., Any]) -> None:
    """An engine that is stopped finishes what is under way and takes nothing more."""
    relay = rig(HostileRelay())
    source = mails(50)
    engine: list[Engine] = []

    class Stopping(MemorySource):
        def done(self, transaction: Any, verdict: Any) -> None:
            super().done(transaction, verdict)
            engine[0].stop()

    stopping = Stopping(source.waiting)
    engine.append(Engine([LaneOptions("x", (to(relay),), stopping, "me.example", concurrency=1)]))
    engine[0].serve()
    outcomes = [stopping.outcomes(key) for key in stopping.verdicts]
    assert all(outcome == ["delivered"] for outcome in outcomes)
    assert 1 <= len(outcomes) <= 3


def test_lanes_do_not_wait_for_each_other(rig: Callable[..., Any], closed_port: int) -> None:
    """A lane whose relay stalls takes nothing from the others but its own time."""
    good, bad = rig(HostileRelay()), rig(HostileRelay({"banner": faults.stall()}))
    sources = [mails(5), mails(5), mails(5)]
    ends = [to(bad), to(good), dead(closed_port)]
    lanes = [
        LaneOptions(str(i), (end,), source, "me.example", timeout_remote=seconds)
        for i, (end, source, seconds) in enumerate(
            zip(ends, sources, (0.5, PATIENCE, PATIENCE), strict=True)
        )
    ]
    summaries = Engine(lanes).serve()
    assert [True, False, True] == [summary.gave_up for summary in summaries]
    assert len(good.messages) == 5


def test_source_address(rig: Callable[..., Any]) -> None:
    """Connections come from the address that sourceip names; one that is not ours is an error."""
    relay = rig(HostileRelay())
    assert Served(mails(1), to(relay), source_ip="127.0.0.1").outcomes() == ["delivered"]
    served = Served(mails(1), to(relay), source_ip="192.0.2.1")
    assert served.outcomes() == ["untried"]
    assert served.lane.fault is not None
    assert served.lane.fault.stage == "connect"


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("step", ["banner", "EHLO", "MAIL", "RCPT", "DATA"])
def test_a_reply_that_nobody_asked_for(
    rig: Callable[..., Any], step: str, *, pipelining: bool
) -> None:
    """All replies behind it would be taken for others': nobody is charged, nothing is sent."""
    offers = OFFERS if pipelining else ("SIZE 50000000",)
    relay = rig(HostileRelay({step: faults.unasked()}, offers=offers))
    run = Served(mails(2), to(relay), concurrency=1)
    assert set(run.outcomes()) == {"untried"}
    assert run.lane.fault is not None
    assert [] == relay.messages
