"""Mail of Django: the backend, its transactions, the checks, the commands, the admin site."""

from __future__ import annotations

import email
import email.policy
import gc
import io
import json
import os
from email.message import EmailMessage as PythonMessage
from typing import TYPE_CHECKING, Any, cast

import pytest

pytest.importorskip("django", reason="needs Django (extra django)")

import django_project
from rig import faults
from rig.hostile import HostileRelay
from temporary_home import TemporaryHome

# Before what follows is imported, which is what every import below this line waits for.
django_project.set_up()

from django.core import mail  # noqa: E402
from django.core.checks import run_checks  # noqa: E402
from django.core.exceptions import ImproperlyConfigured  # noqa: E402
from django.core.mail import EmailMessage, EmailMultiAlternatives, send_mass_mail  # noqa: E402
from django.core.management import CommandError, call_command  # noqa: E402
from django.db import transaction  # noqa: E402
from django.test import Client, override_settings  # noqa: E402

import picoqmail  # noqa: E402
from picoqmail.django import EmailBackend  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path) -> Iterator[TemporaryHome]:
    """A home that Django's settings name."""
    made = TemporaryHome(str(tmp_path / "home")).make()
    with override_settings(
        PICOQMAIL_HOME=made.root,
        PICOQMAIL_SEND=False,
        **django_project.mailer(),
    ):
        yield made


def message(**more: Any) -> EmailMessage:
    """A message as views make it."""
    arguments = {"from_email": "A <a@example.org>", "to": ["B \u00c4 <b@example.net>"], **more}
    return EmailMessage("Gr\u00fc\u00dfe", "From here\n\u00fc\n", **arguments)


def parsed(home: TemporaryHome, index: int = 0) -> PythonMessage:
    """One of the spooled mails."""
    octets = home.message(home.ids()[index])
    assert b"\r" not in octets
    return email.message_from_bytes(octets, PythonMessage, policy=email.policy.default)


def test_a_message_with_everything(home: TemporaryHome) -> None:
    """Alternatives, attachments, copies, blind copies and headers arrive; Bcc is not seen."""
    made = EmailMultiAlternatives(
        "Gr\u00fc\u00dfe",
        "plain \u00fc\nFrom here\n",
        "App <app@example.org>",
        ["b@example.net"],
        bcc=["blind@example.net"],
        cc=["C <c@example.net>"],
        reply_to=["r@example.org"],
        headers={"X-Mine": "1"},
    )
    made.attach_alternative("<p>\u00fc</p>", "text/html")
    made.attach("x.bin", b"\0\xff", "application/octet-stream")
    assert 1 == made.send()
    (stem,) = home.ids()
    assert ["b@example.net", "c@example.net", "blind@example.net"] == home.addresses(stem)
    assert "app@example.org" == home.sidecar(stem)["sender"]
    got = parsed(home)
    assert ("Gr\u00fc\u00dfe", "1") == (got["Subject"], got["X-Mine"])
    assert got["Date"]
    assert got["Message-ID"]
    assert "blind" not in str(got)
    body, html = got.get_body(("plain",)), got.get_body(("html",))
    assert body is not None
    assert html is not None
    assert "plain \u00fc\nFrom here\n" == body.get_content()
    assert "<p>\u00fc</p>" == html.get_content().strip()
    assert [b"\0\xff"] == [one.get_content() for one in got.iter_attachments()]


def test_bulk(home: TemporaryHome) -> None:
    """Many messages in one call: all of them, one spooled message each; one without anybody not."""
    mails = [("s", f"body {n}", "a@example.org", [f"b{n}@example.net"]) for n in range(70)]
    assert 70 == send_mass_mail(mails)
    assert 70 == len(home.ids())
    assert 0 == EmailBackend().send_messages([message(to=[])])
    assert 0 == EmailBackend().send_messages([])
    assert 70 == len(home.ids())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("B <b@example.net>", "b@example.net"),
        ('"a b"@example.net', "a b@example.net"),
        ("b@b\u00fccher.example", "b@xn--bcher-kva.example"),
        ("root", "root@me.test"),
        ("<b@example.net>", "b@example.net"),
    ],
)
def test_addresses_as_django_takes_them(home: TemporaryHome, given: str, expected: str) -> None:
    """With a name, quoted, international, or of this host alone."""
    assert 1 == message(to=[given]).send()
    assert [expected] == home.addresses(home.ids()[0])


