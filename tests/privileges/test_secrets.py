"""A relay that repeats what it was told in the login: nothing of that is written or shown."""

from __future__ import annotations

import base64
import os
import urllib.parse
from typing import TYPE_CHECKING, Literal

import pytest

from picoqmail.layout import NEW
from rig import faults
from rig.hostile import EVERYTHING, HostileRelay
from rig.recording import RecordingRelay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rig.faults import Fault
    from trial import Trial

    Picoqmail = Callable[..., object]

FRAGMENT = 6
# Quotes, a backslash and two octets beyond ASCII: what programs escape when they quote.
PASSWORD = 'Zq9"Xw7Lm\\Kf4ü/Vb+6Rt8'
SECRET = PASSWORD.encode()
RESPONSE = base64.b64encode(b"\0joe\0" + SECRET).decode()


def forms() -> Iterator[str]:
    """The password as a text may have it; in base64 also behind other octets."""
    yield PASSWORD
    yield PASSWORD.replace("\\", "\\\\").replace('"', '\\"')
    yield SECRET.hex()
    yield SECRET.hex().upper()
    yield "".join(f"%{octet:02X}" for octet in SECRET)
    for offset in range(3):
        yield base64.b64encode(bytes(offset) + SECRET).decode()[4:-4]
    yield RESPONSE[8:]


def fragments() -> Iterator[str]:
    """Every six octets of these."""
    for form in forms():
        for end in range(FRAGMENT, len(form) + 1):
            yield form[end - FRAGMENT : end]


def raw(text: str) -> Fault:
    """Say exactly this."""
    return faults.raw(text.encode())


REPLIES: dict[str, tuple[str, str]] = {
    "line": ("AUTH", f"535 5.7.8 you said AUTH PLAIN {RESPONSE}\r\n"),
    "cut-line": ("AUTH", f"535 5.7.8 you said AUTH PLAIN {RESPONSE[:-5]}\r\n"),
    "middle-of-line": ("AUTH", f"535 5.7.8 x{RESPONSE[9:-4]}y\r\n"),
    "password": ("AUTH", f"535 5.7.8 {PASSWORD} is wrong\r\n"),
    "cut-password": ("AUTH", f"535 5.7.8 it ends with {PASSWORD[-9:]}\r\n"),
    "quoted": ("AUTH", f"535 5.7.8 {PASSWORD!r}\r\n"),
    "escaped-twice": ("AUTH", f"535 5.7.8 {repr(PASSWORD)!r}\r\n"),
    "base64": ("AUTH", f"535 5.7.8 {base64.b64encode(b'pw=' + SECRET).decode()}\r\n"),
    "base64-inside": ("AUTH", f"535 5.7.8 {base64.b64encode(b'wrong:' + SECRET).decode()}\r\n"),
    "hex": ("AUTH", f"535 5.7.8 {SECRET.hex()}\r\n"),
    "hex-with-colons": ("AUTH", f"535 5.7.8 {SECRET.hex(':').upper()}\r\n"),
    "percent": ("AUTH", f"535 5.7.8 {urllib.parse.quote(PASSWORD)}\r\n"),
    "over-lines": ("AUTH", f"535-5.7.8 {PASSWORD[:8]}\r\n535 {PASSWORD[8:]}\r\n"),
    "temporary": ("AUTH", f"454 4.7.0 {PASSWORD}\r\n"),
    "goodbye": ("AUTH", f"421 4.7.0 {PASSWORD}\r\n"),
    "no-reply": ("AUTH", f"{PASSWORD}\r\n"),
    "no-reply-cut": ("AUTH", f"{'x' * 194}{PASSWORD}\r\n"),
    "no-line-end": ("AUTH", f"535 {PASSWORD}\n"),
    "two-codes": ("AUTH", f"535-no\r\n235 {PASSWORD}\r\n"),
    "challenge": ("AUTH", f"334 {PASSWORD}\r\n"),
    "unasked": ("AUTH", f"334 \r\n535 {PASSWORD}\r\n"),
    "banner": ("banner", f"554 5.7.1 {PASSWORD}\r\n"),
    "hello": ("EHLO", f"250-relay\r\n250 AUTH {PASSWORD}\r\n"),
    "recipient": ("RCPT", f"451 4.7.1 <{PASSWORD}>\r\n"),
    "recipient-for-good": ("RCPT", f"550 5.1.1 {base64.b64encode(SECRET).decode()}\r\n"),
    "content": (".", f"554 5.6.0 {PASSWORD[2:12]} {RESPONSE}\r\n"),
}


