"""A spool for tests, and assertions about the mail in it; no test framework is needed.

with TemporarySpool() as spool:
    program(home=spool.root)
    spool.assert_one(to="b@example.net")
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from typing import TYPE_CHECKING

from attrs import field, frozen

from picoqmail.home.hands import check_way
from picoqmail.layout import DIRECTORIES, PRIVATE_DIRECTORY_MODE
from picoqmail.library.api import Spool

if TYPE_CHECKING:
    from typing import Any, Self

    from picoqmail.admin.selection import Entry


@frozen
class QueuedMail:
    """One mail of a spool: envelope, octets (without our Received line), and the parsed message.

    `not_before` is Unix seconds, None if it may go at once.
    """

    id: str
    sender: str
    recipients: tuple[str, ...]
    raw: bytes = field(repr=False)
    message: EmailMessage = field(repr=False)
    not_before: int | None = None

    @property
    def subject(self) -> str:
        """The subject, decoded; "" without one."""
        return str(self.message["Subject"] or "")

    @property
    def text(self) -> str:
        """The plain text, else the HTML text, "" if there is neither."""
        body = self.message.get_body(("plain", "html"))
        return str(body.get_content()) if isinstance(body, EmailMessage) else ""

    @property
    def attachments(self) -> list[EmailMessage]:
        """The parts that are attachments."""
        return list(self.message.iter_attachments())


class TemporarySpool:
    """A home in a temporary directory, removed at the end of the `with` block.

    `root` is the value for `picoqmail.enqueue(home=...)` and PICOQMAIL_HOME. `environ` are the
    variables that make a program use this home, and that keep it from sending.
    """

    def __init__(self, me: str = "host.example") -> None:
        """`me` is the name of the host. Raises ConfigurationError if TMPDIR is another user's."""
        # Its owner could lead what is made there, by root perhaps, to another place.
        check_way(tempfile.gettempdir(), os.geteuid())
        self.root = tempfile.mkdtemp(prefix="picoqmail-")
        for name in ("control", "bin", *(f"spool/{one}" for one in DIRECTORIES)):
            os.makedirs(f"{self.root}/{name}", mode=PRIVATE_DIRECTORY_MODE)
        self.set("me", me)
        self.environ = {"PICOQMAIL_HOME": self.root, "PICOQMAIL_SEND": "off"}
        self.spool = Spool(self.root, send=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.root)

    def set(self, name: str, value: str) -> None:
        """Write a setting of the home, such as databytes."""
        with open(f"{self.root}/control/{name}", "w", encoding="utf-8") as file:
            file.write(value + "\n")

    @property
    def mails(self) -> list[QueuedMail]:
        """All mail that waits to be sent, oldest first."""
        found = [self._read(one) for one in self.spool.list("new", "cur")]
        return [one for one in found if one is not None]

    def clear(self) -> None:
        """Delete all mail."""
        for one in list(self.spool.list()):
            self.spool.delete(one.id)

    def __len__(self) -> int:
        return len(self.mails)

    def find(
        self, *, to: str | None = None, subject: str | None = None, text: str | None = None
    ) -> list[QueuedMail]:
        """Return the mails that meet all conditions that are given.

        `to` is one of the envelope's recipients, `subject` is the whole subject, and `text` is a
        regular expression that matches in the text.
        """
        return [
            one
            for one in self.mails
            if (to is None or to in one.recipients)
            and (subject is None or subject == one.subject)
            and (text is None or re.search(text, one.text))
        ]

    def assert_one(self, **conditions: Any) -> QueuedMail:  # noqa: ANN401 - those of find
        """Fail unless exactly one mail meets the conditions of `find`; returns it."""
        found = self.find(**conditions)
        if len(found) != 1:
            self._fail(f"{len(found)} mails, not one,", conditions)
        return found[0]

    def assert_count(self, count: int, **conditions: Any) -> list[QueuedMail]:  # noqa: ANN401
        """Fail unless `count` mails meet the conditions of `find`; returns them."""
        found = self.find(**conditions)
        if len(found) != count:
            self._fail(f"{len(found)} mails, not {count},", conditions)
        return found

    def assert_nothing(self, **conditions: Any) -> None:  # noqa: ANN401 - those of find
        """Fail if any mail meets the conditions of `find`."""
        self.assert_count(0, **conditions)

    def _fail(self, what: str, conditions: dict[str, Any]) -> None:
        wanted = ", ".join(f"{name}={value!r}" for name, value in conditions.items()) or "all"
        there = [f"  to {', '.join(one.recipients)}: {one.subject!r}" for one in self.mails]
        listing = "\n".join(there) or "  nothing"
        raise AssertionError(f"{what} for {wanted}; in the spool:\n{listing}")

    def _read(self, entry: Entry) -> QueuedMail | None:
        message = entry.message
        if message is None:
            raise AssertionError(f"{entry.id} is damaged: {entry.damage}")
        octets = b"".join(self.spool.body(entry.id)).partition(b"\n")[2]
        parsed = BytesParser(EmailMessage, policy=policy.default).parsebytes(octets)
        later = message.next_attempt if message.next_attempt > message.created else None
        return QueuedMail(
            id=entry.id,
            sender=message.sender,
            recipients=tuple(one.address for one in message.recipients),
            raw=octets,
            message=parsed,
            not_before=later,
        )