def test_errors_are_told_unless_silence_is_wanted(home: TemporaryHome) -> None:
    """One bad message never stops the others; the first error is raised after all were tried."""
    bad = message(to=["a b@c d"])
    messages = [message(), bad, message(), bad]
    with pytest.raises(picoqmail.AddressError) as caught:
        EmailBackend().send_messages(messages)
    assert ["and 1 more messages could not be accepted"] == caught.value.__notes__
    assert 2 == len(home.ids())
    assert 2 == EmailBackend(fail_silently=True).send_messages(messages)
    assert 4 == len(home.ids())
    injected = message(to=["b@example.net\nBcc: x@example.net"])
    with pytest.raises(ValueError, match=r"(?i)newline|line end"):
        injected.send()
    with (
        override_settings(PICOQMAIL_HOME=f"{home.root}/none"),
        pytest.raises(picoqmail.ConfigurationError, match="picoqmail init"),
    ):
        message().send()
    assert 4 == len(home.ids())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_what_other_backends_take_is_taken(home: TemporaryHome) -> None:
    """Host, user and password are handed to every backend; Django 6.1 warns of it."""
    assert 1 == mail.send_mail(
        "s", "b", "a@example.org", ["b@example.net"], auth_user="u", auth_password="p"
    )
    assert 1 == mail.send_mail("s", "b", "a@example.org", ["b@example.net"], fail_silently=True)
    with mail.get_connection(host="h", port=1, use_tls=True) as connection:
        assert 1 == connection.send_messages([message()])
    assert 3 == len(home.ids())


def test_what_no_backend_takes_is_refused(home: TemporaryHome) -> None:
    """A misspelt option must not send mail into another home."""
    elsewhere = TemporaryHome(str(_beside(home))).make()
    assert 1 == EmailBackend(home=elsewhere.root).send_messages([message()])
    assert (0, 1) == (len(home.ids()), len(elsewhere.ids()))
    with pytest.raises(TypeError, match="no option hoem; there are home, send, on_commit"):
        EmailBackend(hoem=elsewhere.root)
    if not django_project.HAS_MAILERS:
        with pytest.raises(ImproperlyConfigured, match=r"Django 6\.1"):
            EmailBackend(alias="x")


@pytest.mark.skipif(not django_project.HAS_MAILERS, reason="needs Django 6.1, which has MAILERS")
def test_mailers(home: TemporaryHome) -> None:
    """Each entry has its own options; one that is misspelt is told, as Django tells it."""
    elsewhere = TemporaryHome(str(_beside(home))).make()
    elsewhere.setting("relayip", "relay.example")
    ours = {"BACKEND": django_project.BACKEND}
    entries: dict[str, Any] = {
        "default": ours,
        "other": {**ours, "OPTIONS": {"home": elsewhere.root, "fail_silently": True}},
        "wrong": {**ours, "OPTIONS": {"hoem": elsewhere.root}},
        "nowhere": {**ours, "OPTIONS": {"on_commit": "nowhere"}},
        "smtp": {**ours, "OPTIONS": {"host": "relay.example"}},
        "not ours": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"},
        "no backend": {},
    }
    with override_settings(MAILERS=entries):
        handler: Any = mail.mailers  # type: ignore[attr-defined,unused-ignore] # since 6.1
        assert ["default", "other"] == [handler[one].alias for one in ("default", "other")]
        assert (False, True) == (handler.default.fail_silently, handler["other"].fail_silently)
        send = cast("Any", mail.send_mail)
        assert 1 == send("s", "b", "a@example.org", ["b@example.net"])
        assert 1 == send("s", "b", "a@example.org", ["b@example.net"], using="other")
        assert 0 == send("s", "b", "a@example.org", ["b@c d"], using="other")
        assert (1, 1) == (len(home.ids()), len(elsewhere.ids()))
        with pytest.raises(ImproperlyConfigured, match=r"MAILERS\['wrong'\].*'hoem'"):
            send("s", "b", "a@example.org", ["b@example.net"], using="wrong")
        with pytest.raises(ImproperlyConfigured, match="'host'"):
            send("s", "b", "a@example.org", ["b@example.net"], using="smtp")
        assert (1, 1) == (len(home.ids()), len(elsewhere.ids()))
        assert ["picoqmail.E004", "picoqmail.E004", "picoqmail.E005", "picoqmail.W001"] == sorted(
            map(str, found())
        )
        assert f"spool {home.spool}" in command("picoqmail_status")
        assert f"spool {elsewhere.spool}" in command("picoqmail_status", "--mailer", "other")
        with pytest.raises(
            CommandError, match="not a mailer of picoqmail; there are: default, other"
        ):
            command("picoqmail_retry", "--mailer", "smtpd")
        browser = Client()
        browser.force_login(django_project.make_user("root", is_superuser=True))
        (stem,) = elsewhere.ids()
        assert stem not in browser.get(PAGE).content.decode()
        listing = browser.get(PAGE, {"mailer": "other"}).content.decode()
        assert f"{PAGE}{stem}/change/?mailer=other" in listing
        held = browser.post(f"{PAGE}{stem}/change/?mailer=other", {"verb": "hold"}, follow=True)
        assert "is held" in held.content.decode()
        assert elsewhere.sidecar(stem, "cur")["held"]
        assert 404 == browser.get(PAGE, {"mailer": "not ours"}).status_code


