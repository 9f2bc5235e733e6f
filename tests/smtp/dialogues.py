"""Whole dialogues with relays, replayed: what was said, what is waited for, what came of each mail.

`tests/vectors/dialogues.txt` has them. After its name and its messages, a dialogue has the lines of
the relay (`S:`) and other events (`!`). The test replays those, and the rest must come out as it
stands there. `python tests/smtp/dialogues.py` writes the file anew; read the difference.

    C: what the client says          > what it asks of delivery      = a verdict, and its transcript
    .. what it waits for: stage, seconds, number of the wait, number and seconds of the transaction,
       octets written and sent, what is true of it
"""

from __future__ import annotations

import os
import sys
from ast import literal_eval

from attrs import define, field

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from typing import TYPE_CHECKING, Any

from picoqmail.home.secret import RelayPassword
from picoqmail.smtp.conversation import FLUSH, PAUSE, REPLY, TLS, Conversation, SessionOptions
from picoqmail.smtp.lessons import Lessons
from picoqmail.smtp.sasl import Credentials
from picoqmail.smtp.transaction import RelayFault
from scripts import read_scripts, write_scripts
from smtp.scripted import BODY, MemoryBody, MemorySource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from picoqmail.smtp.transaction import Transaction, Verdict

PATH = os.path.join(os.path.dirname(os.path.dirname(__file__)), "vectors", "dialogues.txt")
WAITS = {REPLY: "reply", FLUSH: "flush", TLS: "tls", PAUSE: "pause"}
FLAGS = ("closed", "ready", "secure", "is_holding", "in_transaction", "is_waiting_for_login")
MOST_SHOWN = 200


def dialogues() -> dict[str, list[str]]:
    """Return the lines of each dialogue by its name."""
    return read_scripts(PATH)


def keywords(text: str) -> dict[str, Any]:
    """Return what `a=1 b='c'` says."""
    pairs = (word.partition("=") for word in text.split())
    return {key: literal_eval(value.replace("~", " ")) for key, _, value in pairs}


