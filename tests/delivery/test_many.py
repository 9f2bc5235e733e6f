"""A message for very many recipients: what the sender needs for each of them while it sends."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from picoqmail.layout import CUR
from picoqmail.spool.message import FEW_RECIPIENTS
from rig.hostile import HostileRelay
from rig.server import ThreadServer
from trial import PROGRAM_SECONDS

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from trial import Trial

MOST_OCTETS = 200
"""At most so many of memory for each recipient, as docs/security.md says."""

SOME, MORE = 5_000, 35_000


class CurtRelay(ThreadServer):
    """A relay that has a line of its own for each recipient, and keeps nothing."""

    def __init__(self, code: bytes) -> None:
        super().__init__()
        self._code = code

    def serve(self, connection: socket.socket, number: int) -> None:
        """Take or refuse each recipient, until the client leaves."""
        del number
        with connection.makefile("rb") as file:
            connection.sendall(b"220 curt\r\n")
            replies = b""
            while line := file.readline():
                verb = line[:4].upper()
                if verb == b"RCPT":
                    replies += self._code + b" Of " + line[8:].strip() + b" we say no more\r\n"
                elif verb == b"MAIL":
                    replies += b"250 Go on\r\n"
                elif verb == b"DATA" and self._code == b"250":
                    connection.sendall(replies + b"354 Go on\r\n")
                    while file.readline() != b".\r\n":
                        pass
                    connection.sendall(b"250 Taken\r\n")
                    replies = b""
                elif verb == b"DATA":
                    connection.sendall(replies + b"503 To nobody\r\n")
                    replies = b""
                elif verb == b"EHLO":
                    connection.sendall(b"250-curt\r\n250 PIPELINING\r\n")
                else:
                    replies += b"250 Well\r\n"
                    if verb == b"QUIT":
                        connection.sendall(replies)
                        return


def addresses(count: int) -> list[str]:
    """So many that have little in common."""
    return [f"{(n * 2_654_435_761) % 2**32:x}@{n % 9}.example" for n in range(count)]


# wait4(2) counts what a process was before exec(2), too: this test's process would be the largest.
WEIGHED = """
import os, sys
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024)
"""


def peak_octets(trial: Trial, count: int, code: int) -> int:
    """The most memory that the sender takes for a message to so many."""
    trial.accepted(recipients=addresses(count))
    ran = subprocess.run(
        [sys.executable, "-ISc", WEIGHED, trial.installed.program("send")],
        capture_output=True,
        env=trial.variables(),
        timeout=PROGRAM_SECONDS,
        check=True,
    )
    status, octets = map(int, ran.stdout.split())
    assert code == status
    return octets


@pytest.mark.slow
@pytest.mark.parametrize(("reply", "code"), [(b"250", 0), (b"450", 75)])
def test_the_memory_for_each_recipient(
    trial: Trial, rig: Callable[[CurtRelay], CurtRelay], reply: bytes, code: int
) -> None:
    """The difference of two messages, divided by that of their recipients."""
    trial.setting("relayip", rig(CurtRelay(reply)).address)
    some = peak_octets(trial, SOME, code)
    assert peak_octets(trial, MORE, code) - some < MOST_OCTETS * (MORE - SOME)
    if code:
        *_, large = trial.ids(CUR)
        said = [(one["state"], one["reply"]) for one in trial.sidecar(large)["recipients"]]
        assert [("pending", f"450 Of <{one}> we say no more") for one in addresses(MORE)] == said


def test_a_log_of_very_many_has_several_lines(
    trial: Trial, rig: Callable[[CurtRelay], CurtRelay]
) -> None:
    """Each recipient is named once, in the order of the envelope."""
    trial.setting("relayip", rig(CurtRelay(b"450")).address)
    wanted = addresses(FEW_RECIPIENTS + 1)
    trial.accepted(recipients=wanted)
    assert 75 == trial.send()
    found = trial.events("deferred")
    assert [FEW_RECIPIENTS, 1] == [len(one["recipients"]) for one in found]
    assert wanted == [address for one in found for address in one["recipients"]]


@pytest.mark.slow
def test_a_verp_sender_of_very_many(trial: Trial, rig: Callable[[Any], Any]) -> None:
    """Each of them has a transaction and a sender of its own, as with few."""
    relay = rig(HostileRelay())
    trial.setting("relayip", relay.address)
    wanted = [f"{n}@d.example" for n in range(FEW_RECIPIENTS + 1)]
    trial.accepted("list-@host.example-@[]", wanted)
    assert 0 == trial.send()
    assert {(f"list-{n}=d.example@host.example", (wanted[n],)) for n in range(len(wanted))} == {
        (one.sender, tuple(one.recipients)) for one in relay.messages
    }
    assert len(wanted) == len(relay.messages)


@pytest.mark.slow
def test_routes_of_very_many(trial: Trial, rig: Callable[[Any], Any]) -> None:
    """Each recipient goes to the relay of its domain, once."""
    relays = [rig(HostileRelay()), rig(HostileRelay())]
    trial.setting("relayip", relays[0].address)
    trial.setting("smtproutes", f"two.example:{relays[1].address}")
    wanted = [f"{n}@{('one', 'two')[n % 2]}.example" for n in range(FEW_RECIPIENTS + 1)]
    trial.accepted(recipients=wanted)
    assert 0 == trial.send()
    for number, relay in enumerate(relays):
        got = [address for one in relay.messages for address in one.recipients]
        assert sorted(wanted[number::2]) == sorted(got)