def _beside(home: TemporaryHome) -> Any:
    import pathlib

    return pathlib.Path(f"{home.root}2")


# --- Transactions -----------------------------------------------------------------------------


@pytest.mark.parametrize("on_commit", [True, "default"])
def test_mail_goes_with_the_commit(home: TemporaryHome, on_commit: bool | str) -> None:  # noqa: FBT001
    """Within a transaction mail is on disk, and visible only when that commits."""
    with override_settings(PICOQMAIL_ON_COMMIT=on_commit):
        with transaction.atomic():
            assert 3 == EmailBackend().send_messages([message()] * 3)
            assert [] == home.ids()
            assert 6 == sum(one.startswith("tmp/") for one in home.files())
        assert 3 == len(home.ids())
        message().send()
        assert 4 == len(home.ids())
    with transaction.atomic():
        message().send()
        assert 5 == len(home.ids()), "not asked to wait"
    assert 10 == len(home.files())


@transaction.atomic
def _send_and_fail(recipient: str) -> None:
    message(to=[recipient]).send()
    raise RuntimeError


def test_mail_goes_with_the_rollback(home: TemporaryHome) -> None:
    """Rolled back, whole or to a savepoint, the mail is gone and leaves nothing."""
    with override_settings(PICOQMAIL_ON_COMMIT=True):
        with pytest.raises(RuntimeError):
            _send_and_fail("goes@example.net")
        gc.collect()
        assert [] == home.files()
        with transaction.atomic():
            message(to=["stays@example.net"]).send()
            with pytest.raises(RuntimeError):
                _send_and_fail("goes@example.net")
    gc.collect()
    assert ["stays@example.net"] == home.addresses(home.ids()[0])
    assert 2 == len(home.files())


def test_more_mail_in_a_transaction_than_files_may_be_open(home: TemporaryHome) -> None:
    """A transaction's mail keeps no file open."""
    before = len(os.listdir("/proc/self/fd"))
    with override_settings(PICOQMAIL_ON_COMMIT=True), transaction.atomic():
        assert 200 == EmailBackend().send_messages([message()] * 200)
        assert len(os.listdir("/proc/self/fd")) - before < 10
    assert 200 == len(home.ids())