@define
class Replay:
    """One dialogue, and what came out so far."""

    said: list[str] = field(factory=list)
    source: MemorySource = field(factory=MemorySource)
    conversation: Conversation = field(init=False)
    lessons: Lessons = field(factory=Lessons)
    pause: float = 0.0
    is_kept: bool = False
    """Whether the transport keeps what it is given."""

    def take(self) -> Transaction | None:
        """Give the next message."""
        self.conversation.pause = self.pause
        found = self.source.take()
        self.said.append(f"> take {found.key if found else 'nothing'}")
        return found

    def done(self, transaction: Transaction, verdict: Verdict) -> None:
        """Note a verdict."""
        self.source.done(transaction, verdict)
        results = [f"{one.outcome} {one.text!r}" for one in verdict.results]
        more = [
            f"{name}={value!r}"
            for name, value in (
                ("in_doubt", verdict.in_doubt),
                ("withheld", verdict.withheld),
                ("too_fast", verdict.too_fast),
            )
            if value
        ]
        fault = [shown(verdict.fault)] if verdict.fault is not None else []
        self.said.append(f"= {transaction.key} " + "; ".join([*results, *more, *fault]))
        self.said += [f"  {line}" for line in verdict.transcript]

    def begin(self, options: str) -> None:
        """Begin the conversation; these are the words behind `with`."""
        told = keywords(options)
        secure = told.pop("secure", False)
        self.pause = told.pop("pause", 0.0)
        for name in ("mail_limit", "serves", "chunks"):
            if name in told:
                setattr(self.lessons, name, told.pop(name))
        self.lessons.facts.update(told.pop("facts", {}))
        self.lessons.logging_in.update(told.pop("logging_in", ()))
        if "user" in told:
            secret = RelayPassword(told.pop("password", "hunter2"))
            told["credentials"] = Credentials(told.pop("user"), secret)
        self.conversation = Conversation(
            SessionOptions("me.example", **told),
            self.take,
            self.done,
            "relay:25",
            secure=secure,
            lessons=self.lessons,
        )
        self._state()
        self.conversation.start()
        self._after()

    def add(self, text: str) -> None:
        """Add a message: its recipients, then `sender=`, `size=`, `body=`, `error=`, `mark=`."""
        words = text.split()
        told = keywords(" ".join(word for word in words if "=" in word))
        data = told.pop("body", BODY)
        data = data * told.pop("times", 1)
        error = OSError(5, "I/O error") if told.pop("error", False) else None
        mark = OSError(28, "No space left") if told.pop("mark", False) else None
        recipients = [word for word in words if "=" not in word]
        body = MemoryBody(data, error)
        self.source.add(*recipients, body=body, mark_error=mark, **told)

    def event(self, line: str) -> None:
        """Let something happen."""
        kind, rest = line[:2].strip(), line[2:].strip()
        self.said.append(f"{kind} {rest}")
        if kind == "S:":
            self.conversation.receive(("\r\n".join(rest.split(" \\ ")) + "\r\n").encode())
        else:
            self._other(*rest.partition(" ")[::2])
        self._after()

    def _other(self, what: str, rest: str) -> None:
        conversation = self.conversation
        if what == "octets":
            conversation.receive(literal_eval(rest))
        elif what == "more":
            self.add(rest)
        elif what == "keep":
            self.is_kept = literal_eval(rest)
        elif what == "pause":
            self.pause = literal_eval(rest)
        elif what == "fail":
            conversation.fail(RelayFault("connect", rest))
        elif what == "logged-in":
            self.lessons.logging_in.clear()
            self.lessons.logged_in.add(rest)
        else:
            {
                "eof": conversation.receive_eof,
                "timeout": conversation.timed_out,
                "wake": conversation.wake,
                "flushed": conversation.flushed,
                "tls": conversation.tls_established,
                "let-go": conversation.let_go,
            }[what]()

    def _after(self) -> None:
        """Send what is there, and show what is waited for."""
        conversation = self.conversation
        self.said += clients(b"".join(conversation.output))
        conversation.output = []
        if not self.is_kept:
            conversation.sent = conversation.queued
        self._state()
        self.said += [f"> mark {key}" for event, key in self.source.events if event == "mark"]
        self.source.events = [one for one in self.source.events if one[0] != "mark"]

    def _state(self) -> None:
        one = self.conversation
        flags = [name for name in FLAGS if getattr(one, name)]
        numbers = f"{one.turn} {one.epoch}/{one.total_limit:.9g} {one.queued}-{one.sent}"
        served = f"served={one.served}"
        wait = f"{WAITS[one.want]} {one.stage} {one.limit:.6g}"
        self.said.append(" ".join(["..", wait, numbers, served, *flags]))

    def end(self) -> None:
        """Show what is left of it all."""
        one, lessons = self.conversation, self.lessons
        if one.fault is not None:
            self.said.append(f"# {shown(one.fault)}")
        known = {name: getattr(lessons, name) for name in Lessons.__slots__ if name != "refusals"}
        known["refused"] = sorted(lessons.refusals)
        known["tried"] = {user: sorted(tried) for user, tried in lessons.tried.items()}
        kept = {name: sorted(v) if isinstance(v, set) else v for name, v in known.items() if v}
        self.said.append(f"# {kept}")


def clients(octets: bytes) -> Iterator[str]:
    """Yield what the client said, line by line; long data are counted."""
    for line in octets.decode("latin-1").splitlines()[: MOST_SHOWN // 10]:
        yield f"C: {line[:MOST_SHOWN]}".rstrip()
    if octets.count(b"\n") > MOST_SHOWN // 10:
        yield f"C: ... {len(octets)} octets, the last ones {octets[-20:]!r}"


def shown(fault: RelayFault) -> str:
    """Return a fault in a line."""
    flags = [name for name in ("too_fast", "again", "is_session") if getattr(fault, name)]
    code = f" [{fault.reply.code}]" if fault.reply is not None else ""
    return f"{fault.stage}: {fault.text}{code} {' '.join(flags)}".rstrip()


def replayed(lines: list[str]) -> list[str]:
    """Replay a dialogue; return its lines as they come out."""
    replay = Replay()
    begun = False
    for line in lines:
        if line.startswith("* "):
            replay.said.append(line)
            replay.add(line[2:])
        elif line.startswith("with"):
            replay.said.append(line)
            replay.begin(line[4:])
            begun = True
        elif line[:2] in ("S:", "! "):
            assert begun, line
            replay.event(line)
    replay.end()
    return replay.said


def main() -> None:
    """Write the file anew."""
    write_scripts(PATH, {name: replayed(lines) for name, lines in dialogues().items()})


if __name__ == "__main__":
    main()
