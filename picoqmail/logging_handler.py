"""A logging handler that mails records. It never blocks, never raises, and limits its mail.

    logging.getLogger().addHandler(
        MailHandler("app@example.org", ["ops@example.org"], subject="{levelname}: {message:.60}")
    )

Records go into a bounded queue, and a thread of the handler moves them into the spool. At most
`burst` mails go out in `period_seconds`. Further records are only counted; the next mail says how
many there were, and quotes the beginning of some. If the spool fails, records wait in the queue, up
to its bound. `lost` counts lost records.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from email.message import EmailMessage
from email.utils import format_datetime, localtime, make_msgid
from typing import TYPE_CHECKING

from picoqmail.library.api import Spool
from picoqmail.message.envelope import check_recipients, check_sender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from picoqmail.library.api import HomeLike

_SUBJECT_LIMIT = 200
_QUOTED = 20
_QUOTED_LENGTH = 200
_PAUSE_SECONDS = 5.0


class MailHandler(logging.Handler):
    """Mails each record of its level (by default ERROR) that passes its filters.

    `sender` and `recipients` go into envelope and header. `subject` is a format string for the
    record's attributes (`str.format`). After `burst` mails in `period_seconds` one summary follows.
    At most `capacity` records wait in memory. `home` and `send` are those of `picoqmail.Spool`.
    Raises EnvelopeError for an address that cannot be sent, before anything is logged.
    """

    def __init__(  # noqa: PLR0913 - each argument is one option
        self,
        sender: str,
        recipients: Sequence[str] | str,
        subject: str = "{levelname}: {message}",
        *,
        level: int = logging.ERROR,
        burst: int = 5,
        period_seconds: float = 300.0,
        capacity: int = 1000,
        home: HomeLike | None = None,
        send: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(level)
        self.sender = check_sender(sender)
        several = [recipients] if isinstance(recipients, str) else list(recipients)
        self.recipients = check_recipients(several)
        self.subject = subject
        self.lost = 0
        self._capacity = capacity
        self._spool = Spool(home, send=send)
        self._clock = clock
        self._limit = _Limit(burst, period_seconds)
        self._waiting: deque[tuple[str, str]] = deque()
        self._suppressed: list[str] = []
        self._suppressed_count = 0
        self._start_anew()
        _every_handler.add(self)

    def _start_anew(self) -> None:
        """Make what a child process does not inherit: the condition and the thread."""
        self._changed = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._closed = False
        self._busy = False

    def emit(self, record: logging.LogRecord) -> None:
        """Format a record, and queue it for the thread."""
        try:
            text = self.format(record)
            subject = self._subject(record)
            with self._changed:
                if len(self._waiting) >= self._capacity:
                    self.lost += 1
                    return
                self._waiting.append((subject, text))
                if self._thread is None and not self._closed:
                    self._thread = threading.Thread(
                        target=self._work, name="picoqmail MailHandler", daemon=True
                    )
                    self._thread.start()
                self._changed.notify_all()
        except Exception:  # noqa: BLE001 - logging never stops the program; handleError obeys raiseExceptions
            self.lost += 1
            self.handleError(record)

    def flush(self, timeout_seconds: float = 5.0) -> None:
        """Wait until all records so far are in the spool, or the time is over."""
        with self._changed:
            if self._thread is not None:
                self._changed.wait_for(
                    lambda: not self._waiting and not self._busy, timeout_seconds
                )

    def close(self) -> None:
        """Move waiting records into the spool, for five seconds at most, and end the thread.

        `logging` calls this at the end of the program.
        """
        self.flush()
        with self._changed:
            self._closed = True
            self.lost += len(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        super().close()

    def _subject(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        text = self.subject.format(**record.__dict__)
        # On one line: otherwise a record could add header lines.
        return " ".join(text.split())[:_SUBJECT_LIMIT]

    # --- The thread ----------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(self._has_work, self._until_summary())
                if self._closed and not self._waiting:
                    return
                self._busy = True
                item = self._waiting.popleft() if self._waiting else None
            if not self._handle(item) and item is not None:
                with self._changed:
                    self._waiting.appendleft(item)
                    self._busy = False
                    self._changed.wait_for(lambda: self._closed, _PAUSE_SECONDS)

    def _has_work(self) -> bool:
        return bool(self._waiting) or self._closed

    def _until_summary(self) -> float | None:
        """Return how long until a summary may be mailed; None if no record was suppressed."""
        if not self._suppressed_count:
            return None
        return max(self._limit.wait_seconds(self._clock()), 0.05)

    def _handle(self, item: tuple[str, str] | None) -> bool:
        """Mail a record, or a summary when its time has come; False to try again later."""
        now = self._clock()
        if item is None:
            if not self._suppressed_count or self._limit.wait_seconds(now) > 0:
                return True
            subject, text = f"{self._suppressed_count} more records", ""
        else:
            subject, text = item
            if self._limit.wait_seconds(now) > 0:
                self._suppressed_count += 1
                if len(self._suppressed) < _QUOTED:
                    self._suppressed.append(text.partition("\n")[0][:_QUOTED_LENGTH])
                return True
        if not self._mail(subject, text + self._told_of_suppressed(bool(text))):
            return False
        self._limit.take(now)
        self._suppressed, self._suppressed_count = [], 0
        return True

    def _told_of_suppressed(self, follows: bool) -> str:  # noqa: FBT001 - a step of one text
        if not self._suppressed_count:
            return ""
        lines = [f"{self._suppressed_count} records before this were not mailed:"]
        lines += [f"  {one}" for one in self._suppressed]
        if self._suppressed_count > len(self._suppressed):
            lines.append(f"  and {self._suppressed_count - len(self._suppressed)} more")
        return ("\n\n" if follows else "") + "\n".join(lines)

    def _mail(self, subject: str, text: str) -> bool:
        try:
            message = EmailMessage()
            message["From"] = self.sender
            message["To"] = ", ".join(self.recipients)
            message["Subject"] = subject.encode("utf-8", "replace").decode()
            message["Date"] = format_datetime(localtime())
            message["Message-ID"] = make_msgid(domain=self.sender.rpartition("@")[2] or None)
            # RFC 3834: no program should reply automatically.
            message["Auto-Submitted"] = "auto-generated"
            message.set_content(text.encode("utf-8", "replace").decode() + "\n")
            self._spool.enqueue(message, self.sender, self.recipients)
        except Exception as exc:  # noqa: BLE001 - whatever the error, the program goes on
            if getattr(exc, "permanent", not isinstance(exc, OSError)):
                self.lost += 1
                return True
            return False
        return True


class _Limit:
    """At most `burst` in `period_seconds`."""

    def __init__(self, burst: int, period_seconds: float) -> None:
        self._period_seconds = period_seconds
        self._taken: deque[float] = deque(maxlen=max(burst, 1))

    def take(self, now: float) -> None:
        """Count one mail."""
        self._taken.append(now)

    def wait_seconds(self, now: float) -> float:
        """Return how long the next mail must wait; 0 or less if it need not."""
        if len(self._taken) < (self._taken.maxlen or 1):
            return 0.0
        return self._taken[0] + self._period_seconds - now


_every_handler: weakref.WeakSet[MailHandler] = weakref.WeakSet()


def _after_fork() -> None:
    """Start anew in a child: it has no thread, and the parent sends the waiting records."""
    for handler in list(_every_handler):
        handler._waiting.clear()  # noqa: SLF001 - this module's own
        handler._start_anew()  # noqa: SLF001


os.register_at_fork(after_in_child=_after_fork)