def test_one_failing_commit_stops_no_other(
    home: TemporaryHome, caplog: pytest.LogCaptureFixture
) -> None:
    """Mail behind goes out, the application's callbacks run, the log names what was lost."""
    ran = []
    with override_settings(PICOQMAIL_ON_COMMIT=True), transaction.atomic():
        message(to=["first@example.net"]).send()
        (body,) = [one for one in home.files() if one.endswith(".eml")]
        assert 2 == EmailBackend().send_messages([message(), message()])
        transaction.on_commit(lambda: ran.append("the application's"))
        os.unlink(f"{home.spool}/{body}")
    assert ["the application's"] == ran
    assert 2 == len(home.ids())
    (record,) = [one for one in caplog.records if one.name == "picoqmail.django"]
    assert "ERROR" == record.levelname
    assert os.path.basename(body).removesuffix(".eml") in record.getMessage()
    with override_settings(PICOQMAIL_ON_COMMIT=True), transaction.atomic():
        message().send()
        transaction.on_commit(lambda: ran.append("again"))
        os.rename(home.spool, f"{home.root}/away")
    os.rename(f"{home.root}/away", home.spool)
    assert ["the application's", "again"] == ran


def test_mail_goes_with_a_commit_by_hand(home: TemporaryHome) -> None:
    """Without autocommit mail waits for `commit()`, and goes with `rollback()` and savepoints."""
    ran = []
    with override_settings(PICOQMAIL_ON_COMMIT=True):
        transaction.set_autocommit(False)
        try:
            message(to=["first@example.net"]).send()
            assert [] == home.ids()
            transaction.commit()
            assert 1 == len(home.ids())
            message(to=["gone@example.net"]).send()
            transaction.rollback()
            gc.collect()
            transaction.commit()
            assert 1 == len(home.ids())
            with transaction.atomic():
                message(to=["second@example.net"]).send()
                transaction.on_commit(lambda: ran.append("the application's"))
                with pytest.raises(RuntimeError):
                    _send_and_fail("gone@example.net")
            assert 1 == len(home.ids())
            transaction.commit()
            assert 2 == len(home.ids())
            assert [] == ran, "Django's own wait until autocommit is on"
            message(to=["third@example.net"]).send()
        finally:
            transaction.set_autocommit(True)
        assert ["the application's"] == ran
        gc.collect()
        found = [home.addresses(one) for one in home.ids()]
        assert [["first@example.net"], ["second@example.net"], ["third@example.net"]] == found
        message().send()
        assert 4 == len(home.ids())
    assert 8 == len(home.files())


# --- Checks and commands ----------------------------------------------------------------------


def found() -> list[str | None]:
    """The IDs of what the system checks say of us."""
    return [one.id for one in run_checks() if str(one.id).startswith("picoqmail")]


def test_checks(home: TemporaryHome) -> None:
    """A home that is missing, wrong or without a relay is told; another backend is not our care."""
    assert ["picoqmail.W001"] == found()
    home.setting("relayip", "relay.example")
    assert [] == found()
    home.setting("databytes", "many")
    assert ["picoqmail.E002"] == found()
    home.setting("databytes", "0")
    with override_settings(PICOQMAIL_HOME=f"{home.root}/none"):
        assert ["picoqmail.E001"] == found()
        with override_settings(
            **django_project.mailer("django.core.mail.backends.locmem.EmailBackend")
        ):
            assert [] == found()
    with override_settings(PICOQMAIL_ON_COMMIT="nowhere", PICOQMAIL_HOEM="/x"):
        assert ["picoqmail.E005", "picoqmail.W004"] == found()
    if not os.geteuid():
        os.chown(f"{home.spool}/new", 12345, -1)
        assert ["picoqmail.E003"] == found()
        with open(f"{home.root}/bin/qmail-queue", "w", encoding="ascii") as file:
            file.write("#!/bin/sh\nexit 0\n")
        os.chmod(file.name, 0o755)
        with override_settings(PICOQMAIL_ON_COMMIT=True):
            assert ["picoqmail.W003"] == found()


def command(*arguments: str) -> str:
    """What a management command prints."""
    out = io.StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


