"""Relays that do not do what they offer, or refuse the session: the mail goes out, or waits."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from picoqmail.layout import CUR, NEW, RELAY_NOTES, UNDELIVERED
from rig import faults
from rig.hostile import OFFERS, HostileRelay

if TYPE_CHECKING:
    from collections.abc import Callable

    from rig.faults import Fault
    from trial import Trial

    Rig = Callable[[HostileRelay], HostileRelay]

CHUNKING = (*OFFERS, "CHUNKING")


def serving(
    trial: Trial, rig: Rig, steps: dict[str, Any] | None = None, **options: Any
) -> HostileRelay:
    """Start a relay with these faults, and name it in relayip."""
    relay = rig(HostileRelay(steps, **options))
    trial.setting("relayip", relay.address)
    # One connection, so that what a relay does to it happens to all mail.
    trial.setting("concurrencyremote", "1")
    return relay


def taken(relay: HostileRelay) -> list[tuple[str, ...]]:
    """The recipients of each message that the relay took."""
    return [one.recipients for one in relay.messages if (one.reply or "").startswith("2")]


def accepted(trial: Trial, count: int) -> list[str]:
    """Accept so many messages, each with a recipient of its own; return their IDs."""
    return [trial.accepted(recipients=[f"r{number}@d"]) for number in range(count)]


def notes(trial: Trial) -> dict[str, Any]:
    """What is remembered of the one relay."""
    with open(f"{trial.spool}/{RELAY_NOTES}", encoding="utf-8") as file:
        (facts,) = json.load(file)["relays"].values()
    return dict(facts)


def reopen(trial: Trial) -> None:
    """Let the breaker be due at once."""
    os.unlink(f"{trial.spool}/relay-down")


BEHIND_THE_DOT: dict[str, Fault] = {
    "503 to each": faults.refusing_what_follows(),
    "554 to each": faults.refusing_what_follows(b"554 5.5.1 improper pipelining\r\n"),
    "hang-up": faults.answer_then_drop(),
    "reset": faults.answer_then_reset(),
}


@pytest.mark.parametrize("offers", [OFFERS, CHUNKING])
@pytest.mark.parametrize("name", BEHIND_THE_DOT)
def test_nothing_behind_the_final_dot(
    trial: Trial, rig: Rig, name: str, offers: tuple[str, ...]
) -> None:
    """What a relay does to the first command behind a final dot is no message's; it is remembered.

    Each message arrives once, none is charged, and the next run does not try it again.
    """
    relay = serving(trial, rig, {".": BEHIND_THE_DOT[name]}, offers=offers)
    accepted(trial, 6)
    assert 0 == trial.send()
    assert sorted((f"r{number}@d",) for number in range(6)) == sorted(taken(relay))
    assert [] == trial.events("deferred") + trial.events("in_doubt") + trial.events("relay_down")
    assert "pipelining" in notes(trial)
    (learnt,) = trial.events("relay_learnt")
    assert relay.address == learnt["relay"]
    before = relay.connections
    accepted(trial, 3)
    assert 0 == trial.send()
    assert 9 == len(taken(relay))
    # A relay that hangs up after each message needs a connection for each, and no more.
    assert relay.connections - before <= (4 if name in ("hang-up", "reset") else 1)


def test_what_was_learnt_is_forgotten(trial: Trial, rig: Rig) -> None:
    """After a week by itself, and at once if the file is removed."""
    relay = serving(trial, rig, {".": [faults.refusing_what_follows()]})
    accepted(trial, 2)
    assert 0 == trial.send()
    path = f"{trial.spool}/{RELAY_NOTES}"
    with open(path, encoding="utf-8") as file:
        text = file.read()
    learnt = str(notes(trial)["pipelining"]["learnt"])

    def pipelines() -> bool:
        """Whether an envelope came in one breath with the final dot."""
        before = len(relay.reads)
        accepted(trial, 2)
        assert 0 == trial.send()
        return any(b".\r\nMAIL" in piece for piece in relay.reads[before:])

    assert not pipelines()
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace(learnt, str(int(time.time()) - 8 * 86400)))
    assert pipelines()
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    assert not pipelines()
    os.unlink(path)
    assert pipelines()


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", '{"relays": 1}', '{"relays": {"x": 1}}', '{"relays": []}', "\0",
        '{"relays": {"RELAY": {"pipelining": {"value": [], "learnt": {}}}}}',
        '{"relays": {"RELAY": {"address": {"value": "\\ud800", "learnt": 1e999}}}}',
        '{"relays": {"RELAY": {"login": {"value": "PLAIN", "learnt": NaN}}}}',
        '{"relays": {"\\u0000\\ud800": {"login": {"value": "PLAIN", "learnt": NOW}}}}',
        '{"relays": {"\\ud800x": {"chunking": {"value": "", "learnt": NOW}}}}',
        "[" * 100000,
    ],
)  # fmt: skip
def test_notes_that_make_no_sense(trial: Trial, rig: Rig, content: str) -> None:
    """They are no notes, and mail goes out."""
    relay = serving(trial, rig, {".": [faults.refusing_what_follows()]})
    content = content.replace("RELAY", relay.address).replace("NOW", str(int(time.time())))
    with open(f"{trial.spool}/{RELAY_NOTES}", "w", encoding="utf-8") as file:
        file.write(content)
    accepted(trial, 3)
    assert 0 == trial.send()
    assert 3 == len(taken(relay))
    assert [] == trial.events("error")
    assert "pipelining" in notes(trial)


BAD_CHUNKS: dict[str, Fault] = {
    "500": faults.reply("500 5.5.1 Unknown command"),
    "502": faults.reply("502 5.5.1 Not implemented"),
    "503": faults.reply("503 5.5.1 Bad sequence"),
    "hang-up": faults.drop(),
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_chunking_that_does_not_work(trial: Trial, rig: Rig, name: str) -> None:
    """The same messages go by DATA, in this run and in the next."""
    relay = serving(trial, rig, {"BDAT": BAD_CHUNKS[name]}, offers=CHUNKING)
    accepted(trial, 4)
    assert 0 == trial.send()
    assert 4 == len(taken(relay))
    assert 1 == relay.verbs().count("BDAT")
    assert "chunking" in notes(trial)
    assert [] == trial.events("deferred") + trial.events("relay_down")
    # Only where no reply came, the relay may have the message.
    assert (name == "hang-up") == bool(trial.events("in_doubt"))
    assert (name == "hang-up") == bool(
        [event for event in trial.events("delivered") if "maybe_duplicate" in event]
    )
    accepted(trial, 2)
    assert 0 == trial.send()
    assert 1 == relay.verbs().count("BDAT")
    assert 6 == len(taken(relay))


@pytest.mark.parametrize("setting", ["pipelining", "chunking"])
def test_switched_off_by_hand(trial: Trial, rig: Rig, setting: str) -> None:
    """The settings do what the notes do, and more."""
    relay = serving(trial, rig, offers=CHUNKING)
    trial.setting(setting, "off")
    accepted(trial, 3)
    assert 0 == trial.send()
    assert 3 == len(taken(relay))
    verbs = relay.verbs()
    assert (setting == "chunking") == ("BDAT" not in verbs)
    # With pipelining the first envelope is one write, without it each command is one.
    commands_a_read = max(piece.count(b"\r\n") for piece in relay.reads if b"MAIL" in piece)
    assert (setting == "pipelining") == (commands_a_read == 1)


def test_hangs_up_after_each(trial: Trial, rig: Rig) -> None:
    """Message by message; nobody is charged, in doubt, or "in the middle"."""
    relay = serving(trial, rig, {".": faults.answer_then_drop()}, offers=None)
    ids = accepted(trial, 8)
    assert 0 == trial.send()
    assert 8 == len(taken(relay)) == len(set(taken(relay))) == len(ids)
    assert [] == trial.events("deferred") + trial.events("in_doubt") + trial.events("relay_down")
    # The second connection has learnt that there is one message for each.
    assert relay.connections <= 9


SESSION: dict[str, tuple[str, str, str]] = {
    "503 at MAIL": ("MAIL", "503 5.5.1 Authentication required", "user@"),
    "530 at MAIL": ("MAIL", "530 5.7.0 Authentication required", "user@"),
    "535 at MAIL": ("MAIL", "535 5.7.0 log in", "user@"),
    "538 at MAIL": ("MAIL", "538 5.7.11 no", "user@"),
    "550 at MAIL": ("MAIL", "550 5.7.1 Please log in first", "user@"),
    "550 at RCPT": ("RCPT", "550 5.7.1 access denied without login", "user@"),
    "550 at DATA": ("DATA", "550 5.7.1 authentication required", "user@"),
    "TLS": ("MAIL", "530 5.7.0 Must issue a STARTTLS command first", "setting tls"),
    "helo at MAIL": ("MAIL", "550 5.7.1 Access denied - Invalid HELO name", "helohost"),
    "helo at RCPT": (
        "RCPT",
        "504 5.5.2 <localhost>: Helo command rejected: need fully-qualified hostname",
        "helohost",
    ),
    "helo, for now": ("RCPT", "450 4.7.1 <vm>: Helo command rejected: Host not found", "helohost"),
    "host": ("RCPT", "450 4.7.25 Client host rejected: cannot find your hostname", "helohost"),
}


# With CHUNKING there is no DATA.
SESSIONS = [
    (name, offers)
    for name in SESSION
    for offers in (OFFERS, CHUNKING, None)
    if (SESSION[name][0], offers) != ("DATA", CHUNKING)
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "offers"), SESSIONS)
def test_a_reply_about_the_session(
    trial: Trial, rig: Rig, name: str, offers: tuple[str, ...] | None
) -> None:
    """Nothing is charged and nobody is reported to; it is said once, with the setting to see."""
    step, said, setting = SESSION[name]
    relay = serving(trial, rig, {step: faults.reply(said)}, offers=offers)
    trial.setting("bounces", "on")
    ids = accepted(trial, 20)
    assert 75 == trial.send()
    assert sorted(ids) == trial.ids(NEW)
    assert {0} == {trial.sidecar(one)["attempts"] for one in ids}
    assert [] == trial.events("failed") + trial.events("deferred") + trial.events("bounced")
    (down,) = trial.events("relay_down")
    assert "error" == down["level"]
    assert setting in down["reason"]
    # Whoever looks is told what to do.
    assert setting in picoqmail(trial, "explain", ids[0])
    assert setting in picoqmail(trial, "check")
    # The next run makes one connection, and does not cry again.
    before = relay.connections
    age_breaker(trial)
    assert 75 == trial.send()
    assert 1 == relay.connections - before
    assert ["error", "info"] == [event["level"] for event in trial.events("relay_down")]
    # And when the setting is right, all of it goes out.
    healthy = serving(trial, rig)
    reopen(trial)
    assert 0 == trial.send()
    assert 20 == len(taken(healthy))


def picoqmail(trial: Trial, *arguments: str) -> str:
    """Run the administrator's command; return what it says."""
    ran = subprocess.run(
        [f"{trial.installed.bin}/picoqmail", *arguments],
        capture_output=True,
        env=trial.variables(),
        timeout=60,
        check=False,
    )
    return ran.stdout.decode()


