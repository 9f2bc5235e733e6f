"""Reports of failure and delay: who is told, how it reads, once, and through every crash."""

from __future__ import annotations

import email
import email.policy
import glob
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from picoqmail.layout import CUR, NEW, UNDELIVERED
from rig.programs import find
from rig.recording import RecordingRelay

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import EmailMessage

    from rig.received import Received
    from trial import Trial

UNKNOWN = "550 5.1.1 <bad@example.net>: no such user"
REFUSES = {"RCPT <bad@example.net>": [UNKNOWN] * 500}
MAIL = b"Subject: lunch\nMessage-ID: <lunch@example.org>\n\nAt one?\n"


@pytest.fixture
def reports(trial: Trial) -> Trial:
    """A trial whose senders are told."""
    trial.setting("bounces", "on")
    return trial


@pytest.fixture
def refusing(rig: Callable[[RecordingRelay], RecordingRelay], reports: Trial) -> RecordingRelay:
    """A relay that refuses bad@example.net and takes everything else."""
    relay = rig(RecordingRelay(answers=REFUSES))
    reports.setting("relayip", relay.address)
    return relay


def parsed(received: Received) -> EmailMessage:
    """A report as a mail reader sees it, which must find nothing to complain of."""
    message = email.message_from_bytes(received.content, policy=email.policy.default)
    for part in message.walk():
        assert [] == list(part.defects)
    return message


def fields(report: EmailMessage) -> list[EmailMessage]:
    """The blocks of the delivery status: the message's, then one a recipient."""
    (status,) = [p for p in report.walk() if p.get_content_type() == "message/delivery-status"]
    blocks: list[EmailMessage] = list(status.get_payload())  # type: ignore[arg-type]
    return blocks


def test_a_refused_recipient_is_told_to_the_sender(
    reports: Trial, refusing: RecordingRelay
) -> None:
    """One of three refused: two have the mail, and the sender has one report about the third."""
    recipients = ["b@example.net", "bad@example.net", "c@example.net"]
    message_id = reports.accepted("joe@example.org", recipients, MAIL)
    assert 69 == reports.send()
    mail, report = refusing.messages
    assert ("b@example.net", "c@example.net") == mail.recipients
    assert ("<>", ("joe@example.org",)) == (report.sender, report.recipients)
    read = parsed(report)
    assert "multipart/report" == read.get_content_type()
    assert "delivery-status" == read.get_param("report-type")
    assert "auto-replied" == read["Auto-Submitted"]
    assert "<lunch@example.org>" == read["In-Reply-To"]
    text, status, original = read.iter_parts()
    said = text.get_content()
    assert "about 'lunch'" in said
    assert UNKNOWN in " ".join(said.split())
    assert message_id in said
    assert "message/delivery-status" == status.get_content_type()
    general, one = fields(read)
    assert "dns; me.test" == general["Reporting-MTA"]
    assert ("rfc822; bad@example.net", "failed") == (one["Final-Recipient"], one["Action"])
    assert ("5.1.1", f"smtp; {UNKNOWN}") == (one["Status"], one["Diagnostic-Code"])
    assert "message/rfc822" == original.get_content_type()
    (inner,) = original.iter_parts()
    assert ("lunch", "At one?") == (inner["Subject"], inner.get_content().strip())


@pytest.mark.parametrize(
    "missing", ["attrs", "picoqmail.ledger.report_limit", "picoqmail.delivery.report_text"]
)
def test_what_cannot_be_loaded_loses_no_outcome(
    reports: Trial, refusing: RecordingRelay, missing: str
) -> None:
    """As in an upgrade under way: what the relay said is recorded, and cron tells the sender."""
    several = [
        reports.accepted("joe@example.org", ["b@example.net", "bad@example.net"], MAIL),
        reports.accepted("joe@example.org", ["c@example.net"], MAIL),
    ]
    reports.setting("log", f"{reports.root}/events")
    code = (
        f"sys.modules[{missing!r}] = None\n"
        "from picoqmail.cli.send import main\n"
        "sys.exit(main([]))\n"
    )
    ran = reports.python(code)
    assert b"" == ran.stderr
    assert [("b@example.net",), ("c@example.net",)] == [m.recipients for m in refusing.messages]
    assert several[:1] == reports.ids(CUR)
    states = [one["state"] for one in reports.sidecar(several[0])["recipients"]]
    assert ["delivered", "failed"] == states
    with open(f"{reports.root}/events", encoding="utf-8") as file:
        assert "cannot be loaded" in file.read()
    reports.edit(several[0], next_attempt=1)
    reports.cron()
    *_, report = refusing.messages
    assert (3, ("joe@example.org",)) == (len(refusing.messages), report.recipients)
    assert UNDELIVERED == reports.state(several[0])