def test_commands(home: TemporaryHome, rig: Any) -> None:
    """Status counts; retry makes due, or delivers at once."""
    server = rig(HostileRelay({"RCPT": [faults.reply("451 4.3.0 later"), None]}))
    home.setting("relayip", server.address)
    assert "there is no deferred mail" in command("picoqmail_retry")
    message().send()
    document = json.loads(command("picoqmail_status", "--json"))
    assert 1 == document["states"]["new"]["messages"]
    assert "1 deferred" in command("picoqmail_retry", "--deliver")
    (stem,) = home.ids("cur")
    assert "cur          1 messages" in command("picoqmail_status")
    assert "is due now" in command("picoqmail_retry", stem)
    assert "1 delivered" in command("picoqmail_retry", "--deliver", stem)
    assert [] == home.files()
    with pytest.raises(CommandError, match="no such message"):
        command("picoqmail_retry", stem)
    with (
        override_settings(PICOQMAIL_HOME=f"{home.root}/none"),
        pytest.raises(CommandError, match="none"),
    ):
        command("picoqmail_status")


# --- The admin site ---------------------------------------------------------------------------

PAGE = "/admin/picoqmail/spooledmessage/"


@pytest.fixture
def client() -> Client:
    """The superuser's browser."""
    browser = Client()
    browser.force_login(django_project.make_user("root", is_superuser=True))
    return browser


def deferred(home: TemporaryHome, rig: Any) -> str:
    """A message that a relay has put off."""
    server = rig(HostileRelay({"RCPT": faults.reply("451 4.3.0 <b>later</b>")}))
    home.setting("relayip", server.address)
    message(to=['"<script>"@example.net']).send()
    assert 1 == picoqmail.Spool(home.root).deliver().deferred
    (stem,) = home.ids("cur")
    return stem


def test_the_page_lists_and_explains(home: TemporaryHome, rig: Any, client: Client) -> None:
    """The list has every message; one has its story; text of others is escaped."""
    stem = deferred(home, rig)
    assert b"picoqmail/spooledmessage" in client.get("/admin/").content
    listing = client.get(PAGE).content.decode()
    assert stem in listing
    assert "&lt;script&gt;@example.net" in listing
    assert "<script>@" not in listing
    assert "451 4.3.0 &lt;b&gt;later" in listing
    assert stem not in client.get(PAGE, {"state": "new"}).content.decode()
    assert stem in client.get(PAGE, {"state": "cur", "q": "@example.net"}).content.decode()
    assert stem not in client.get(PAGE, {"q": "@other.example"}).content.decode()
    page = client.get(f"{PAGE}{stem}/change/").content.decode()
    assert "Relay replies" in page
    assert "Subject: =?utf-8?" in page
    assert "451 4.3.0 &lt;b&gt;later" in page
    assert 302 == client.get(f"{PAGE}{stem}/history/").status_code
    assert 404 == client.get(f"{PAGE}{stem}x/change/").status_code
    assert 404 == client.get(f"{PAGE}..%2Fx/change/").status_code
    with override_settings(PICOQMAIL_HOME=f"{home.root}/none"):
        assert b"errornote" in client.get(PAGE).content


def test_verbs_of_the_page(home: TemporaryHome, rig: Any, client: Client) -> None:
    """Hold, release and retry do what they do on the command line, and are told and logged."""
    from django.contrib.admin.models import LogEntry

    stem = deferred(home, rig)
    page = f"{PAGE}{stem}/change/"
    answer = client.post(page, {"verb": "hold"}, follow=True)
    assert "is held" in answer.content.decode()
    assert home.sidecar(stem, "cur")["held"]
    client.post(PAGE, {"verb": "release", "id": [stem]})
    assert not home.sidecar(stem, "cur")["held"]
    assert "is due" in client.post(page, {"verb": "retry"}, follow=True).content.decode()
    assert ["release", "hold"] == [
        one.change_message for one in LogEntry.objects.filter(object_id=stem)[:2]
    ]
    assert 404 == client.post(page, {"verb": "explode"}).status_code
    assert (
        "No message was chosen" in client.post(PAGE, {"verb": "hold"}, follow=True).content.decode()
    )
    picoqmail.Spool(home.root).delete(stem)
    assert "no such message" in client.post(page, {"verb": "hold"}, follow=True).content.decode()