@pytest.mark.parametrize("case", REPLIES)
def test_no_output_has_a_fragment_of_the_password(
    trial: Trial, picoqmail: Callable[..., object], rig: Callable[..., HostileRelay], case: str
) -> None:
    """Files of the spool, the log, and what every command says, with `--json` and without."""
    step, text = REPLIES[case]
    relay = rig(HostileRelay({step: raw(text)}, offers=EVERYTHING))
    trial.setting("relayip", f"smtp://joe@{relay.address}")
    trial.setting("tls", "off")
    trial.setting("cleartextauth", "on")
    trial.setting("log", f"json {trial.root}/log debug")
    trial.setting("relaypass", PASSWORD)
    os.chmod(f"{trial.root}/control/relaypass", 0o600)
    message_id = trial.queued()
    outputs = []
    for program in ("send", "cron"):
        ran = trial.run(program)
        outputs += [ran.stdout, ran.stderr]
    said = {line[:4].upper() for _, line in relay.commands}
    assert (b"AUTH" in said) == (case not in ("banner", "hello"))
    for words in (
        ("status",),
        ("list",),
        ("show", message_id),
        ("explain", message_id),
        ("check",),
        ("config",),
    ):
        for more in ((), ("--json",)):
            done = picoqmail(trial, *words, *more)
            outputs += [done.stdout.encode(), done.stderr.encode()]  # type: ignore[attr-defined]
    outputs += [content for path, content in files(trial) if not path.endswith("/relaypass")]
    assert any(b"<secret>" in output for output in outputs)
    everything = b"\n".join(outputs).decode(errors="replace")
    for shown in (everything, everything.replace("\\\\", "\\"), everything.replace("\\", "")):
        assert [] == [one for one in fragments() if one in shown]


def files(trial: Trial) -> Iterator[tuple[str, bytes]]:
    """Every file of the home."""
    for directory, _, names in os.walk(trial.root):
        for name in names:
            path = f"{directory}/{name}"
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    yield path, file.read()


# --- A login over an unprotected line ------------------------------------------------------------


@pytest.mark.parametrize(
    ("tls", "offers", "allowed", "status"),
    [
        ("off", "", "off", 75),
        ("off", "", "on", 0),
        ("may", "", "off", 75),
        ("may", "", "on", 0),
        ("may", "starttls", "off", 75),
        ("may", "starttls", "on", 0),
    ],
)
def test_a_login_needs_verified_tls_or_the_setting(
    trial: Trial,
    rig: Callable[..., RecordingRelay],
    tls: str,
    offers: Literal["", "starttls"],
    allowed: str,
    status: int,
) -> None:
    """Without cleartextauth no password goes over a line that anybody on the way can read."""
    # The certificate is of no authority that this host knows.
    relay = rig(RecordingRelay(tls=offers, users={"joe": "secret"}))
    trial.setting("relayip", f"joe@{relay.address}")
    trial.setting("tls", tls)
    trial.setting("cleartextauth", allowed)
    trial.setting("relaypass", "secret")
    os.chmod(f"{trial.root}/control/relaypass", 0o600)
    message_id = trial.queued()
    assert status == trial.run("send").returncode
    assert (status == 0) == bool(relay.messages)
    assert (status == 0) == (message_id not in trial.ids(NEW))


@pytest.mark.parametrize(("tls", "allowed", "status"), [("off", "off", 2), ("may", "on", 1)])
def test_check_warns_of_a_login_in_clear(
    trial: Trial, picoqmail: Callable[..., object], tls: str, allowed: str, status: int
) -> None:
    """Critical where nothing can be sent, a warning where the password may be seen."""
    trial.setting("relayip", "joe@relay.example.org")
    trial.setting("tls", tls)
    trial.setting("cleartextauth", allowed)
    trial.setting("relaypass", "secret")
    os.chmod(f"{trial.root}/control/relaypass", 0o600)
    for directory in ("", "tmp", "new", "cur", "undelivered"):
        os.chmod(f"{trial.spool}/{directory}", 0o700)
    done = picoqmail(trial, "check", "--no-relay")
    assert status == done.returncode, done.stdout  # type: ignore[attr-defined]
    assert "cleartextauth" in done.stdout  # type: ignore[attr-defined]