def test_the_failure_stays_with_a_note_who_told(reports: Trial, refusing: RecordingRelay) -> None:
    """The message lies in undelivered/, and its recipient says which report told of it."""
    message_id = reports.accepted("joe@example.org", ["bad@example.net"])
    assert 69 == reports.send()
    assert UNDELIVERED == reports.state(message_id)
    (recipient,) = reports.sidecar(message_id)["recipients"]
    (event,) = reports.events("bounced")
    assert event["report"] == recipient["told"]
    assert "telling" not in reports.sidecar(message_id)
    assert 1 == len(refusing.messages)
    reports.cron()
    assert 1 == len(refusing.messages)


def test_who_waits_does_not_delay_the_telling(
    reports: Trial, rig: Callable[..., RecordingRelay]
) -> None:
    """One recipient refused, one deferred: told now, and not again when the other goes through."""
    replies = {**REFUSES, "RCPT <later@example.net>": ["451 4.7.1 later"]}
    relay = rig(RecordingRelay(answers=replies))
    reports.setting("relayip", relay.address)
    message_id = reports.accepted("joe@example.org", ["bad@example.net", "later@example.net"])
    assert 75 == reports.send()
    assert [("joe@example.org",)] == [one.recipients for one in relay.messages]
    reports.send(message_id)
    assert [("joe@example.org",), ("later@example.net",)] == [r.recipients for r in relay.messages]
    assert UNDELIVERED == reports.state(message_id)


def test_expired_is_told_as_4_4_7(reports: Trial, rig: Callable[..., RecordingRelay]) -> None:
    """What grew too old is told with the relay's last word."""
    relay = rig(RecordingRelay(answers={"RCPT <b@example.net>": ["451 4.7.1 greylisted"]}))
    reports.setting("relayip", relay.address)
    reports.deferred(expires=1)
    reports.cron()
    (report,) = relay.messages
    _, one = fields(parsed(report))
    assert "4.4.7" == one["Status"]
    assert "smtp; 451 4.7.1 greylisted" == one["Diagnostic-Code"]


@pytest.mark.parametrize("setting", ["off", "on"])
def test_nobody_is_told_of_a_report(reports: Trial, refusing: RecordingRelay, setting: str) -> None:
    """A message without a sender stays in undelivered/, whatever `bounces` says."""
    reports.setting("bounces", setting)
    message_id = reports.accepted("", ["bad@example.net"])
    assert 69 == reports.send()
    assert UNDELIVERED == reports.state(message_id)
    assert [] == refusing.messages


def test_a_lost_report_goes_to_doublebounceto(reports: Trial, refusing: RecordingRelay) -> None:
    """From #@[], which is <> on the wire; and a double bounce that fails is told to nobody."""
    reports.setting("doublebounceto", "postmaster")
    reports.accepted("bad@example.net", ["bad@example.net"])
    assert 69 == reports.send()
    (double,) = refusing.messages
    assert ("<>", ("postmaster@me.test",)) == (double.sender, double.recipients)
    reports.setting("doublebounceto", "bad@example.net")
    reports.accepted("", ["bad@example.net"])
    assert 69 == reports.send()
    assert 1 == len(refusing.messages)
    assert "#@[]" in [reports.sidecar(one)["sender"] for one in reports.ids(UNDELIVERED)]
    assert [] == reports.ids(NEW) + reports.ids(CUR)


def test_verp_is_told_to_the_plain_address(reports: Trial, refusing: RecordingRelay) -> None:
    """list-@host-@[] is told at list-@host."""
    reports.accepted("list-@example.org-@[]", ["bad@example.net"])
    assert 69 == reports.send()
    (report,) = refusing.messages
    assert ("list-@example.org",) == report.recipients


@pytest.mark.parametrize(
    ("notify", "told"), [("NEVER", 0), ("SUCCESS", 0), ("FAILURE,DELAY", 1), ("", 1)]
)
def test_notify_decides(reports: Trial, refusing: RecordingRelay, notify: str, told: int) -> None:
    """RFC 3461 4.1: who asked not to hear of failures does not."""
    message_id = reports.accepted("joe@example.org", ["bad@example.net"])
    dsn = {"notify": notify, "envid": "a+b", "orcpt": "rfc822;x@example.net"}
    reports.edit(message_id, dsn=dsn)
    assert 69 == reports.send()
    assert told == len(refusing.messages)
    if told:
        general, one = fields(parsed(refusing.messages[0]))
        assert "a+2Bb" == general["Original-Envelope-Id"]
        assert "rfc822; x@example.net" == one["Original-Recipient"]