def test_the_page_shows_subjects(home: TemporaryHome, client: Client) -> None:
    """Decoded, escaped, on one line; a header that cannot be read stops nothing."""
    message().send()
    for subject in (b"<b>bold</b>\n and =?utf-8?q?x=0ABcc:_i=40e?=", b"=?utf-8?b?\xff?=", b""):
        octets = b"Subject: " + subject + b"\n\n"
        picoqmail.enqueue(octets, "a@example.org", ["b@example.net"], home=home.root, send=False)
    listing = client.get(PAGE).content.decode()
    assert "Gr\u00fc\u00dfe" in listing
    assert "&lt;b&gt;bold&lt;/b&gt; and x Bcc: i@e" in listing
    stem = home.ids()[0]
    assert "Gr\u00fc\u00dfe</h2>" in client.get(f"{PAGE}{stem}/change/").content.decode()


def test_requeue_and_delete(home: TemporaryHome, rig: Any, client: Client) -> None:
    """What failed gets a new life; what is deleted is gone, after a question."""
    server = rig(HostileRelay({"RCPT": faults.reply("550 5.1.1 no")}))
    home.setting("relayip", server.address)
    home.setting("bounces", "off")
    message().send()
    assert 1 == picoqmail.Spool(home.root).deliver().failed
    (stem,) = home.ids("undelivered")
    page = f"{PAGE}{stem}/change/"
    client.post(page, {"verb": "requeue"})
    assert [] == home.ids("undelivered")
    message().send()
    stems = [*home.ids("new"), *home.ids("cur")]
    assert 2 == len(stems)
    question = client.post(PAGE, {"verb": "delete", "id": stems}).content.decode()
    assert "Delete 2 messages?" in question
    assert "Gr\u00fc\u00dfe" in question
    assert 2 == len([*home.ids("new"), *home.ids("cur")]), "asked, not done"
    answer = {"verb": "delete", "id": stems, "confirmed": "yes"}
    client.post(PAGE, answer)
    assert [] == home.files()
    message().send()
    (stem,) = home.ids()
    assert b"Delete 1 message?" in client.get(f"{PAGE}{stem}/delete/").content
    gone = client.post(f"{PAGE}{stem}/delete/", {"verb": "delete", "confirmed": "yes"}, follow=True)
    assert (PAGE, []) == (gone.redirect_chain[-1][0], home.files())
    assert "no such message" in client.get(f"{PAGE}{stem}/delete/", follow=True).content.decode()


def test_who_may_what(home: TemporaryHome, rig: Any) -> None:
    """To look takes the permission to view, verbs that to change or to delete; nobody adds."""
    stem = deferred(home, rig)
    browser = Client()
    assert 302 == browser.get(PAGE).status_code
    browser.force_login(django_project.make_user("nobody", is_superuser=False))
    assert 403 == browser.get(PAGE).status_code
    assert 403 == browser.get(f"{PAGE}{stem}/change/").status_code
    browser.force_login(
        django_project.make_user("viewer", is_superuser=False, permissions=("view_spooledmessage",))
    )
    listing = browser.get(PAGE).content.decode()
    assert stem in listing
    assert 'value="hold"' not in listing
    assert 403 == browser.post(PAGE, {"verb": "hold", "id": [stem]}).status_code
    assert not home.sidecar(stem, "cur")["held"]
    assert 403 == browser.get(f"{PAGE}add/").status_code
    assert 403 == browser.get(f"{PAGE}{stem}/delete/").status_code
    answer = {"verb": "delete", "id": [stem], "confirmed": "yes"}
    assert 403 == browser.post(PAGE, answer).status_code
    assert 403 == browser.post(f"{PAGE}{stem}/delete/", answer).status_code
    may = {
        "changer": ("view_spooledmessage", "change_spooledmessage"),
        "deleter": ("view_spooledmessage", "delete_spooledmessage"),
    }
    for name, permissions in may.items():
        browser.force_login(
            django_project.make_user(name, is_superuser=False, permissions=permissions)
        )
        listing = browser.get(PAGE).content.decode()
        assert (name == "changer") == ('value="requeue"' in listing)
        assert (name == "deleter") == ('value="delete"' in listing)
        if name == "changer":
            assert 403 == browser.post(PAGE, answer).status_code
            assert [stem] == home.ids("cur")
        else:
            assert 403 == browser.post(PAGE, {"verb": "hold", "id": [stem]}).status_code
            assert 302 == browser.post(PAGE, answer).status_code
            assert [] == home.files()
