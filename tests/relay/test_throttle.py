"""How long a relay that says "too fast" is left alone between two messages."""

from __future__ import annotations

from picoqmail.relay.throttle import FIRST_SECONDS, LONGEST_PAUSE_SECONDS, Throttle


def test_nothing_waits_before_the_relay_asks() -> None:
    """Nor does a success change that."""
    throttle = Throttle(is_probe=False)
    throttle.begun(100.0)
    throttle.speed_up()
    assert (False, 0.0, "") == (throttle.is_on, throttle.wait(100.0), throttle.reason)


def test_pauses_double_until_it_is_hopeless() -> None:
    """Each pause is counted from the relay's word; at the end there is none, but that word."""
    throttle = Throttle(is_probe=False)
    pauses = []
    now = 0.0
    while not throttle.reason:
        throttle.slow_down(f"450 4.7.1 slower {now}", now)
        pauses.append(throttle.wait(now))
        now += pauses[-1]
        assert 0.0 == throttle.wait(now)
    assert [FIRST_SECONDS * 2**n for n in range(len(pauses))] == pauses
    assert pauses[-2] <= LONGEST_PAUSE_SECONDS < pauses[-1]
    assert throttle.reason == f"450 4.7.1 slower {now - pauses[-1]}"


def test_successes_lead_back_to_full_speed() -> None:
    """Each halves the pause between the beginnings of two messages."""
    throttle = Throttle(is_probe=False)
    throttle.slow_down("", 0.0)
    throttle.slow_down("", 0.0)
    pauses = []
    while throttle.is_on:
        throttle.speed_up()
        throttle.begun(10.0)
        pauses.append(throttle.wait(10.0))
    assert [FIRST_SECONDS, FIRST_SECONDS / 2, 0.0] == pauses


def test_a_probe_is_told_once() -> None:
    """Who was too fast in the last run asks with one message, not with one for each pause."""
    throttle = Throttle(is_probe=True)
    throttle.slow_down("still", 0.0)
    assert throttle.reason == "still"
    throttle = Throttle(is_probe=True)
    throttle.speed_up()
    throttle.slow_down("again", 0.0)
    assert (True, "") == (throttle.is_on, throttle.reason)