def age_breaker(trial: Trial) -> None:
    """Let the time to try the relay again have come."""
    path = f"{trial.spool}/relay-down"
    with open(path, encoding="utf-8") as file:
        down = json.load(file)
    for one in down["routes"].values():
        one["until"] = int(time.time()) - 1
    with open(path, "w", encoding="utf-8") as file:
        json.dump(down, file)
    os.utime(path, (1, 1))


def test_the_next_relay_has_no_such_wish(trial: Trial, rig: Rig) -> None:
    """Where the first relay refuses the session the second one gets the mail, in the same run."""
    first = serving(trial, rig, {"MAIL": faults.reply("503 5.5.1 Authentication required")})
    second = rig(HostileRelay())
    trial.setting("relayip", f"{first.address}\n{second.address}")
    accepted(trial, 10)
    assert 0 == trial.send()
    assert 10 == len(taken(second))
    assert 1 == first.connections


def test_a_policy_is_the_messages(trial: Trial, rig: Rig) -> None:
    """550 5.7.1 for one sender or recipient fails that one, and nothing else."""
    steps = {
        "RCPT <r1@d>": faults.reply("550 5.7.1 Recipient not authorized"),
        "MAIL <bad@d>": faults.reply("550 5.7.1 Sender not authorized"),
    }
    relay = serving(trial, rig, steps)
    accepted(trial, 3)
    trial.accepted(sender="bad@d", recipients=["r9@d"])
    assert 69 == trial.send()
    assert [("r0@d",), ("r2@d",)] == sorted(taken(relay))
    assert 2 == len(trial.ids(UNDELIVERED))


