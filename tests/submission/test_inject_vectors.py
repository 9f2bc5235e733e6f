"""What qmail's own qmail-inject and sendmail did, recorded: ours must do the same.

tests/vectors/inject-vectors.json holds, for each case, arguments, environment, control files and
standard input, and the exit code, standard output, message and envelope that came of them. Strings
that stand for bytes are latin-1, messages base64.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from installation import Installation

VECTORS = os.path.join(os.path.dirname(__file__), "..", "vectors", "inject-vectors.json")
with open(VECTORS, "rb") as _file:
    CASES: list[dict[str, Any]] = json.load(_file)

# Where we do not do what qmail does, and why; docs/sendmail.md says it to users. The exit code is
# ours.
DIFFERENT = {
    "sendmail-081": (0, "-G is a flag of Postfix"),
    "sendmail-092": (0, "-Am is a flag of Sendmail, Postfix, dma and OpenSMTPD"),
    "sendmail-108": (0, "-r is -f for Postfix, dma and OpenSMTPD"),
    "sendmail-110": (0, "-O is a flag of Postfix, dma and others"),
    "sendmail-112": (0, "newaliases succeeds: installation scripts run it"),
    "sendmail-127": (0, "a lone dot ends the input, as in every sendmail but qmail's"),
}
SAVER = """#!/bin/sh
[ -n "{noread}" ] || {{ cat <&0 >message; cat <&1 >envelope; }}
[ -z '{err}' ] || printf '%s' '{err}' >&6
[ -z "{kill}" ] || kill -9 $$
exit {code}
"""
RECENT_SECONDS = 300


def recent(stamp: float) -> bool:
    """Tell whether that is now."""
    return abs(time.time() - stamp) < RECENT_SECONDS


def generated(message: bytes, names: list[str]) -> bytes:
    """Put placeholders for the values that are made anew each time, if they are what they must be.

    A Date that is not now, or a Message-ID without a left side, stays and fails the comparison.
    """
    head, blank, body = message.partition(b"\n\n")

    def replace(found: re.Match[bytes]) -> bytes:
        if names_id:
            return found[1] + re.sub(rb"^<[^<>@\s]+@", b"<@MSGID@@", found[2])
        try:
            stamp = parsedate_to_datetime(found[2].decode("latin-1")).timestamp()
        except ValueError:
            return found[0]
        return found[1] + (b"@DATE@" if recent(stamp) else found[2])

    for name in names:
        names_id = name.lower().endswith("id")
        pattern = rb"(?im)^(%s: )(.*)$" % name.encode()
        head = re.sub(pattern, replace, head, count=1)
    return head + blank + body


def per_message(sender: bytes, environ: dict[str, str]) -> bytes:
    """Put placeholders for time and pid of a sender that the letter m made."""
    if "m" not in environ.get("QMAILINJECT", ""):
        return sender

    def replace(found: re.Match[bytes]) -> bytes:
        return b"-@TIME@.@PID@" + found[2] + b"@" if recent(int(found[1])) else found[0]

    return re.sub(rb"-(\d{10})\.\d+(-?)@", replace, sender, count=1)


def write_files(directory: Path, files: dict[str, str]) -> None:
    """Write the files of a case; a name that ends with a slash is a directory."""
    for name, text in files.items():
        if name.endswith("/"):
            (directory / name).mkdir()
        else:
            (directory / name).write_bytes(text.encode("latin-1"))


def play(case: dict[str, Any], directory: Path, installed: Installation) -> dict[str, Any]:
    """Run one case and return what was seen, in the form of its `expect`."""
    home, work = directory / "home", directory / "work"
    for path in (home, work, home / "control"):
        path.mkdir()
    write_files(home / "control", case["control"])
    write_files(work, case.get("files", {}))
    program = installed.program("sendmail" if case["prog"] == "sendmail" else "inject")
    if "argv0" in case:
        os.symlink(program, directory / case["argv0"])
        program = str(directory / case["argv0"])
    saver = directory / "saver"
    queue = case.get("qq", {})
    if not queue.get("missing"):
        saver.write_text(
            SAVER.format(
                err=queue.get("err", ""),
                code=queue.get("exit", 0),
                noread=queue.get("noread", ""),
                kill=queue.get("kill", ""),
            )
        )
        saver.chmod(0o755)
    environ = {b"PATH": os.fsencode(os.environ["PATH"]), b"PICOQMAIL_HOME": bytes(home)}
    environ[b"QMAILQUEUE"] = bytes(saver)
    for name, value in case["env"].items():
        environ[name.encode()] = value.replace("@WORK@", str(work)).encode("latin-1")
    stdin: dict[str, Any] = {"input": base64.b64decode(case["stdin"])}
    mode = case.get("stdin_mode", "pipe")
    if mode in ("dir", "null"):
        stdin = {"stdin": os.open(home if mode == "dir" else os.devnull, os.O_RDONLY)}
    ran = subprocess.run(
        # The shell closes descriptor 0 where the case wants it so.
        [*(["sh", "-c", 'exec "$@" <&-', "sh"] if mode == "closed" else []), program]
        + [one.encode("latin-1") for one in case["args"]],
        env=environ,
        cwd=work,
        capture_output=True,
        timeout=60,
        check=False,
        **stdin,
    )
    if "stdin" in stdin:
        os.close(stdin["stdin"])
    envelope = read(home / "envelope")
    sender, *recipients = envelope[:-2].split(b"\0") if envelope else [b"F"]
    assert b"F" == sender[:1]
    assert all(one.startswith(b"T") for one in recipients)
    return {
        "exit": ran.returncode,
        "stdout": generated(per_message(ran.stdout, case["env"]), case["gen"]),
        "submitted": bool(envelope),
        "message": generated(read(home / "message"), case["gen"]) if envelope else b"",
        "sender": per_message(sender[1:], case["env"]).decode("latin-1"),
        "recipients": [one[1:].decode("latin-1") for one in recipients],
    }


def read(path: Path) -> bytes:
    """Return what is in a file, nothing if there is none."""
    return path.read_bytes() if path.exists() else b""


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['topic']}-{case['id']}")
def test_a_recorded_case_comes_out_the_same(
    case: dict[str, Any], tmp_path: Path, installed: Installation
) -> None:
    """Exit code, output, message and envelope are those of qmail, byte for byte."""
    seen = play(case, tmp_path, installed)
    if case["id"] in DIFFERENT:
        status, _ = DIFFERENT[case["id"]]
        assert status == seen["exit"]
        return
    expected = {key: value for key, value in case["expect"].items() if key in seen}
    for key in ("stdout", "message"):
        expected[key] = base64.b64decode(expected[key])
    assert expected == seen


def test_every_difference_is_of_a_recorded_case() -> None:
    """The list of differences names cases that are there, and those do differ."""
    by_id = {case["id"]: case for case in CASES}
    for name, (status, _) in DIFFERENT.items():
        assert name == "sendmail-127" or status != by_id[name]["expect"]["exit"]
