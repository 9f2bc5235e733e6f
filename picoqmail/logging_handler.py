"""A logging handler that mails records. It never blocks, never raises, and limits its mail.

    logging.getLogger().addHandler(
        MailHandler("App <app@example.org>", ["ops@example.org"], "{levelname}: {message:.60}")
    )

Records go into a bounded queue, and a thread of the handler moves them into the spool. At most
`burst` mails go out in `period_seconds`. Further records are only counted; the next mail says how
many there were, and quotes the beginning of some. If the spool fails, records wait in the queue, up
to its bound. `lost` counts lost records.

The thread and its lock are made with the first record of a process. A server may fork after the
handler was made, and exchange threads for greenlets after that (gevent). Where no thread can be
had, as at the end of a program, the call that logs or closes does the work itself.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, localtime, make_msgid
from typing import TYPE_CHECKING

from picoqmail.errors import EnvelopeError
from picoqmail.importing import importing
from picoqmail.library.api import Spool
from picoqmail.message.addresses import read_list, read_one, write_one
from picoqmail.message.envelope import check_recipients, check_sender

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from picoqmail.library.api import HomeLike
    from picoqmail.library.mail import AddressLike, Recipients

_SUBJECT_LIMIT = 200
_QUOTED = 20
_QUOTED_LENGTH = 200
_PAUSE_SECONDS = 5.0
_CLOSE_SECONDS = 5.0
_RECORD_LIMIT = 256 * 1024
# What a name, a comment or a bracket around an address has, and no address alone.
_NAMED = frozenset('<>()"')


class MailHandler(logging.Handler):
    """Mails each record of its level (by default ERROR) that passes its filters.

    `sender` and `recipients` go into envelope and header, with their names: an address is text,
    such as `App <app@example.org>`, an `email.headerregistry.Address`, or a pair (name, address).
    `subject` is a format string for the record's attributes (`str.format`). After `burst` mails in
    `period_seconds` one summary follows. At most `capacity` records of together `capacity_octets`
    characters wait in memory; one record is cut at 256 KiB. `home` and `send` are those of
    `picoqmail.Spool`. Raises EnvelopeError for an address that cannot be sent, before anything is
    logged.
    """

    def __init__(  # noqa: PLR0913 - each argument is one option
        self,
        sender: AddressLike,
        recipients: Recipients,
        subject: str = "{levelname}: {message}",
        *,
        level: int = logging.ERROR,
        burst: int = 5,
        period_seconds: float = 300.0,
        capacity: int = 1000,
        capacity_octets: int = 8 * 1024 * 1024,
        home: HomeLike | None = None,
        send: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(level)
        raw_sender, self._from = _read(sender, "sender")
        self.sender = check_sender(raw_sender)
        several: Any = recipients
        if isinstance(recipients, (str, Address)):
            several = [recipients]
        read = [_read(one, f"recipient {n}") for n, one in enumerate(several, 1)]
        if not read:
            raise EnvelopeError("there is no recipient: the list is empty")
        self.recipients = check_recipients([raw for raw, _ in read])
        self._to = ", ".join(shown for _, shown in read)
        self.subject = subject
        self.lost = 0
        self._capacity = capacity
        self._capacity_octets = capacity_octets
        self._spool = Spool(home, send=send)
        self._clock = clock
        self._burst = burst
        self._period_seconds = period_seconds
        self._start_anew()
        _every_handler.add(self)

    def _start_anew(self) -> None:
        """Begin with nothing, in this process: what waits or was suppressed is the parent's."""
        self._pid = os.getpid()
        self._limit = _Limit(self._burst, self._period_seconds)
        self._waiting: deque[tuple[str, str]] = deque()
        self._octets = 0
        self._suppressed: list[str] = []
        self._suppressed_count = 0
        self._condition: threading.Condition | None = None
        self._thread: threading.Thread | None = None
        self._is_starting = False
        self._closed = False
        self._busy = False

    @property
    def _changed(self) -> threading.Condition:
        """The condition of this process. Its lock can be taken again: a signal may log too."""
        if self._pid != os.getpid():
            # A server in C forked without Python's knowledge.
            self._start_anew()
        if self._condition is not None:
            return self._condition
        # Not taken each time: logging holds its lock while it waits for the thread in `flush`.
        self.acquire()
        try:
            if self._condition is None:
                self._condition = threading.Condition()
            return self._condition
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record for the thread; only formatting is done here."""
        try:
            text = self.format(record)
            subject = self._subject(record)
            if len(text) > _RECORD_LIMIT:
                text = f"{text[:_RECORD_LIMIT]}\n[{len(text) - _RECORD_LIMIT} characters more]"
            octets = len(text) + len(subject)
            with (changed := self._changed):
                # A signal may come in between, and its handler may log: so nothing that was read
                # before a call is written after it.
                is_full = self._octets + octets > self._capacity_octets
                if is_full or len(self._waiting) >= self._capacity:
                    self.lost += 1
                    return
                self._waiting.append((subject, text))
                self._octets += octets
                has_thread = self._has_thread()
                changed.notify_all()
            if not has_thread:
                self._work_off()
        except Exception:  # noqa: BLE001 - a log never stops the program; handleError obeys raiseExceptions
            self.lost += 1
            self.handleError(record)

    def flush(self, timeout_seconds: float = _CLOSE_SECONDS) -> None:
        """Wait until what was logged so far is in the spool, or the time is over."""
        with (changed := self._changed):
            if not self._waiting and not self._busy:
                return
            if self._has_thread():
                changed.wait_for(lambda: not self._waiting and not self._busy, timeout_seconds)
                return
        self._work_off()

    def close(self) -> None:
        """Bring what waits into the spool, five seconds at most, and end the thread.

        What was suppressed goes out in a summary, whatever the limit says. `logging` calls this at
        the end of the program; a record after that is mailed by the call that logs it.
        """
        self.flush()
        with (changed := self._changed):
            self._closed = True
            changed.notify_all()
            # Another thread may have logged meanwhile, and our thread mails that now.
            is_stuck = not changed.wait_for(lambda: not self._busy, _CLOSE_SECONDS)
        if not is_stuck:
            self._work_off()
            if self._suppressed_count:
                self._summarize()
        with self._changed:
            self.lost += len(self._waiting) + self._suppressed_count
            self._suppressed, self._suppressed_count = [], 0
            self._waiting.clear()
            self._octets = 0
        super().close()

    def _subject(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        text = self.subject.format(**record.__dict__)
        # One line of it: otherwise a line end in a record would add header lines.
        return " ".join(text.split())[:_SUBJECT_LIMIT]

    # --- The thread ----------------------------------------------------------------------------

    def _has_thread(self) -> bool:
        """Whether a thread comes for what waits; start it if need be. The lock is held."""
        if self._closed:
            return False
        if self._thread is not None and self._thread.is_alive():
            return True
        if not _threads_run():
            return False
        if self._is_starting:
            # A signal came while it was started: one is enough.
            return True
        self._is_starting = True
        thread = threading.Thread(target=self._work, name="picoqmail MailHandler", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # The limit of this process or system; or its end, where Python 3.12 starts none.
            return False
        finally:
            self._is_starting = False
        self._thread = thread
        return True

    def _work(self) -> None:
        while True:
            with (changed := self._changed):
                self._busy = False
                changed.notify_all()
                changed.wait_for(self._has_work, self._until_summary())
                if self._closed:
                    return
                self._busy = True
                item = self._take()
            if not self._handle(item) and item is not None:
                with (changed := self._changed):
                    self._put_back(item)
                    self._busy = False
                    changed.wait_for(lambda: self._closed, _PAUSE_SECONDS)

    def _work_off(self) -> None:
        """Do what the thread would do, in this one: once each, until something fails."""
        while True:
            with self._changed:
                item = self._take()
            if item is None:
                return
            if not self._handle(item):
                with self._changed:
                    self._put_back(item)
                return

    def _take(self) -> tuple[str, str] | None:
        if not self._waiting:
            return None
        item = self._waiting.popleft()
        self._octets -= sum(map(len, item))
        return item

    def _put_back(self, item: tuple[str, str]) -> None:
        self._waiting.appendleft(item)
        self._octets += sum(map(len, item))

    def _has_work(self) -> bool:
        return bool(self._waiting) or self._closed

    def _until_summary(self) -> float | None:
        """How long until what was suppressed may be reported; None if there is nothing."""
        if not self._suppressed_count:
            return None
        return max(self._limit.wait_seconds(self._clock()), 0.05)

    def _handle(self, item: tuple[str, str] | None) -> bool:
        """Mail a record, or what was suppressed when its time has come; False to try again."""
        now = self._clock()
        if item is None:
            if self._suppressed_count and self._limit.wait_seconds(now) <= 0:
                self._summarize()
            return True
        subject, text = item
        if self._limit.wait_seconds(now) > 0:
            self._suppressed_count += 1
            if len(self._suppressed) < _QUOTED:
                self._suppressed.append(text.partition("\n")[0][:_QUOTED_LENGTH])
            return True
        return self._mail_and_count(subject, text)

    def _summarize(self) -> None:
        self._mail_and_count(f"{self._suppressed_count} more records", "")

    def _mail_and_count(self, subject: str, text: str) -> bool:
        if not self._mail(subject, text + self._report_of_suppressed(bool(text))):
            return False
        self._limit.take(self._clock())
        self._suppressed, self._suppressed_count = [], 0
        return True

    def _report_of_suppressed(self, follows: bool) -> str:  # noqa: FBT001 - a step of one text
        if not self._suppressed_count:
            return ""
        lines = [f"{self._suppressed_count} records before this were not mailed:"]
        lines += [f"  {one}" for one in self._suppressed]
        if self._suppressed_count > len(self._suppressed):
            lines.append(f"  and {self._suppressed_count - len(self._suppressed)} more")
        return ("\n\n" if follows else "") + "\n".join(lines)

    def _mail(self, subject: str, text: str) -> bool:
        try:
            # The email package imports parts of itself late, which a fork must not cut.
            with importing:
                message = self._message(subject, text)
            recipients = [write_one(one) for one in self.recipients]
            self._spool.enqueue(message, write_one(self.sender), recipients)
        except Exception as exc:  # noqa: BLE001 - whatever the error, the program goes on
            if getattr(exc, "permanent", not isinstance(exc, OSError)):
                self.lost += 1
                return True
            return False
        return True

    def _message(self, subject: str, text: str) -> EmailMessage:
        message = EmailMessage()
        message["From"] = self._from
        message["To"] = self._to
        message["Subject"] = subject.encode("utf-8", "replace").decode()
        message["Date"] = format_datetime(localtime())
        domain = self.sender.rpartition("@")[2]
        message["Message-ID"] = make_msgid(domain=domain if domain.isascii() else "localhost")
        # RFC 3834: no program should reply automatically.
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(text.encode("utf-8", "replace").decode() + "\n")
        return message


def _read(given: AddressLike, what: str) -> tuple[str, str]:
    """The raw address, and how it stands in the header. Raises EnvelopeError."""
    if isinstance(given, str):
        text = " ".join(given.split())
        if _NAMED.isdisjoint(text):
            return read_one(text), text
        found = read_list(what, text)
        if len(found) != 1:
            raise EnvelopeError(f"the {what} {text[:200]!a} is {len(found)} addresses, not one")
        return found[0], text
    if isinstance(given, Address):
        name, address = given.display_name, given.addr_spec
    else:
        name, address = given
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    shown = f'"{quoted}" <{address}>' if name else address
    return read_one(address), " ".join(shown.split())


def _threads_run() -> bool:
    """Whether this server runs threads at all: uWSGI does only if it is configured to."""
    server = sys.modules.get("uwsgi")
    options = getattr(server, "opt", None)
    if not isinstance(options, dict):
        return True
    names = {one.decode() if isinstance(one, bytes) else one for one in options}
    return not names.isdisjoint(("enable-threads", "threads", "gevent", "asyncio"))


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
        handler._start_anew()  # noqa: SLF001 - this module's own


os.register_at_fork(after_in_child=_after_fork)
