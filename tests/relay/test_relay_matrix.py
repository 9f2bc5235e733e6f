"""The features that each relay offers and the client uses: the table in docs/relay-matrix.md.

With PICOQMAIL_WRITE_DOCS=1 this writes the page from the behaviour of the rig's relays. Otherwise
it compares their behaviour with the page.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from installation import CHECKOUT
from picoqmail.home.secret import RelayPassword
from picoqmail.relay.engine import Engine
from picoqmail.relay.lane_options import LaneOptions
from picoqmail.relay.lookup import Endpoint
from picoqmail.relay.tls_plan import TlsPolicy
from picoqmail.smtp.lessons import LONE_DOT, NO_BDAT, Lessons
from picoqmail.smtp.relay_address import parse_relay
from picoqmail.smtp.sasl import Credentials
from rig import faults
from rig.hostile import EVERYTHING, HostileRelay
from rig.recording import RecordingRelay
from rig.tap import Tap
from smtp.scripted import MemoryBody, MemorySource

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from picoqmail.smtp.transaction import Transaction, Verdict

PAGE = os.path.join(CHECKOUT, "docs", "relay-matrix.md")
YES, NOT_OFFERED, NOT_SET_UP = "used", "not offered", "not set up"
NOT_WITH_LMTP, ANOTHER_WAY = "not with LMTP", "in another way"
INTRODUCTION = """\
# Relay compatibility

The tests make this table from what the client did with each relay of the test rig.

- *used*: the relay offers the feature, the client used it, and the mail arrived.
- *not offered*: the client did without the feature, and the mail arrived. With a code, the mail
  requires the feature, and failed for good with that code.
- *not set up*: the tests do not configure this relay for the feature.
- *in another way*: the relay offers the feature and refuses its use. The mail arrived without it.
- *not with LMTP*: the relay offers it, but the client sends data by DATA over LMTP.

`behind the dot` means that the next envelope goes out in one write with the end of the message
before. `strict` is the rig's own receiver, which tolerates no violation of the protocol. `refusing`
is the same with habits that were met in the world: it replies 503 to what follows the final dot, as
Haraka does, and 502 to BDAT, and of the logins for a password only the weakest works.

