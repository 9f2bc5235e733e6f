"""What a relay of the rig got: the same record whichever relay it was."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable


@frozen
class Received:
    """One message as it arrived.

    `content` is after dot-unstuffing, with the line ends of the wire (CRLF). `sender` and
    `recipients` are as between the angle brackets. `reply` is the answer that the client was
    given for the content, or None if it got none.
    """

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    mail_parameters: tuple[str, ...] = ()
    rcpt_parameters: tuple[tuple[str, ...], ...] = ()
    helo: str = ""
    connection: int = 0
    user: str | None = None
    tls: bool = False
    reply: str | None = "250"

    @property
    def unix(self) -> bytes:
        """The content with Unix line ends, to be compared with what was handed in."""
        return self.content.replace(b"\r\n", b"\n")


@frozen
class Mailbox:
    """The messages of one relay, to be waited for from another thread."""

    _messages: list[Received] = field(factory=list)
    _changed: threading.Condition = field(factory=threading.Condition)

    def put(self, message: Received) -> None:
        """File a message and wake who waits."""
        with self._changed:
            self._messages.append(message)
            self._changed.notify_all()

    def all(self) -> list[Received]:
        """Return what came so far, in order of arrival."""
        with self._changed:
            return list(self._messages)

    def wait_for(self, count: int, seconds: float = 60) -> list[Received]:
        """Return all messages as soon as there are `count`.

        Raises:
            TimeoutError: there were fewer after `seconds`.
        """

        def enough() -> bool:
            return len(self._messages) >= count

        return self.wait(enough, f"{count} messages", seconds)

    def wait(self, true: Callable[[], bool], what: str, seconds: float) -> list[Received]:
        """Return all messages as soon as `true()`, which is asked after each arrival.

        Raises:
            TimeoutError: it was not within `seconds`.
        """
        with self._changed:
            if not self._changed.wait_for(true, seconds):
                came = len(self._messages)
                raise TimeoutError(f"not within {seconds} s: {what}; {came} messages came")
            return list(self._messages)