@pytest.mark.parametrize(("limit", "ret"), [("100", "FULL"), ("50000", "HDRS")])
def test_only_the_header_comes_back(
    reports: Trial, refusing: RecordingRelay, limit: str, ret: str
) -> None:
    """Of a message over bouncemaxbytes, or where RET=HDRS was asked."""
    reports.setting("bouncemaxbytes", limit)
    message_id = reports.accepted("joe@example.org", ["bad@example.net"], MAIL)
    reports.edit(message_id, dsn={"ret": ret})
    assert 69 == reports.send()
    *_, header = parsed(refusing.messages[0]).iter_parts()
    assert "text/rfc822-headers" == header.get_content_type()
    assert b"At one?" not in refusing.messages[0].content


def test_a_hostile_reply_forges_nothing(reports: Trial, rig: Callable[..., RecordingRelay]) -> None:
    """Neither a reply nor a message can end a part or add a field."""
    reply = "550 5.1.1 \x1b[2J " + "long " * 100 + "Action: delivered\tbar"
    relay = rig(RecordingRelay(answers={"RCPT <bad@example.net>": [reply]}))
    reports.setting("relayip", relay.address)
    reports.accepted(
        "joe@example.org",
        ["bad@example.net"],
        "Subject: é\n\n--=_\n\n.\n\xe9\n".encode("latin-1"),
    )
    assert 69 == reports.send()
    read = parsed(relay.messages[0])
    assert 3 == len(list(read.iter_parts()))
    _, one = fields(read)
    assert ["failed"] == one.get_all("Action")
    assert b"\x1b" not in relay.messages[0].content


def test_a_warning_of_delay_once(reports: Trial, rig: Callable[..., RecordingRelay]) -> None:
    """After delaywarning a sender is warned when an attempt is deferred again, and only once."""
    relay = rig(RecordingRelay(answers={"RCPT <b@example.net>": ["451 4.7.1 later"] * 9}))
    reports.setting("relayip", relay.address)
    reports.setting("delaywarning", "4h")
    young = reports.deferred()
    reports.send(young)
    assert [] == relay.messages
    message_id = reports.deferred(created=1)
    for _ in range(3):
        reports.send(message_id)
    (warning,) = relay.messages
    read = parsed(warning)
    _, one = fields(read)
    assert ("delayed", "4.7.1") == (one["Action"], one["Status"])
    assert one["Will-Retry-Until"]
    assert CUR == reports.state(message_id)


def test_a_storm_is_told_in_one_digest(reports: Trial, refusing: RecordingRelay) -> None:
    """Two reports an hour, and the three failures beyond them in one mail when it is over."""
    reports.setting("bouncelimit", "2")
    ids = [reports.accepted("joe@example.org", ["bad@example.net"]) for _ in range(5)]
    other = reports.accepted("ann@example.org", ["bad@example.net"])
    assert 69 == reports.send()
    assert 3 == len(refusing.messages)
    assert {UNDELIVERED} == {reports.state(one) for one in (*ids, other)}
    reports.cron()
    assert 3 == len(refusing.messages)
    for path in glob.glob(f"{reports.spool}/reports/*"):
        name, _, begin = path.rpartition("-")
        os.rename(path, f"{name}-{int(begin) - 3600}")
    reports.cron()
    (digest,) = refusing.messages[3:]
    assert ("<>", ("joe@example.org",)) == (digest.sender, digest.recipients)
    kept = [one for one in ids if reports.sidecar(one)["recipients"][0]["told"] == "digest"]
    assert 3 == len(kept)
    text = parsed(digest).get_content()
    assert all(one in text for one in kept)
    assert [] == os.listdir(f"{reports.spool}/reports")
    reports.cron()
    assert 4 == len(refusing.messages)


def an_hour_ago(reports: Trial) -> str:
    """Let the hour of the only file of reports be over; return its path."""
    (path,) = glob.glob(f"{reports.spool}/reports/*")
    name, _, begin = path.rpartition("-")
    older = f"{name}-{int(begin) - 3600}"
    os.rename(path, older)
    return older