"""
FEATURES = (
    "plain delivery", "PIPELINING", "behind the dot", "CHUNKING", "SIZE", "8BITMIME", "SMTPUTF8",
    "DSN", "ENHANCEDSTATUSCODES", "STARTTLS", "implicit TLS", "AUTH",
)  # fmt: skip
# What the client writes where it uses an extension; `used` sees to the others.
MARKS = {
    "CHUNKING": b"BDAT ",
    "SIZE": b" SIZE=",
    "8BITMIME": b" BODY=8BITMIME",
    "SMTPUTF8": b" SMTPUTF8\r\n",
    "DSN": b" NOTIFY=SUCCESS",
}
NEEDED = {"8BITMIME": ("8-bit", "5.6.3"), "SMTPUTF8": ("utf8", "5.6.7")}
USER, PASSWORD = "ann", "secret"
RELAYS = (
    "Postfix", "Exim", "OpenSMTPD", "Dovecot (LMTP)", "smtp-sink", "aiosmtpd", "strict", "refusing",
)  # fmt: skip
REFUSING = {
    ".": faults.refusing_what_follows(),
    "BDAT": faults.reply("502 5.5.1 Not implemented"),
    "AUTH CRAM-MD5": faults.reply("535 5.7.8 no"),
    "AUTH PLAIN": faults.reply("504 5.5.4 no"),
}
FIXTURES = {
    "Postfix": "postfix",
    "Exim": "exim",
    "OpenSMTPD": "opensmtpd",
    "Dovecot (LMTP)": "dovecot",
    "smtp-sink": "sink",
}
HAVE_STARTTLS = ("Postfix", "Exim", "aiosmtpd", "strict", "refusing")
HAVE_TLS = ("aiosmtpd", "strict", "refusing")
HAVE_LOGIN = ("Exim", "aiosmtpd", "refusing")


def body(text: str = "plain") -> MemoryBody:
    """A mail that is no duplicate of any other."""
    head = f"From: a@example.org\nDate: Thu, 1 Jan 2026 00:00:00 +0000\nMessage-ID: <{uuid4()}@x>\n"
    return MemoryBody(f"{head}\n{text}\n.\n".encode())


class Source(MemorySource):
    """A source that offers a message again if the engine asks for that."""

    def done(self, transaction: Transaction, verdict: Verdict) -> None:
        """Keep the verdict if it is the last."""
        if verdict.fault is not None and verdict.fault.again:
            self.waiting.appendleft(transaction)
            return
        super().done(transaction, verdict)


def sent(source: MemorySource, *endpoint: Any) -> tuple[Lessons, list[str]]:
    """Serve a source over one connection at a time; return lessons, and the names of events."""
    events: list[str] = []
    lessons: dict[str, Lessons] = {}
    lane = LaneOptions(
        "matrix", (Endpoint(*endpoint),), source, "me.example", concurrency=1, lessons=lessons
    )
    Engine([lane], on_event=lambda name, **_: events.append(name)).serve()
    (learnt,) = lessons.values()
    return learnt, events


def is_behind(piece: bytes) -> bool:
    """Whether an envelope stands behind the end of a message in one write."""
    starts = piece.startswith((b"MAIL FROM", b"RSET"))
    return piece.count(b"MAIL FROM:") > 1 or (b"MAIL FROM:" in piece and not starts)


def in_clear(relay: Any, scheme: str) -> dict[str, str]:
    """What happens without TLS and login; nothing is used that is not offered, and all that is."""
    source = Source()
    source.add("matrix@example.net", "two@example.net", body=body(), dsn={"notify": "SUCCESS"})
    source.add("matrix@example.net", body=body("caf\u00e9"))
    source.add("d\u00e9j\u00e0@example.net", body=body())
    number = {"plain": 0, "8-bit": 1, "utf8": 2}
    with Tap(relay.port) as tap:
        relay_address = parse_relay(f"{scheme}://{tap.address}")
        learnt, _ = sent(source, relay_address, TlsPolicy(mode="off"))
    assert source.outcomes(0) == ["delivered"] * 2
    offered = tap.offers()
    wire = b"".join(tap.said)
    used = {name for name, mark in MARKS.items() if mark in wire}
    if any(b"MAIL FROM" in piece and b"RCPT TO" in piece for piece in tap.said):
        used.add("PIPELINING")
    # Codes that come unannounced are kept too; that is no use of the extension.
    codes = [result.reply and result.reply.enhanced for result in source.verdicts[0].results]
    used |= {"ENHANCEDSTATUSCODES"} & offered if all(codes) else set()
    cells = {"plain delivery": YES, "behind the dot": NOT_OFFERED}
    if any(map(is_behind, tap.said)):
        cells["behind the dot"] = ANOTHER_WAY if learnt.knows(LONE_DOT) else YES
    for name in (*MARKS, "PIPELINING", "ENHANCEDSTATUSCODES"):
        if scheme == "lmtp" and name == "CHUNKING" and name in offered:
            assert name not in used
            cells[name] = NOT_WITH_LMTP
            continue
        assert (name in offered) == (name in used), name
        cells[name] = YES if name in used else NOT_OFFERED
        if name in NEEDED:
            which, code = NEEDED[name]
            (result,) = source.verdicts[number[which]].results
            assert result.outcome == ("delivered" if name in used else "failed")
            if name not in used:
                assert result.text.startswith(code)
                cells[name] += f": {code}"
    if learnt.knows(NO_BDAT):
        cells["CHUNKING"] = ANOTHER_WAY
    return cells


def secured(relay: Any, scheme: str, credentials: Credentials | None = None) -> str:
    """Deliver by TLS that is verified, perhaps with a login."""
    policy = TlsPolicy(mode="require", ca=relay.certificate.trusted)
    source = Source()
    source.add("matrix@example.net", body=body())
    learnt, events = sent(source, parse_relay(f"{scheme}://{relay.address}"), policy, credentials)
    assert source.outcomes(0) == ["delivered"]
    assert "tls" in events
    return ANOTHER_WAY if learnt.bad_logins else YES


@pytest.mark.parametrize("name", RELAYS)
def test_matrix(
    name: str, request: pytest.FixtureRequest, rig: Callable[..., Any], made: dict[str, Any]
) -> None:
    """The relay's column in the docs is what really happens."""

    def started(**options: Any) -> Any:
        if name in FIXTURES:
            return request.getfixturevalue(FIXTURES[name])
        if name == "aiosmtpd":
            return rig(RecordingRelay(**options))
        options.pop("users", None)
        if name == "refusing":
            offers = (*EVERYTHING, "AUTH CRAM-MD5")
            return rig(HostileRelay(REFUSING, offers=offers, **options))
        return rig(HostileRelay(offers=EVERYTHING, **options))

    cells = in_clear(started(), "lmtp" if "LMTP" in name else "smtp")
    cells |= dict.fromkeys(("STARTTLS", "implicit TLS", "AUTH"), NOT_SET_UP)
    if name in HAVE_STARTTLS:
        cells["STARTTLS"] = secured(started(tls="starttls"), "smtp")
    if name in HAVE_TLS:
        cells["implicit TLS"] = secured(started(tls="implicit"), "smtps")
    if name in HAVE_LOGIN:
        who = Credentials(USER, RelayPassword(PASSWORD))
        cells["AUTH"] = secured(started(tls="starttls", users={USER: PASSWORD}), "smtp", who)
    made[name] = cells
    if not os.environ.get("PICOQMAIL_WRITE_DOCS"):
        assert column(name) == cells


def column(name: str) -> dict[str, str]:
    """The column of a relay as it stands in the docs."""
    with open(PAGE, encoding="utf-8") as page:
        rows = [line.strip("| \n").split("|") for line in page if line.startswith("|")]
    table = [[cell.strip() for cell in row] for row in rows]
    place = table[0].index(name)
    return {row[0]: row[place] for row in table[2:]}


@pytest.fixture(scope="module")
def made() -> Any:
    """The columns that were made; written to the page at the end, if that is wanted."""
    columns: dict[str, dict[str, str]] = {}
    yield columns
    if os.environ.get("PICOQMAIL_WRITE_DOCS") and len(columns) == len(RELAYS):
        rows = [["feature", *RELAYS], ["---"] * (len(RELAYS) + 1)]
        rows += [[one, *(columns[name][one] for name in RELAYS)] for one in FEATURES]
        with open(PAGE, "w", encoding="utf-8") as page:
            page.write(INTRODUCTION + "".join("| " + " | ".join(row) + " |\n" for row in rows))