def test_a_login_for_one_recipient(trial: Trial, rig: Rig) -> None:
    """A relay that serves others and wants a login for one: that one waits, and holds up nobody."""
    steps = {
        "RCPT <r0@d>": faults.reply("550 5.7.1 RESOLVER.RST.AuthRequired; authentication required")
    }
    relay = serving(trial, rig, steps)
    first, *_ = accepted(trial, 5)
    assert 75 == trial.send()
    assert 4 == len(taken(relay))
    assert [] == trial.events("failed") + trial.events("relay_down")
    assert [first] == trial.ids(CUR)
    assert 1 == trial.sidecar(first)["attempts"]
    # Alone it is no reason to think that the relay is down.
    trial.edit(first, next_attempt=1)
    trial.cron()
    assert [] == trial.events("failed") + trial.events("relay_down")


def test_a_login_since_the_last_run(trial: Trial, rig: Rig) -> None:
    """A relay that took mail without a login before, and wants one now: mail waits, none fails."""
    wish = faults.reply("550 5.7.1 authentication required")
    relay = serving(trial, rig, {"RCPT": [None, *[wish] * 5]})
    accepted(trial, 1)
    assert 0 == trial.send()
    assert "" == notes(trial)["served"]["value"]
    ids = accepted(trial, 5)
    assert 75 == trial.send()
    assert sorted(ids) == sorted(trial.ids(NEW) + trial.ids(CUR))
    assert [] == trial.events("failed")
    assert 1 == len(taken(relay))