def test_what_was_kept_and_not_recorded_is_told_once(
    reports: Trial, refusing: RecordingRelay
) -> None:
    """A failure that is kept for a digest, while its message does not say so, is reported once."""
    reports.setting("bouncelimit", "1")
    ids = [reports.accepted("joe@example.org", ["bad@example.net"]) for _ in range(3)]
    assert 69 == reports.send()
    kept = [one for one in ids if reports.sidecar(one)["recipients"][0]["told"] == "digest"]
    assert 2 == len(kept)
    # As a disk leaves it that failed between the two steps: recorded in cur/, its report to come.
    record = reports.sidecar(kept[0])
    del record["recipients"][0]["told"]
    for suffix in (".eml", ".json"):
        os.rename(f"{reports.spool}/undelivered/{kept[0]}{suffix}",
                  f"{reports.spool}/cur/{kept[0]}{suffix}")  # fmt: skip
    reports.edit(kept[0], recipients=record["recipients"], next_attempt=0)
    an_hour_ago(reports)
    reports.cron()
    texts = [one.content.decode() for one in refusing.messages[1:]]
    assert 2 == len(texts)
    assert [1, 1] == [sum(one in text for text in texts) for one in kept]


def test_a_digest_whose_file_has_two_names_comes_once(
    reports: Trial, refusing: RecordingRelay
) -> None:
    """Power loss may leave the old name beside the new one, or only one of them."""
    reports.setting("bouncelimit", "1")
    for _ in range(3):
        reports.accepted("joe@example.org", ["bad@example.net"])
    assert 69 == reports.send()
    path = an_hour_ago(reports)
    os.link(path, f"{path}.1795800000.M1P1Q1R0123456789abcdef.me.test")
    for _ in range(2):
        reports.cron()
    assert 2 == len(refusing.messages)
    assert [] == os.listdir(f"{reports.spool}/reports")


def test_requeued_and_failed_again_is_told_again(
    reports: Trial,
    refusing: RecordingRelay,
    picoqmail: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """A new life has a report of its own."""
    message_id = reports.accepted("joe@example.org", ["bad@example.net"])
    assert 69 == reports.send()
    assert 0 == picoqmail(reports, "requeue", message_id).returncode
    assert 69 == reports.send(message_id)
    assert 2 == len(refusing.messages)


def killed(trial: Trial, program: str, strike: int) -> None:
    """Run a program, and kill it before the n-th of its calls that change the disk."""
    calls = "fsync,rename,link,unlink"
    strace = [find("strace", "strace"), "-f", "-o", "/dev/null", "-e", f"trace={calls}"]
    subprocess.run(
        [*strace, "-e", f"inject={calls}:signal=SIGKILL:when={strike}",
         trial.installed.program(program)],
        env=trial.variables(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )  # fmt: skip


STRIKES = (1, 4, 9, 11, 13, 14, 16, 18, 19, 20, 22, 25)


@pytest.mark.slow
@pytest.mark.parametrize("strike", STRIKES)
def test_killed_anywhere_the_sender_is_told_once(
    reports: Trial, refusing: RecordingRelay, strike: int
) -> None:
    """Kill -9 before the n-th call that changes the disk: after cron there was one report."""
    message_id = reports.accepted("joe@example.org", ["bad@example.net"])
    killed(reports, "send", strike)
    reports.cron()
    # What is still to be told is due in a minute; not to wait for that it is named.
    reports.run("send", *reports.ids(CUR), *reports.ids(NEW))
    reports.cron()
    told = {parsed(one)["Message-ID"] for one in refusing.messages}
    assert 1 == len(told)
    assert UNDELIVERED == reports.state(message_id)
    (recipient,) = reports.sidecar(message_id)["recipients"]
    assert ("failed", told) == (recipient["state"], {f"<{recipient['told']}.report@me.test>"})
    assert [] == reports.ids(NEW) + reports.ids(CUR)


@pytest.mark.slow
@pytest.mark.parametrize("strike", [1, 2, 3, 5, 6, 7, 8, 9, 10, 12])
def test_killed_anywhere_the_digest_comes_once(
    reports: Trial, refusing: RecordingRelay, strike: int
) -> None:
    """The same for the run of cron that makes and sends a digest."""
    reports.setting("bouncelimit", "1")
    for _ in range(3):
        reports.accepted("joe@example.org", ["bad@example.net"])
    assert 69 == reports.send()
    (path,) = glob.glob(f"{reports.spool}/reports/*")
    name, _, begin = path.rpartition("-")
    os.rename(path, f"{name}-{int(begin) - 3600}")
    killed(reports, "cron", strike)
    for _ in range(2):
        reports.cron()
    digests = [parsed(one) for one in refusing.messages[1:]]
    assert ["2 more of your mails could not be delivered"] == list(
        {one["Message-ID"]: one["Subject"] for one in digests}.values()
    )
    assert [] == reports.ids(NEW) + reports.ids(CUR) + os.listdir(f"{reports.spool}/reports")
