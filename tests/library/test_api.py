"""The library: what goes in, what lies in the spool then, and what is refused."""

from __future__ import annotations

import datetime as dt
import email.message
import email.policy
import io
import json
import os
import subprocess
import sys
import threading
import time
from email.message import EmailMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any

import pytest

import picoqmail
from picoqmail.layout import TMP
from picoqmail.library.groups import GROUP_MESSAGES
from rig.waiting import wait_until
from temporary_home import FROM_A_TO_B, TemporaryHome


def test_import_costs_nothing() -> None:
    """`import picoqmail` imports the package and nothing else."""
    code = (
        "import sys; before = set(sys.modules); import picoqmail\n"
        "print(sorted(set(sys.modules) - before - {'__future__'}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert "['picoqmail']" == ran.stdout.strip()


def test_every_public_name_is_there() -> None:
    """Each name of `__all__` can be had, and is listed."""
    for name in picoqmail.__all__:
        assert getattr(picoqmail, name) is not None
    assert set(picoqmail.__all__) <= set(dir(picoqmail))
    with pytest.raises(AttributeError, match="nonsense"):
        picoqmail.nonsense  # type: ignore[attr-defined] # noqa: B018


@pytest.mark.parametrize(
    "octets",
    [
        b"Subject: x\n\nbody\n",
        b"Subject: x\r\n\r\nbody without an end",
        b"",
        b"\n",
        b"no header at all \xff\x00\r\r\n.\n..\n",
        b"From " + b"x" * 70000 + b"\n\n" + b"\xe4" * 300000,
    ],
)
@pytest.mark.parametrize("form", ["bytes", "bytearray", "memoryview", "stream", "path", "raw file"])
def test_octets_stay_as_they_are(
    home: TemporaryHome, tmp_path: Path, octets: bytes, form: str
) -> None:
    """Whatever comes as octets lies in the spool byte for byte, below our Received line."""
    path = tmp_path / "message"
    path.write_bytes(octets)
    with open(path, "rb", buffering=0) as raw:
        message: Any = {
            "bytes": octets,
            "bytearray": bytearray(octets),
            "memoryview": memoryview(octets),
            "stream": io.BytesIO(octets),
            "path": path,
            "raw file": raw,
        }[form]
        receipt = picoqmail.enqueue(message, **FROM_A_TO_B)
    assert octets == home.message(receipt.id)
    assert receipt.size == os.path.getsize(f"{home.spool}/new/{receipt.id}.eml")
    record = home.sidecar(receipt.id)
    assert ("a@example.org", ["b@example.net"]) == (record["sender"], home.addresses(receipt.id))
    assert os.getpid() == record["origin"]["pid"]
    assert [f"new/{receipt.id}.eml", f"new/{receipt.id}.json"] == home.files()


def test_text_becomes_utf8(home: TemporaryHome) -> None:
    """A str is written in UTF-8; what the email package could not decode comes back as it was."""
    receipt = picoqmail.enqueue("Subject: \u00fc\n\n\udcff\n", **FROM_A_TO_B)
    assert b"Subject: \xc3\xbc\n\n\xff\n" == home.message(receipt.id)
    with pytest.raises(picoqmail.MessageError, match="not Unicode text"):
        picoqmail.enqueue("\ud800", **FROM_A_TO_B)


@pytest.mark.slow
def test_a_stream_is_never_held_whole(home: TemporaryHome) -> None:
    """200 MB of stream need a few blocks of memory, also where its header is looked at."""
    code = """
import os, resource, sys, picoqmail
def gauge():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read, write = os.pipe()
if not os.fork():
    os.close(read)
    os.write(write, b"From: a@example.org\\nTo: b@example.net\\n\\n")
    for _ in range(3200):
        left = memoryview(bytes(65536))
        while left:
            left = left[os.write(write, left):]
    os._exit(0)
os.close(write)
picoqmail.enqueue(b"", "a@example.org", "b@example.net")
before = gauge()
with open(read, "rb") as file:
    print(picoqmail.enqueue(file, idempotency_key="big").size, gauge() - before)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    size, kilobytes = map(int, ran.stdout.split())
    assert size > 200 * 1024 * 1024
    assert kilobytes < 20 * 1024
    assert 2 == len(home.ids())


def made(policy: Any = email.policy.default) -> EmailMessage:
    """A message as programs make it: two addresses and a blind one, text, HTML, an attachment."""
    message = EmailMessage(policy=policy)
    message["From"] = "A \u00c4 <a@example.org>"
    message["To"] = 'B <b@example.net>, "c d"@example.net'
    message["Cc"] = "group: e@example.net, f@example.net;"
    message["Bcc"] = "blind@example.net"
    message["Subject"] = "Gr\u00fc\u00dfe"
    message.set_content("From here\n\u00fc\n")
    message.add_alternative("<p>\u00fc</p>", subtype="html")
    message.add_attachment(b"\0\1", maintype="application", subtype="octet-stream", filename="x")
    return message


@pytest.mark.parametrize("policy", [email.policy.default, email.policy.SMTP, email.policy.SMTPUTF8])
def test_a_message_object_names_its_own_envelope(home: TemporaryHome, policy: Any) -> None:
    """Sender and recipients come from the header; the spooled octets have LF and no Bcc."""
    message = made(policy)
    receipt = picoqmail.enqueue(message)
    assert "a@example.org" == receipt.sender
    expected = ["b@example.net", "c d@example.net", "blind@example.net"]
    expected += ["e@example.net", "f@example.net"]
    assert tuple(expected) == receipt.recipients
    assert expected == home.addresses(receipt.id)
    octets = home.message(receipt.id)
    assert b"\r" not in octets
    assert b"blind" not in octets
    assert b"\nFrom here\n" in octets
    back = email.message_from_bytes(octets, policy=email.policy.default)
    assert isinstance(back, EmailMessage)
    assert message["Subject"] == back["Subject"]
    body = back.get_body(("plain",))
    assert body is not None
    assert "From here\n\u00fc\n" == body.get_content()
    assert "blind@example.net" == message["Bcc"]


def test_an_international_address_is_written_as_it_is(home: TemporaryHome) -> None:
    """Where the envelope needs SMTPUTF8, the header is UTF-8 too (RFC 6532)."""
    message = EmailMessage()
    message["From"] = "a@example.org"
    message["To"] = "j\u00f6rg@example.net"
    receipt = picoqmail.enqueue(message)
    assert ("j\u00f6rg@example.net",) == receipt.recipients
    assert "To: j\u00f6rg@example.net\n".encode() in home.message(receipt.id)


def test_a_legacy_message_object(home: TemporaryHome) -> None:
    """Objects of the old API work as well, and no line gets a > in front."""
    message = MIMEMultipart()
    message["From"] = "A <a@example.org>"
    message["To"] = "b@example.net"
    message["Bcc"] = "blind@example.net"
    message.attach(MIMEText("From here\n\u00fc", "plain", "utf-8"))
    message.attach(MIMEText("From there\n"))
    receipt = picoqmail.enqueue(message)
    assert ("b@example.net", "blind@example.net") == receipt.recipients
    octets = home.message(receipt.id)
    assert b"\nFrom there\n" in octets
    assert b"blind" not in octets


def test_a_parsed_8_bit_message_stays_as_it_was(home: TemporaryHome) -> None:
    """What was parsed from octets goes out as these octets, also undeclared 8-bit ones."""
    octets = b"From: a@example.org\nTo: b@example.net\nSubject: \xe4\n\n\xe4\xf6\n"
    receipt = picoqmail.enqueue(email.message_from_bytes(octets))
    assert octets == home.message(receipt.id)


@pytest.mark.parametrize("form", [bytes, io.BytesIO, email.message_from_bytes])
def test_resent_fields_go_first(home: TemporaryHome, form: Any) -> None:
    """A resent mail goes where the Resent fields say, and to nobody else."""
    octets = (
        b"Resent-Date: Mon, 1 Jan 2024 00:00:00 +0000\nResent-From: r@example.org\n"
        b"Resent-To: s@example.net\nResent-Bcc: t@example.net\n"
        b"From: a@example.org\nTo: b@example.net\n\n\n"
    )
    receipt = picoqmail.enqueue(form(octets))
    assert ("r@example.org", ("s@example.net", "t@example.net")) == (
        receipt.sender,
        receipt.recipients,
    )
    assert octets.replace(b"Resent-Bcc: t@example.net\n", b"") == home.message(receipt.id)
    twice = form(b"Resent-Date: x\n" + octets)
    with pytest.raises(picoqmail.EnvelopeError, match="more than once"):
        picoqmail.enqueue(twice)


def test_bcc_goes_from_octets_too_and_nothing_else(home: TemporaryHome) -> None:
    """Of octets whose header names the envelope only the Bcc fields are left out."""
    octets = (
        b"Received: x\r\nBcc: c@example.net,\r\n d@example.net\r\nTO : b@example.net\r\n"
        b"From: a@example.org\r\nbcc:e@example.net\r\n\r\nBcc: stays\r\n"
    )
    receipt = picoqmail.enqueue(octets)
    assert ("b@example.net", "c@example.net", "d@example.net", "e@example.net") == (
        receipt.recipients
    )
    assert (
        b"Received: x\r\nTO : b@example.net\r\nFrom: a@example.org\r\n\r\nBcc: stays\r\n"
    ) == home.message(receipt.id)


def test_an_envelope_given_leaves_the_octets_alone(home: TemporaryHome) -> None:
    """Who gives the recipients is asked for nothing of the header; octets keep their Bcc."""
    octets = b"From: a@example.org\nBcc: c@example.net\n\n"
    receipt = picoqmail.enqueue(octets, recipients="b@example.net")
    assert ("a@example.org", ("b@example.net",)) == (receipt.sender, receipt.recipients)
    assert octets == home.message(receipt.id)


def test_duplicates_and_the_null_sender_are_kept(home: TemporaryHome) -> None:
    """The envelope is kept as given: order, duplicates, the sender of bounces, quoted parts raw."""
    several = ["b@example.net", '"a b"@example.net', "b@example.net"]
    receipt = picoqmail.enqueue(b"", "", several)
    assert ["b@example.net", "a b@example.net", "b@example.net"] == home.addresses(receipt.id)
    assert "" == home.sidecar(receipt.id)["sender"]


@pytest.mark.parametrize(
    ("sender", "recipients", "index"),
    [
        ("a@example.org", ["b@example.net", "bob"], 1),
        ("a@example.org", ["b@example.net\r\nRCPT TO:<x@example.net>"], 0),
        ("a@example.org", ["a@b> SIZE=1"], 0),
        ("a@example.org", ["\ud800@example.net"], 0),
        ("a@example.org", ["b@example.net", ""], 1),
        ("a", ["b@example.net"], None),
        ("a@example.org\0", ["b@example.net"], None),
    ],
)
def test_a_bad_address_is_named_before_any_file_exists(
    home: TemporaryHome, sender: str, recipients: list[str], index: int | None
) -> None:
    """A bad address is a ValueError that says which; one bad among good refuses all."""
    with pytest.raises(picoqmail.AddressError) as caught:
        picoqmail.enqueue(b"", sender, recipients)
    assert isinstance(caught.value, ValueError)
    assert index == caught.value.index
    assert caught.value.permanent
    assert [] == home.files()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"message": b"", **FROM_A_TO_B, "recipients": []}, picoqmail.EnvelopeError, "empty"),
        ({"message": b"", **FROM_A_TO_B, "recipients": [3]}, picoqmail.EnvelopeError, "not text"),
        ({"message": b"", **FROM_A_TO_B, "sender": b"a@b"}, picoqmail.EnvelopeError, "not text"),
        ({"message": b"To: a@b\n\n"}, picoqmail.EnvelopeError, "no sender.*Sender nor From"),
        ({"message": b"From: a@b\n\n"}, picoqmail.EnvelopeError, "no recipient.*To, Bcc, Cc"),
        ({"message": b"From: a@b\nTo: <a@b\n\n"}, picoqmail.EnvelopeError, "field To .*not a list"),
        ({"message": 3, **FROM_A_TO_B}, TypeError, "int is not a message"),
        ({"message": None, **FROM_A_TO_B}, TypeError, "NoneType is not a message"),
        ({"message": io.StringIO("x"), **FROM_A_TO_B}, TypeError, "binary mode"),
        ({"message": b"", **FROM_A_TO_B, "expires": 1}, picoqmail.MessageError, "expires"),
        ({"message": b"", **FROM_A_TO_B, "not_before": "x"}, picoqmail.MessageError, "not_before"),
        ({"message": b"", **FROM_A_TO_B, "idempotency_key": ""}, picoqmail.MessageError, "key"),
    ],
)
def test_what_makes_no_sense_is_refused(
    home: TemporaryHome, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    """The error says what is wrong, is one of the tree and a builtin, and leaves nothing."""
    with pytest.raises(error, match=f"(?s){text}") as caught:
        picoqmail.enqueue(**arguments)
    assert isinstance(caught.value, picoqmail.PicoqmailError)
    assert isinstance(caught.value, (ValueError, TypeError))
    assert [] == home.files()


def test_a_naive_time_is_refused(home: TemporaryHome) -> None:
    """A datetime without a zone could mean any of a day's hours."""
    naive = dt.datetime(2040, 1, 1)  # noqa: DTZ001 - that is what is refused
    with pytest.raises(picoqmail.MessageError, match="zone"):
        picoqmail.enqueue(b"", **FROM_A_TO_B, not_before=naive)
    assert [] == home.files()


def test_a_stream_that_breaks_leaves_nothing(home: TemporaryHome) -> None:
    """An error of the caller's stream is told, and nothing was accepted."""

    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            if home.files():
                raise OSError(5, "the tape is torn")
            return b"x" * size

    with pytest.raises(OSError, match="the tape is torn") as caught:
        picoqmail.enqueue(Broken(), **FROM_A_TO_B)  # type: ignore[arg-type] # as users do
    assert isinstance(caught.value, picoqmail.InputError)
    assert [] == home.files()
    with pytest.raises(picoqmail.InputError, match="nowhere"):
        picoqmail.enqueue(_Path("/nowhere"), **FROM_A_TO_B)


class _Path(os.PathLike[str]):
    """A path object that is not pathlib's."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return self.path


def test_too_large_is_refused(home: TemporaryHome) -> None:
    """The setting databytes holds for the library, and a value given in code goes before it."""
    home.setting("databytes", "1000")
    with pytest.raises(picoqmail.MessageTooLargeError):
        picoqmail.enqueue(b"x" * 1000, **FROM_A_TO_B)
    assert [] == home.files()
    picoqmail.Spool(databytes=0).enqueue(b"x" * 1000, **FROM_A_TO_B)
    assert 1 == len(home.ids())


def test_settings_may_be_given_in_code(home: TemporaryHome) -> None:
    """A process that gives `me` needs no control files."""
    os.unlink(f"{home.root}/control/me")
    with pytest.raises(picoqmail.ConfigurationError, match="control/me"):
        picoqmail.enqueue(b"", **FROM_A_TO_B)
    spool = picoqmail.Spool(home.root, me="other.example", queuelifetime=5, send=False)
    receipt = spool.enqueue(b"", **FROM_A_TO_B)
    assert str(receipt.id).endswith(".other.example")
    record = home.sidecar(receipt.id)
    assert 5 == record["expires"] - record["created"]
    with pytest.raises(picoqmail.MessageError, match="databytes"):
        picoqmail.Spool(databytes=-1)


def test_a_home_that_is_not_there_is_told(tmp_path: Path) -> None:
    """The error names the place and the remedy."""
    with pytest.raises(picoqmail.ConfigurationError, match="picoqmail init") as caught:
        picoqmail.enqueue(b"", **FROM_A_TO_B, home=tmp_path / "none")
    assert str(tmp_path / "none") in str(caught.value)


def test_not_before_and_expires_are_kept(home: TemporaryHome) -> None:
    """A message for later lies in cur/, is not due, and expires when it should."""
    now = time.time()
    later = dt.datetime.fromtimestamp(now + 7200.5, dt.UTC)
    receipt = picoqmail.enqueue(b"", **FROM_A_TO_B, not_before=later, expires=dt.timedelta(hours=3))
    assert int(now + 7201.5) == receipt.next_attempt
    record = home.sidecar(receipt.id, "cur")
    assert receipt.next_attempt == record["next_attempt"] == record["not_before"]
    assert record["expires"] - now == pytest.approx(10800, abs=5)
    assert os.stat(f"{home.spool}/cur/{receipt.id}.json").st_mtime == receipt.next_attempt
    again = picoqmail.enqueue(b"", **FROM_A_TO_B, not_before=now - 5, expires=now + 60)
    assert [again.id] == home.ids("new")
    assert int(now + 60) == home.sidecar(again.id)["expires"]
    alone = picoqmail.enqueue(b"", **FROM_A_TO_B, not_before=now + 86400)
    record = home.sidecar(alone.id, "cur")
    assert 604800 == record["expires"] - record["next_attempt"]


def test_many_have_one_result_each(home: TemporaryHome) -> None:
    """One bad message never stops the others, and the results are in order."""
    bad = picoqmail.Mail(b"", "a@example.org", ["nobody"])
    good = [
        picoqmail.Mail(b"%d\n" % index, "a@example.org", "b@example.net")
        for index in range(GROUP_MESSAGES + 10)
    ]
    results = picoqmail.enqueue_many(
        [*good[:5], bad, 3, made(), b"From: a@b\nTo: c@d\n\n", *good[5:]]  # type: ignore[list-item] # one is wrong
    )
    assert isinstance(results[5], picoqmail.AddressError)
    assert isinstance(results[6], picoqmail.MessageTypeError)
    del results[5:7]
    receipts = [one for one in results if isinstance(one, picoqmail.Receipt)]
    assert len(results) == len(receipts)
    assert sorted(str(one.id) for one in receipts) == home.ids()
    assert b"0\n" == home.message(receipts[0].id)
    assert b"%d\n" % (GROUP_MESSAGES + 9) == home.message(receipts[-1].id)
    assert [] == picoqmail.enqueue_many([])


def test_many_are_in_no_danger_from_their_iterable(home: TemporaryHome) -> None:
    """What the iterable raises passes through and leaves nothing behind in tmp/."""

    def mails() -> Any:
        yield picoqmail.Mail(b"", "a@example.org", "b@example.net")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        picoqmail.enqueue_many(mails())
    assert [] == [one for one in home.files() if one.startswith("tmp/")]


@pytest.mark.slow
@pytest.mark.parametrize("keyed", [False, True])
def test_a_group_has_room_for_its_descriptors(home: TemporaryHome, *, keyed: bool) -> None:
    """Where few may be open the groups are smaller, and nothing is refused for that."""
    code = (
        "import resource, sys, picoqmail\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (90, 90))\n"
        "mails = [picoqmail.Mail(b'', 'a@example.org', 'b@example.net', "
        "idempotency_key=f'key {number}' if sys.argv[1] == 'True' else None) "
        "for number in range(300)]\n"
        "results = picoqmail.enqueue_many(mails)\n"
        "print({type(one).__name__ for one in results}, len(results))\n"
        "held = [picoqmail.prepare(b'', 'a@example.org', 'b@example.net') for _ in range(40)]\n"
        "print({type(one).__name__ for one in picoqmail.Spool().commit_many(held)})\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(keyed)], capture_output=True, text=True, check=True
    )
    assert "{'Receipt'} 300\n{'Receipt'}\n" == ran.stdout
    assert 340 == len(home.ids())


def test_nothing_is_visible_before_the_commit(home: TemporaryHome) -> None:
    """A prepared message lies in tmp/ alone; commit makes it a message; it is taken back else."""
    with picoqmail.prepare(b"x\n", **FROM_A_TO_B) as pending:
        assert [f"tmp/{pending.id}.eml", f"tmp/{pending.id}.json"] == home.files()
        receipt = pending.commit()
        with pytest.raises(picoqmail.MessageError, match="already"):
            pending.commit()
    assert (pending.id, [pending.id]) == (receipt.id, home.ids())
    with pytest.raises(RuntimeError), picoqmail.prepare(b"y\n", **FROM_A_TO_B):
        raise RuntimeError
    lost = picoqmail.prepare(b"z\n", **FROM_A_TO_B)
    del lost
    assert [f"new/{receipt.id}.eml", f"new/{receipt.id}.json"] == home.files()


def test_a_parked_message_can_be_committed(home: TemporaryHome) -> None:
    """Parking closes the file; the commit opens it again, or says that it was swept."""
    pending = picoqmail.prepare(b"x\n", **FROM_A_TO_B)
    before = len(os.listdir("/proc/self/fd"))
    pending.park()
    assert before - 1 == len(os.listdir("/proc/self/fd"))
    assert pending.commit().id in home.ids()
    gone = picoqmail.prepare(b"x\n", **FROM_A_TO_B)
    gone.park()
    os.unlink(f"{home.spool}/{TMP}/{gone.id}.eml")
    with pytest.raises(picoqmail.SpoolError, match="prepared message"):
        gone.commit()
    assert 2 == len(home.files())


def test_a_forked_child_leaves_its_parents_message_alone(home: TemporaryHome) -> None:
    """The child neither takes a prepared message back nor commits it; the parent still can."""
    pending = picoqmail.prepare(b"x\n", **FROM_A_TO_B)
    child = os.fork()
    if not child:
        status = 1
        try:
            with pytest.raises(picoqmail.MessageError, match="another process"):
                pending.commit()
            pending.abort()
            status = 0
        finally:
            os._exit(status)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert 2 == len(home.files())
    assert [pending.commit().id] == home.ids()


def test_a_message_is_free_although_a_fork_kept_its_descriptor(home: TemporaryHome) -> None:
    """A process forked while a message was written does not keep its lock."""
    import fcntl

    pending = picoqmail.prepare(b"x\n", **FROM_A_TO_B)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    try:
        receipt = pending.commit()
        with open(f"{home.spool}/new/{receipt.id}.eml", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(write)
        os.waitpid(child, 0)


@pytest.mark.slow
def test_threads_and_processes_enqueue_at_once(home: TemporaryHome) -> None:
    """Fifty threads, and four processes of ten: each gets what it asked for, once."""
    code = """
import sys, threading, picoqmail
def work(number):
    for index in range(4):
        picoqmail.enqueue(b"%d %d\\n" % (number, index), "a@example.org", "b@example.net")
threads = [threading.Thread(target=work, args=(int(sys.argv[1]) + one,)) for one in range(10)]
[one.start() for one in threads]
[one.join() for one in threads]
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(1000 * number)]) for number in range(1, 5)
    ]
    receipts: list[str | None] = []

    def work(number: int) -> None:
        receipts.extend(
            picoqmail.enqueue(b"%d %d\n" % (number, index), **FROM_A_TO_B).id for index in range(4)
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        assert 0 == process.wait(60)
    ids = home.ids()
    assert set(receipts) <= set(ids)
    expected = {
        b"%d %d\n" % (base + number, index)
        for base, count in ((0, 50), (1000, 10), (2000, 10), (3000, 10), (4000, 10))
        for number in range(count)
        for index in range(4)
    }
    bodies = [home.message(one) for one in ids]
    assert expected == set(bodies)
    assert len(expected) == len(bodies)


def test_the_queue_program_of_the_home_serves_who_may_not_write(
    home: TemporaryHome, tmp_path: Path
) -> None:
    """Without a spool that is ours the message goes to bin/qmail-queue, envelope and all."""
    got = tmp_path / "got"
    program = tmp_path / "home" / "bin" / "qmail-queue"
    program.write_text(
        f'#!/bin/sh\ncat >"{got}.message"\ncat <&1 >"{got}.envelope"\n'
        f'echo "$PICOQMAIL_HOME $PICOQMAIL_SEND" >"{got}.environ"\n'
        f'[ -e "{got}.no" ] && {{ printf Dno >&6; exit 82; }}\nexit 0\n'
    )
    program.chmod(0o755)
    if os.geteuid():
        os.chmod(f"{home.spool}/{TMP}", 0o500)
    else:
        os.chown(f"{home.spool}/new", 12345, -1)
    octets = b"From: a@example.org\nTo: b@example.net\nBcc: c@example.net\n\n" + b"x" * 300000
    receipt = picoqmail.enqueue(octets)
    assert ("", ("b@example.net", "c@example.net")) == (receipt.id, receipt.recipients)
    assert octets.replace(b"Bcc: c@example.net\n", b"") == (tmp_path / "got.message").read_bytes()
    assert (
        b"Fa@example.org\0Tb@example.net\0Tc@example.net\0\0"
        == (tmp_path / "got.envelope").read_bytes()
    )
    assert f"{home.root} off" == (tmp_path / "got.environ").read_text().strip()
    with pytest.raises(picoqmail.ConfigurationError, match="write to the spool"):
        picoqmail.enqueue(octets, idempotency_key="k")
    with pytest.raises(picoqmail.ConfigurationError, match="write to the spool"):
        picoqmail.prepare(octets)
    (tmp_path / "got.no").touch()
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(picoqmail.PicoqmailError, match=r"^no$") as caught:
        picoqmail.enqueue(octets)
    assert caught.value.permanent
    assert descriptors == len(os.listdir("/proc/self/fd"))
    program.unlink()
    with pytest.raises(picoqmail.ConfigurationError, match="bin/qmail-queue"):
        picoqmail.enqueue(octets)


def test_the_sender_is_started_in_the_background(
    home: TemporaryHome, monkeypatch: pytest.MonkeyPatch, relay: Any
) -> None:
    """From a process with threads the mail goes out by itself, and no child is left behind."""
    monkeypatch.delenv("PICOQMAIL_SEND")
    home.setting("relayip", relay.address)
    before = children()
    picoqmail.enqueue(made())
    (got,) = relay.wait_for(1)
    assert b"From here" in got.content
    assert children() <= before


def children() -> set[str]:
    """The children of this process, the dead ones that nobody has asked for included."""
    tasks = [f"/proc/self/task/{task}/children" for task in os.listdir("/proc/self/task")]
    return {child for task in tasks for child in Path(task).read_text(encoding="ascii").split()}


def test_many_processes_send_in_the_background(
    home: TemporaryHome, monkeypatch: pytest.MonkeyPatch, relay: Any
) -> None:
    """Threads of several processes, and children forked from threads: all goes out without cron."""
    monkeypatch.delenv("PICOQMAIL_SEND")
    home.setting("relayip", relay.address)
    code = """
import os, threading, picoqmail
def work():
    for _ in range(5):
        picoqmail.enqueue(b"", "a@example.org", "b@example.net")
def forking():
    for _ in range(3):
        child = os.fork()
        if not child:
            work()
            os._exit(0)
        os.waitpid(child, 0)
threads = [threading.Thread(target=one) for one in (work, forking, work)]
[one.start() for one in threads]
[one.join() for one in threads]
"""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    for process in processes:
        assert 0 == process.wait(60)
    assert 75 == len(relay.wait_for(75, 60))
    wait_until(lambda: not home.files(), "the spool is empty", 30)
    assert 75 == len(relay.messages)


def test_a_spool_that_lacks_a_directory_is_told(home: TemporaryHome) -> None:
    """The error names the directory that is missing, and what makes it."""
    os.rmdir(f"{home.spool}/{TMP}")
    with pytest.raises(picoqmail.ConfigurationError, match=r"spool/tmp.*picoqmail init") as caught:
        picoqmail.Spool(home.root).enqueue(b"", **FROM_A_TO_B)
    assert not caught.value.permanent


def test_a_full_disk_is_told_and_leaves_nothing(home: TemporaryHome) -> None:
    """When the file system is full the error says so, for one and for many."""
    code = """
import json, resource, signal, picoqmail
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    picoqmail.enqueue(b"x" * 5000, "a@example.org", "b@example.net")
except picoqmail.SpoolError as exc:
    found = [exc.permanent, exc.qmail_status]
mails = [picoqmail.Mail(b"x" * size, "a@example.org", "b@example.net") for size in (9, 5000, 9)]
print(json.dumps(found + [type(one).__name__ for one in picoqmail.enqueue_many(mails)]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert [False, 53, "Receipt", "SpoolError", "Receipt"] == json.loads(ran.stdout)
    assert 4 == len(home.files())


@pytest.mark.slow
@pytest.mark.parametrize("call", ["enqueue", "enqueue_many", "prepare"])
def test_who_was_told_yes_before_the_kill_has_his_mail(home: TemporaryHome, call: str) -> None:
    """Processes killed at any moment: every receipt that they told has a whole message."""
    code = f"""
import itertools, sys, threading, picoqmail
lock = threading.Lock()
def told(receipts):
    with lock:
        for one in receipts:
            sys.stdout.write(one.id + "\\n")
        sys.stdout.flush()
def work():
    for number in itertools.count():
        mail = picoqmail.Mail(b"x" * 20000, "a@example.org", "b@example.net")
        arguments = (mail.message, mail.sender, mail.recipients)
        if "{call}" == "enqueue":
            told([picoqmail.enqueue(*arguments)])
        elif "{call}" == "prepare":
            with picoqmail.prepare(*arguments) as pending:
                told([pending.commit()])
        else:
            told(picoqmail.enqueue_many([mail] * 10))
for _ in range(3):
    threading.Thread(target=work).start()
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    told = []
    for number, process in enumerate(processes):
        assert process.stdout
        told += [process.stdout.readline().strip() for _ in range(3 * number + 1)]
        process.kill()
        # The last line may be a part: it was not told.
        told += [line.strip() for line in process.stdout.read().splitlines(keepends=True)
                 if line.endswith("\n")]  # fmt: skip
        process.wait()
        process.stdout.close()
    assert len(told) == len(set(told)) >= 22
    assert set(told) <= set(home.ids())
    for one in home.ids():
        assert 20000 == len(home.message(one))
        assert ["b@example.net"] == home.addresses(one)


@pytest.mark.parametrize("umask", [0o777, 0o400, 0o200, 0])
def test_the_application_s_umask_changes_no_mode(home: TemporaryHome, umask: int) -> None:
    """Files are 0600 and directories 0700: the sender can read them, and nobody else.

    The record of a key whose message arrived has the execute bit, too (idempotency.py).
    """
    code = (
        "import os, sys, picoqmail\n"
        "os.umask(int(sys.argv[1]))\n"
        "for key in (None, 'k'):\n"
        "    picoqmail.enqueue(b'Subject: x\\n\\nx\\n', sender='a@b.test', recipients=['c@d.test'],"
        " idempotency_key=key)\n"
    )
    os.chmod(f"{home.root}/spool", 0o700)
    subprocess.run([sys.executable, "-c", code, str(umask)], check=True)
    directories: set[int] = set()
    files: set[int] = set()
    records: set[int] = set()
    for directory, _, names in os.walk(f"{home.root}/spool"):
        directories.add(os.stat(directory).st_mode & 0o777)
        modes = {os.stat(f"{directory}/{name}").st_mode & 0o777 for name in names}
        (records if directory.endswith("/idempotency") else files).update(modes)
    assert ({0o700}, {0o600}, {0o700}) == (directories, files, records)