LIMITS = ["550 5.4.5 Daily sending quota exceeded", "554 5.4.5 congestion"]


@pytest.mark.slow
@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize("said", LIMITS)
def test_a_limit_passes(trial: Trial, rig: Rig, step: str, said: str) -> None:
    """x.4.5 is deferred, whatever its code."""
    serving(trial, rig, {step: [faults.reply(said)]})
    (message_id,) = accepted(trial, 1)
    assert 75 == trial.send()
    assert (CUR, 1) == (trial.state(message_id), trial.sidecar(message_id)["attempts"])


def test_greylisted_in_front(trial: Trial, rig: Rig) -> None:
    """Recipients that are put off one by one do not slow down the others."""
    grey = {f"RCPT <r{n}@d>": faults.reply("451 4.7.1 Try again later") for n in range(20)}
    relay = serving(trial, rig, grey)
    accepted(trial, 30)
    assert 75 == trial.send()
    assert 10 == len(taken(relay))
    assert [] == trial.events("pace")
    assert 20 == len(trial.ids(CUR))


def test_limits(trial: Trial, rig: Rig) -> None:
    """RFC 9422: so many messages a connection, recipients and domains a transaction; all arrive."""
    relay = serving(trial, rig, offers=(*OFFERS, "LIMITS MAILMAX=3 RCPTMAX=4 RCPTDOMAINMAX=2 X=9"))
    recipients = [f"r{number}@d{number % 3}" for number in range(10)]
    trial.accepted(recipients=recipients)
    accepted(trial, 4)
    assert 0 == trial.send()
    assert sorted(recipients + [f"r{n}@d" for n in range(4)]) == sorted(sum(taken(relay), ()))
    for one in taken(relay):
        assert len(one) <= 4
        assert len({address.rpartition("@")[2] for address in one}) <= 2
    for number in range(1, relay.connections + 1):
        assert relay.verbs(number).count("MAIL") <= 3


def test_limits_and_a_refusal(trial: Trial, rig: Rig) -> None:
    """A recipient that is refused in the second transaction of a message is that one alone."""
    steps = {"RCPT <r3@d>": faults.reply("550 5.1.1 nobody")}
    relay = serving(trial, rig, steps, offers=(*OFFERS, "LIMITS RCPTMAX=2"))
    message_id = trial.accepted(recipients=[f"r{number}@d" for number in range(5)])
    assert 69 == trial.send()
    states = [one["state"] for one in trial.sidecar(message_id)["recipients"]]
    assert ["delivered"] * 3 + ["failed", "delivered"] == states
    assert [("r0@d", "r1@d"), ("r2@d",), ("r4@d",)] == taken(relay)


AUTH = (*OFFERS, "AUTH CRAM-MD5 LOGIN PLAIN SCRAM-SHA-256")
BROKEN_LOGINS: dict[str, Fault] = {
    "501": faults.reply("501 5.5.4 no"),
    "502": faults.reply("502 5.5.1 no"),
    "504": faults.reply("504 5.5.4 no"),
    "535": faults.reply("535 5.7.8 no"),
    "broken challenge": faults.challenging("%%%%", end="501 5.5.2 Off"),
    "empty challenge": faults.challenging("", end="501 5.5.2 Off"),
    "hang-up": faults.drop(),
}


