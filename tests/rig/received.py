"""The messages that a relay of the rig got, in the same form for all relays."""

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
    `recipients` are the text between the angle brackets. `reply` is the relay's reply to the
    content, or None if the client got none.
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
        """The content with Unix line ends, for comparison with the submitted message."""
        return self.content.replace(b"\r\n", b"\n")


@frozen
class Mailbox:
    """The messages of one relay; another thread can wait for them."""

    _messages: list[Received] = field(factory=list)
    _changed: threading.Condition = field(factory=threading.Condition)

    def put(self, message: Received) -> None:
        """File a message, and wake the waiting threads."""
        with self._changed:
            self._messages.append(message)
            self._changed.notify_all()

    def all(self) -> list[Received]:
        """Return the messages so far, in order of arrival."""
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
        """Return all messages as soon as `true()` holds; it is called after each arrival.

        Raises:
            TimeoutError: it did not hold within `seconds`.
        """
        with self._changed:
            if not self._changed.wait_for(true, seconds):
                came = len(self._messages)
                raise TimeoutError(f"not within {seconds} s: {what}; {came} messages came")
            return list(self._messages)
