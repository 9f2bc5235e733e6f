"""Moving in from nullmailer, msmtp, ssmtp and dma."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from picoqmail.errors import ConfigurationError
from picoqmail.home.foreign import translate
from picoqmail.home.paths import Home
from picoqmail.home.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from trial import Trial

CASES: list[tuple[str, Mapping[str, str], Mapping[str, list[str]]]] = [
    (
        "nullmailer",
        {
            "me": "host.example.org\n",
            "remotes": "# ours\nsmtp.example.org smtp --port=587 --starttls --user=joe@example.org "
            "--pass='s3 cret'\nbackup.example.org\n",
            "allmailfrom": "host@example.org\n",
            "sendtimeout": "300\n",
            "bouncefrom": "daemon@example.org\n",
        },
        {
            "me": ["host.example.org"],
            "relayip": [
                "smtp+starttls://joe@example.org@smtp.example.org:587",
                "smtp://backup.example.org",
            ],
            "relaypass": ["s3 cret"],
            "rewritefrom": ["host@example.org"],
            "timeoutremote": ["300"],
            "bouncefrom": ["daemon"],
            "bouncehost": ["example.org"],
        },
    ),
    (
        "msmtp",
        {
            "msmtprc": "defaults\ntls on\nauth on\naccount base\nhost mail.example.org\n"
            'user joe\npasswordeval "pass show mail"\naccount default : base\nport 465\n'
            "tls_starttls off\nfrom joe@example.org\nsyslog LOG_MAIL\n",
        },
        {
            "relayip": ["smtps://joe@mail.example.org:465"],
            "relaypass": ["!sh -c 'pass show mail'"],
            "rewritefrom": ["joe@example.org"],
            "log": ["syslog"],
        },
    ),
    (
        "ssmtp",
        {
            "ssmtp.conf": "mailhub=mail.example.org:587\nHostname=h.example.org\nAuthUser=joe\n"
            "AuthPass=secret\nUseSTARTTLS=YES\nUseTLS=YES\n",
        },
        {
            "relayip": ["smtp+starttls://joe@mail.example.org:587"],
            "relaypass": ["secret"],
            "me": ["h.example.org"],
        },
    ),
    (
        "dma",
        {
            "dma.conf": "SMARTHOST mail.example.org\nPORT 465\n#STARTTLS\nSECURETRANSFER\n"
            "MASQUERADE joe@example.org\nMAILNAME /etc/mailname\n",
            "auth.conf": "# user|host:password\njoe|mail.example.org:a:b\n",
            "mailname": "h.example.org\n",
        },
        {
            "relayip": ["smtps://joe@mail.example.org:465"],
            "relaypass": ["a:b"],
            "rewritefrom": ["joe@example.org"],
            "me": ["h.example.org"],
        },
    ),
]


@pytest.mark.parametrize(("mailer", "texts", "expected"), CASES, ids=[one[0] for one in CASES])
def test_each_becomes_settings_that_load(
    mailer: str, texts: Mapping[str, str], expected: Mapping[str, list[str]], tmp_path: Path
) -> None:
    """What is made of it is right, and all of it is accepted by our own reader."""
    found = translate(mailer, texts)
    assert expected == found.settings
    control = tmp_path / "control"
    control.mkdir()
    for name, lines in {"me": ["h.example.org"], **found.settings}.items():
        (control / name).write_text("\n".join(lines) + "\n")
        (control / name).chmod(0o600)
    assert load(Home(str(tmp_path))).relayip


def test_what_has_no_counterpart_is_noted() -> None:
    """Nothing that matters for security is taken over in silence."""
    found = translate("nullmailer", {"remotes": "h.example.org smtp --insecure --ssl\n"})
    assert any("--insecure" in note for note in found.notes)
    assert ["smtps://h.example.org"] == found.settings["relayip"]
    two = "a.example.org smtp --user=a --pass=x\nb.example.org smtp --user=b --pass=y\n"
    assert any("one relaypass" in note for note in translate("nullmailer", {"remotes": two}).notes)


def test_what_cannot_be_understood_is_an_error() -> None:
    """With file and line."""
    with pytest.raises(ConfigurationError, match="remotes:2"):
        translate("nullmailer", {"remotes": "\nh.example.org smtp --user='\n"})


def test_the_command_writes_and_overwrites_nothing(
    trial: Trial, picoqmail: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """A password lands in a private file and nowhere else; another value stays, with exit 73."""
    path = tmp_path / "ssmtp.conf"
    path.write_text(CASES[2][1]["ssmtp.conf"])
    ran = picoqmail(trial, "import-config", "ssmtp", str(path))
    assert 73 == ran.returncode
    assert f"{trial.root}/control/me" in ran.stderr
    assert "secret\n" not in ran.stdout
    secret = f"{trial.root}/control/relaypass"
    assert 0o600 == os.stat(secret).st_mode & 0o777
    for name in ("me", "relayip"):
        os.unlink(f"{trial.root}/control/{name}")
    assert 0 == picoqmail(trial, "import-config", "ssmtp", str(path)).returncode
    assert 0 == picoqmail(trial, "import-config", "ssmtp", str(path)).returncode
    assert 66 == picoqmail(trial, "import-config", "dma", str(tmp_path / "none")).returncode


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(
    trial: Trial, picoqmail: Callable[..., subprocess.CompletedProcess[str]], shell: str
) -> None:
    """The script names every command; bash completes options, their values, and IDs."""
    script = picoqmail(trial, "completion", shell).stdout
    assert "requeue" in script
    if shell != "bash":
        return
    message_id = trial.accepted()
    for words, expected in (
        (("picoqmail", "requ"), "requeue"),
        (("picoqmail", "list", "--st"), "--state"),
        (("picoqmail", "list", "--state", "un"), "undelivered"),
        (("picoqmail", "explain", message_id[:5]), message_id),
    ):
        quoted = " ".join(f"'{word}'" for word in words)
        asked = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}"
        shown = '_picoqmail; echo "${COMPREPLY[@]}"'
        ran = subprocess.run(
            ["bash", "-c", f"{script}\n{asked}\n{shown}"],
            env={**trial.variables(), "PATH": f"{trial.installed.bin}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert expected == ran.stdout.strip()