@pytest.mark.parametrize("name", BROKEN_LOGINS)
def test_a_login_that_does_not_work(trial: Trial, rig: Rig, name: str) -> None:
    """The next one lets us in, within the run; the next run begins with that."""
    fault = BROKEN_LOGINS[name]
    steps = {"AUTH SCRAM-SHA-256": fault, "AUTH CRAM-MD5": faults.reply("535 5.7.8 no")}
    relay = serving(trial, rig, steps, offers=AUTH)
    log_in(trial, relay)
    accepted(trial, 3)
    assert 0 == trial.send()
    assert 3 == len(taken(relay))
    assert "CRAM-MD5 SCRAM-SHA-256" == notes(trial)["login"]["value"]
    assert ["SCRAM-SHA-256", "CRAM-MD5", "PLAIN"] == mechanisms(relay)
    accepted(trial, 1)
    assert 0 == trial.send()
    assert ["PLAIN"] == mechanisms(relay)[3:]
    assert [] == trial.events("relay_down")


def log_in(trial: Trial, relay: HostileRelay) -> None:
    """Give the relay a user, and us the password."""
    trial.setting("relayip", f"smtp://ann@{relay.address}")
    path = f"{trial.root}/control/relaypass"
    with open(
        path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)
    ) as file:
        file.write("secret\n")
    trial.setting("tls", "off")
    trial.setting("cleartextauth", "on")


def mechanisms(relay: HostileRelay) -> list[str]:
    """The mechanisms that were tried, in order."""
    return [line.split()[1].decode() for _, line in relay.commands if line.startswith(b"AUTH ")]


def test_no_storm_of_logins(trial: Trial, rig: Rig) -> None:
    """A wrong password is tried once by each mechanism in a run, however much mail there is."""
    relay = serving(
        trial,
        rig,
        {
            "AUTH PLAIN": faults.reply("535 no"),
            "AUTH LOGIN": faults.reply("535 5.7.8 no"),
            "AUTH CRAM-MD5": faults.reply("535 5.7.8 no"),
            "AUTH SCRAM-SHA-256": faults.reply("535 5.7.8 no"),
        },
        offers=AUTH,
    )
    log_in(trial, relay)
    trial.setting("concurrencyremote", "20")
    # Two names of one relay, and more mail than one process takes.
    trial.setting("smtproutes", f"other:ann@localhost:{relay.port}")
    for number in range(450):
        trial.accepted(recipients=[f"r{number}@d"])
    assert 75 == trial.send()
    assert ["SCRAM-SHA-256", "CRAM-MD5", "PLAIN", "LOGIN"] == mechanisms(relay)
    assert {0} == {trial.sidecar(one)["attempts"] for one in trial.ids(NEW)}
    (down,) = trial.events("relay_down")
    assert ("error", "auth") == (down["level"], down["stage"])


def test_mechanisms_that_are_allowed(trial: Trial, rig: Rig) -> None:
    """Never anything weaker than the setting allows."""
    relay = serving(trial, rig, {"AUTH CRAM-MD5": faults.reply("535 5.7.8 no")}, offers=AUTH)
    log_in(trial, relay)
    trial.setting("authmechanisms", "cram-md5")
    accepted(trial, 1)
    assert 75 == trial.send()
    assert ["CRAM-MD5"] == mechanisms(relay)
    reopen(trial)
    trial.setting("authmechanisms", "login PLAIN")
    assert 0 == trial.send()
    assert ["CRAM-MD5", "PLAIN"] == mechanisms(relay)


CHALLENGES = [
    ("VXNlcm5hbWU6", "UGFzc3dvcmQ6"),
    ("VXNlcg", "UGFzcw"),
    ("Username:", "Password:"),
    ("", ""),
]


@pytest.mark.parametrize("challenges", CHALLENGES)
def test_login_in_any_words(trial: Trial, rig: Rig, challenges: tuple[str, str]) -> None:
    """LOGIN is asked in base64, padded or not, or as it is."""
    relay = serving(
        trial, rig, {"AUTH LOGIN": faults.challenging(*challenges)}, offers=(*OFFERS, "AUTH LOGIN")
    )
    log_in(trial, relay)
    accepted(trial, 1)
    assert 0 == trial.send()
    assert [b"YW5u", b"c2VjcmV0"] == [
        line.strip() for _, line in relay.commands if line.strip() in (b"YW5u", b"c2VjcmV0")
    ]
