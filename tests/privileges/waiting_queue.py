"""A queue program that waits for its message: time to look at it from outside."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from privileges.host import SECONDS, start_as, wait_for
from rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from privileges.host import Host

# The number of read(2): that of x86-64, else that of all newer architectures.
_READ = "0" if os.uname().machine == "x86_64" else "63"


class WaitingQueue:
    """The set-id program, started by mallory with pipes on 0 and 1, already another user's."""

    def __init__(
        self,
        host: Host,
        prepare: Callable[[], object] | None = None,
        *,
        groups: Sequence[int] = (),
    ) -> None:
        """`prepare` is called in the child as mallory, before the program is executed."""
        message, self._message = os.pipe()
        envelope, self._envelope = os.pipe()
        self._owner = host.owner.pw_uid
        with open(os.devnull, "wb") as null:
            standard = (message, envelope, null.fileno())
            self.pid = start_as(
                host.mallory,
                [host.queue],
                standard,
                environ={},
                prepare=prepare,
                cwd="/",
                groups=groups,
            )
        os.close(message)
        os.close(envelope)
        self._ended = False

    def __enter__(self) -> Self:
        try:
            wait_until(self._is_reading, "the program reads the message", SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ended:
            for descriptor in (self._message, self._envelope):
                os.close(descriptor)
            wait_for(self.pid)

    def _is_reading(self) -> bool:
        """Say whether Python is there and waits in read(0)."""
        if self.status()["State"].startswith("Z"):
            raise RuntimeError("the program ended at once")
        with open(f"/proc/{self.pid}/syscall", encoding="ascii") as file:
            words = file.read().split()
        return words[:2] == [_READ, "0x0"] and self.status()["Name"].startswith("python")

    def status(self) -> dict[str, str]:
        """What /proc tells of it."""
        with open(f"/proc/{self.pid}/status", encoding="utf-8") as file:
            return {
                name: value.strip() for name, _, value in (line.partition(":") for line in file)
            }

    def open_files(self) -> list[str]:
        """What its descriptors are, in order of their numbers."""
        directory = f"/proc/{self.pid}/fd"
        numbers = sorted(map(int, os.listdir(directory)))
        return [os.readlink(f"{directory}/{number}") for number in numbers]

    def finish(self, message: bytes, envelope: bytes) -> int:
        """Give it what it waits for; returns its exit code."""
        for descriptor, data in ((self._message, message), (self._envelope, envelope)):
            os.write(descriptor, data)
            os.close(descriptor)
        self._ended = True
        return wait_for(self.pid)
