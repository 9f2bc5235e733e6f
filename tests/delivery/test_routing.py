"""Which way mail goes: smtproutes by recipient, senderroutes by sender, as their manuals say."""

from __future__ import annotations

import pytest

from picoqmail.delivery.routing import Routing, name_of
from picoqmail.home.values import Route
from picoqmail.smtp.relay_address import Relay, parse_relay

DEFAULT = (parse_relay("default.test"), parse_relay("second.test"))


def way(name: str) -> tuple[Relay, ...]:
    """A way of one relay."""
    return (parse_relay(name),)


def routes(**table: str) -> list[Route]:
    """Rules from pattern (underscore for a dot) to relay; an empty relay is relayip."""
    return [
        Route(pattern.replace("_", "."), way(relay) if relay else ())
        for pattern, relay in table.items()
    ]


BY_RECIPIENT = routes(example_net="one.test", _example_net="two.test", _net="three.test", local="")


@pytest.mark.parametrize(
    ("recipient", "expected"),
    [
        ("b@example.net", way("one.test")),
        ("b@EXAMPLE.Net", way("one.test")),
        ("b@x.example.net", way("two.test")),
        ("b@x.y.example.net", way("two.test")),
        ("b@other.net", way("three.test")),
        ("b@net", DEFAULT),
        ("b@local", DEFAULT),
        ("b@example.org", DEFAULT),
        ("a@b@example.net", way("one.test")),
    ],
)
def test_the_recipients_domain_decides(recipient: str, expected: tuple[Relay, ...]) -> None:
    """qmail-remote(8): the host itself, then `.domain` (the longest first), else relayip."""
    routing = Routing.of(DEFAULT, BY_RECIPIENT, [])
    for _ in range(2):  # The second time from memory.
        assert expected == routing.relays_for("s@example.org", recipient)


def test_the_rule_without_a_pattern_takes_the_rest() -> None:
    """qmail-remote(8): an empty domain matches everything."""
    routing = Routing.of(DEFAULT, [Route("", way("all.test"))], [])
    assert way("all.test") == routing.relays_for("s@x", "b@anywhere")


SENDERS = [
    Route("boss@example.org", way("one.test")),
    Route("example.org", way("two.test")),
    Route(".org", way("three.test")),
    Route("<>", way("bounce.test")),
]


@pytest.mark.parametrize(
    ("sender", "expected"),
    [
        ("boss@example.org", way("one.test")),
        ("Boss@Example.Org", way("one.test")),
        ("joe@example.org", way("two.test")),
        ("joe@other.org", way("three.test")),
        ("", way("bounce.test")),
        ("joe@example.com", way("recipient.test")),
    ],
)
def test_a_rule_for_the_sender_goes_first(sender: str, expected: tuple[Relay, ...]) -> None:
    """Address, host, `.domain`, and only then the recipient's rules."""
    routing = Routing.of(DEFAULT, routes(example_net="recipient.test"), SENDERS)
    assert expected == routing.relays_for(sender, "b@example.net")


def test_rules_of_one_kind_are_rules() -> None:
    """Where only senders have rules, the mail of all others goes by relayip."""
    assert Routing.of(DEFAULT, [], []).is_single
    assert not Routing.of(DEFAULT, BY_RECIPIENT, []).is_single
    routing = Routing.of(DEFAULT, [], SENDERS[:1])
    assert not routing.is_single
    assert way("one.test") == routing.relays_for("boss@example.org", "b@example.net")
    assert DEFAULT == routing.relays_for("other@example.org", "b@example.net")


def test_the_first_of_equal_rules_wins() -> None:
    """As in a file that is read from its top."""
    rules = [Route("x.test", way("one.test")), Route("X.TEST", way("two.test"))]
    assert way("one.test") == Routing.of(DEFAULT, rules, []).relays_for("s@x", "b@x.test")


def test_every_way_is_known_once() -> None:
    """The default first; the breaker asks whether all of them are down."""
    routing = Routing.of(DEFAULT, BY_RECIPIENT, routes(x_org="one.test"))
    expected = [DEFAULT, way("one.test"), way("two.test"), way("three.test")]
    assert expected == routing.all()
    assert not routing.is_single
    assert Routing.of(DEFAULT, [], []).is_single


def test_a_way_is_named_by_its_relays() -> None:
    """For the log, the history and the breaker."""
    assert " ".join(map(str, DEFAULT)) == name_of(DEFAULT)
