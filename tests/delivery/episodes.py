"""Episodes of delivery, replayed in one process: what was offered, logged, recorded, and counted.

`tests/vectors/episodes.txt` has them. An episode begins with its settings (`set`), its messages
(`mail`) and what else there is; then come its runs (`run`). The test repeats those lines, and the
rest must come out as it stands there. `python tests/delivery/episodes.py` writes the file anew;
read the difference. What the relays do is in the local part of a recipient's address:

    ok no later       each recipient gets 250, 550 or 451 after the data
    lost              the connection breaks in the middle of a message
    early session     it breaks before anything was said, or the relay wants a login: no more mail
    doubt             it breaks behind the final dot
    lmtp              the same, after a 250 for the first recipient
    again             the first time something is in the way that is avoided the second time
    chunk             the same, behind the end of the data
    few               one recipient a transaction
    hindered          the same, and then 451
    blind             its data went along, and it breaks before the relay took the envelope
    unsteady          the same, and then it breaks in the middle
    seven             the relay takes no 8-bit characters
    broken            the mark of doubt cannot be made
    stop              the run is stopped meanwhile
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import sys
import tempfile
from ast import literal_eval
from unittest import mock

from attrs import define, field

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from typing import TYPE_CHECKING, Any

from picoqmail import layout
from picoqmail.delivery import deliver
from picoqmail.delivery.deliver import Delivery, Summary
from picoqmail.errors import PicoqmailError, SpoolError
from picoqmail.home.limits import Limits
from picoqmail.home.settings import load
from picoqmail.layout import BODY, IN_DOUBT_BIT, IN_HAND_BIT, NEW, STATES, SUSPECT_BIT
from picoqmail.relay.lane_options import LaneSummary
from picoqmail.smtp.transaction import UNTRIED, RecipientResult, RelayFault, Verdict
from picoqmail.spool import sidecar
from picoqmail.spool.incoming import Incoming
from picoqmail.spool.message import FEW_RECIPIENTS
from picoqmail.store.directory import DirectoryStore
from scripts import read_scripts, write_scripts
from temporary_home import MESSAGE, TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from picoqmail.delivery.deliver import Outbox
    from picoqmail.smtp.transaction import Outcome, Transaction
    from picoqmail.store.protocol import ClaimedMessage

PATH = os.path.join(os.path.dirname(os.path.dirname(__file__)), "vectors", "episodes.txt")
NOW = 1_700_000_000
MOST_SHOWN = 121
LEVELS = ("debug", "info", "warning", "error")
MARKS = {"doubt": IN_DOUBT_BIT, "hand": IN_HAND_BIT, "suspect": SUSPECT_BIT}
REPLIES: dict[str, tuple[Outcome, str]] = {
    "ok": ("delivered", "250 ok"),
    "no": ("failed", "550 no"),
    "later": ("deferred", "451 later"),
}
FAULTS = {
    "lost": RelayFault("rcpt", "the connection was lost"),
    "early": RelayFault("mail", "the connection was lost"),
    "session": RelayFault("mail", "it wants a login", is_session=True),
    "doubt": RelayFault("final-dot", "no reply"),
    "again": RelayFault("mail", "pipelining", again=True),
    "chunk": RelayFault("final-dot", "no BDAT", again=True),
    "hindered": RelayFault("final-dot", "no BDAT", again=True),
    "broken": None,
    "blind": RelayFault("rcpt", "the connection was lost"),
}
SECOND = {"again": "ok", "chunk": "ok", "hindered": "later", "unsteady": "lost"}
"""What comes the second time."""
TROUBLES: dict[str, Exception] = {
    "disk": SpoolError("read", "FILE", OSError(5, "Input/output error")),
    "ours": ValueError("a mistake of ours"),
}


def keywords(text: str) -> dict[str, Any]:
    """Return what `a=1 b='c'` says."""
    pairs = (word.partition("=") for word in text.split() if "=" in word)
    return {key: literal_eval(value.replace("~", " ")) for key, _, value in pairs}


def episodes() -> dict[str, list[str]]:
    """Return the lines of each episode by its name."""
    return read_scripts(PATH)


def short(value: object) -> str:
    """Return how a value is shown: of a long one the beginning and the length."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}... {len(text)}"


@define
class Recorder:
    """A log that remembers its events."""

    said: list[str]
    level: str = "debug"

    def is_on(self, level: str) -> bool:
        """Say whether a level is written."""
        return LEVELS.index(level) >= LEVELS.index(self.level)

    def event(self, name: str, *, level: str = "info", **facts: object) -> None:
        """Note an event."""
        if self.is_on(level):
            # The size is that of our Received: line, too, whose ID has digits of chance.
            shown = " ".join(f"{k}={short(v)}" for k, v in facts.items() if k != "size")
            self.said.append(f"! {name} {level}: {shown}")


class TroubledStore(DirectoryStore):
    """A store in which a verb may fail once for a message; it tells how progress is noted."""

    troubles: dict[tuple[str, str], Exception]
    said: list[str]

    def _check(self, verb: str, message_id: str) -> None:
        if (trouble := self.troubles.pop((verb, message_id), None)) is not None:
            raise trouble

    def claim(self, message_id: str, *states: Any, **options: Any) -> ClaimedMessage | None:
        """Claim it, or fail."""
        self._check("claim-suspect" if options.get("suspects") else "claim", message_id)
        return super().claim(message_id, *states, **options)

    def doubts(self, claim: ClaimedMessage) -> dict[int, int]:
        """Read them, or fail."""
        self._check("doubts", claim.message.id)
        return super().doubts(claim)

    def record(self, claim: ClaimedMessage, *message: Any, **options: Any) -> ClaimedMessage:
        """Record it, or fail."""
        self._check("record", claim.message.id)
        return super().record(claim, *message, **options)

    def note_progress(
        self,
        claim: ClaimedMessage,
        results: Mapping[int, tuple[str, str]],
        *,
        is_synced: bool = True,
    ) -> ClaimedMessage:
        """Note it, and say so."""
        states = sorted({state for state, _ in results.values()})
        synced = ", synced" if is_synced else ""
        self.said.append(f"> noted of {len(results)}: {' '.join(states)}{synced}")
        self._check(f"note-{states[0]}", claim.message.id)
        return super().note_progress(claim, results, is_synced=is_synced)

    def put_off(self, message_id: str, when: int) -> None:
        """Put it off, or fail."""
        self._check("put_off", message_id)
        super().put_off(message_id, when)

    def repeat_due_time(self, claim: ClaimedMessage) -> None:
        """Repeat it, and say so."""
        self.said.append(f"> hint of {claim.message.id}")
        super().repeat_due_time(claim)


@define
class Episode:
    """One episode, and what came out so far."""

    home: TemporaryHome
    said: list[str] = field(factory=list)
    now: float = NOW
    again: set[str] = field(factory=set)
    """Addresses whose relay has failed once."""
    coming: list[str] = field(factory=list)
    """Messages that come during the run."""
    is_stopped: bool = False
    is_blind: bool = False
    """Whether it cannot be seen what has come."""
    down: set[str] = field(factory=set)
    throttled: set[str] = field(factory=set)
    late_parts: int = deliver._LATE_PARTS
    is_together: bool = False
    """Whether each relay has got a message before any of them replies."""
    under_way: list[Transaction] = field(factory=list)
    troubles: dict[tuple[str, str], Exception] = field(factory=dict)
    locks: list[int] = field(factory=list)
    level: str = "debug"

    def path_free(self, text: str) -> str:
        """Return a text without the place of the home, and without the IDs of reports."""
        return re.sub(r"\b\d{10}\.M\w+\.me\.test", "REPORT", text.replace(self.home.root, "HOME"))

    def mail(self, name: str, rest: str) -> None:
        """Put a message into the spool: recipients, then what its sidecar says besides."""
        told = keywords(rest)
        recipients = [word for word in rest.split() if "=" not in word]
        times = told.pop("times", 1)
        state, age = told.pop("state", NEW), told.pop("age", 10)
        doubts = told.pop("doubts", {})
        states = told.pop("states", {}) | dict.fromkeys(range(told.pop("done", 0)), "delivered")
        incoming = Incoming(
            self.home.spool, Limits("me.test"), program="trial", uid=1000, pid=7, now_ns=NOW * 10**9
        )
        incoming.write(MESSAGE)
        message_id = incoming.commit(told.pop("sender", "s@here.test"), recipients * times)
        created = NOW - age
        new_name = f"{created}.{name}.me.test"
        if states:
            record = self.home.sidecar(message_id)
            for index, recipient_state in states.items():
                record["recipients"][index].update(state=recipient_state, reply="before")
            told["recipients"] = record["recipients"]
        if doubts:
            record = self.home.sidecar(message_id)
            for index, number in doubts.items():
                record["recipients"][index]["doubts"] = number
            told["recipients"] = record["recipients"]
        dates = {"created": created, "next_attempt": created, "expires": created + 604800}
        self.home.edit(message_id, **{**dates, **told})
        self.home.rename(message_id, new_name)
        if len(recipients) * times > FEW_RECIPIENTS:
            # In our own layout, in which that of very many is not held whole.
            path = self.home.path(NEW, new_name)
            record = self.home.sidecar(new_name)
            with open(path, "wb") as file:
                file.write(sidecar.encode(record))
            os.utime(path, (dates["next_attempt"], dates["next_attempt"]))
        if state != NEW:
            for suffix in (BODY, ".json"):
                source, target = (self.home.path(one, new_name, suffix) for one in (NEW, state))
                os.rename(source, target)

    def ids(self) -> list[str]:
        """Return the IDs of all messages."""
        return sorted({one for state in STATES for one in self.home.ids(state)})

    def id_of(self, name: str) -> str:
        """Return the ID of a message."""
        return next(one for one in self.ids() if one.split(".")[1] == name)

    def line(self, line: str) -> None:
        """Do what a line says."""
        self.said.append(line)
        what, _, rest = line.partition(" ")
        name, _, more = rest.partition(" ")
        if what == "set":
            self.home.setting(name, more.replace("\\", "\n"))
        elif what == "mail":
            self.mail(name, more)
        elif what == "mark":
            path = self.home.path(self.home.state(self.id_of(name)), self.id_of(name), BODY)
            os.chmod(path, 0o600 | sum(MARKS[one] for one in more.split()))
        elif what == "note":
            message_id = self.id_of(name)
            path = self.home.path(self.home.state(message_id), message_id, ".progress")
            with open(path, "a", encoding="utf-8") as file:
                file.write(more + "\n")
        elif what == "damage":
            with open(self.home.path(NEW, self.id_of(name), BODY), "ab") as file:
                file.write(b"x")
        elif what == "lock":
            path = self.home.path(self.home.state(self.id_of(name)), self.id_of(name), BODY)
            self.locks.append(os.open(path, os.O_RDONLY))
            fcntl.flock(self.locks[-1], fcntl.LOCK_EX)
        elif what == "trouble":
            self.troubles[name, self.id_of(more.split()[0])] = TROUBLES[more.split()[1]]
        elif what in ("block", "unblock"):
            do = os.mkdir if what == "block" else os.rmdir
            do(f"{self.home.spool}/{name.replace('ID', self.id_of(more))}")
        else:
            self._circumstance(what, rest)

    def _circumstance(self, what: str, rest: str) -> None:
        if what == "down":
            self.down = set(rest.split())
        elif what == "throttled":
            self.throttled = set(rest.split())
        elif what == "late":
            self.late_parts = int(rest)
        elif what == "blind":
            self.is_blind = True
        elif what == "together":
            self.is_together = True
        elif what == "later":
            self.now += int(rest)
        elif what == "quiet":
            self.level = "warning"
        elif what == "come":
            self.coming = [self.id_of(one) for one in rest.split()]
        elif what == "run":
            self.run(**keywords(rest))

    def run(self, *, forced: bool = False, look: bool = False, ids: str = "") -> None:
        """Deliver all that there is, or the messages named."""
        damages: list[str] = []
        store = TroubledStore(
            self.home.spool,
            clock=lambda: self.now,
            on_damage=lambda one: damages.append(f"{one.id} {one.reason}"),
        )
        store.troubles, store.said = self.troubles, self.said
        log: Any = Recorder(self.said, self.level)
        delivery = Delivery(
            store,
            load(self.home.home),
            log,
            lambda boxes: self.serve(delivery, boxes),
            lambda: self.now,
            lambda: self.is_stopped,
        )
        if look:
            delivery.look = self.look
            delivery.take_turns = lambda waiting: sorted(waiting, reverse=True)
        all_ids = [one for one in self.ids() if one not in self.coming]
        wanted = [self.id_of(one) for one in ids.split(",")] if ids else all_ids
        try:
            with mock.patch.object(deliver, "_LATE_PARTS", self.late_parts):
                found = delivery.deliver(wanted, **({"forced": True} if forced else {}))
        except PicoqmailError as exc:
            self.said.append(f"# {self.path_free(str(exc))}")
            found = delivery.summary
        counts = {key: value for key, value in vars(found).items() if value}
        self.said.append(f"# {counts} {Summary() == found}")
        for name in ("busy", "unserved"):
            if getattr(delivery, name):
                self.said.append(f"# {name}: {sorted(getattr(delivery, name))}")
        self.said += [f"# damaged: {one}" for one in damages]
        self.said += self.spool()
        self.is_stopped = False

    def look(self) -> list[str]:
        """Return what has come."""
        if self.is_blind:
            raise TROUBLES["disk"]
        found, self.coming = self.coming, []
        return found

    def spool(self) -> list[str]:
        """Return what is in the spool."""
        lines = []
        for state in STATES:
            for name in self.home.names(state):
                path = f"{self.home.spool}/{state}/{name}"
                mode = os.stat(path).st_mode & 0o777
                if name.endswith(BODY):
                    marks = [one for one, bit in MARKS.items() if mode & bit]
                    lines.append(" ".join([f"  {state}/{name}", *marks]))
                elif name.endswith(".json"):
                    record = self.home.sidecar(name.removesuffix(".json"))
                    due = record["next_attempt"] - int(self.now)
                    hint = os.stat(path).st_mtime - self.now
                    hint_text = "" if state == NEW or hint == due else f" hint {hint:+}"
                    numbers = f"due {due:+} attempts {record['attempts']}"
                    lines.append(f"  {state}/{name} {numbers}{hint_text}")
                    lines += [
                        f"    {one['address']} {one['state']} {one['reply']!r}"
                        + "".join(f" {k}={v!r}" for k, v in one.items() if k in ("doubts", "told"))
                        for one in record["recipients"][:4]
                    ]
                    lines += [f"    {one}" for one in record["history"][-2:]]
                elif not os.path.isdir(path):
                    with open(path, encoding="utf-8") as file:
                        lines.append(f"  {state}/{name}")
                        lines += [f"    | {one}".rstrip() for one in file.read().splitlines()[:12]]
        return lines

    # --- The relays ---

    def serve(self, delivery: Delivery, boxes: Sequence[Outbox]) -> list[LaneSummary]:
        """Act as the relays of these outboxes."""
        offered = [(one.name, one.backlog(), one.is_probe, one.was_throttled) for one in boxes]
        self.said.append(f"> serve {offered}")
        summaries = []
        first: dict[str, Transaction | None] = {}
        if self.is_together:
            first = {box.name: box.take() for box in boxes}
            under_way = [one for one in first.values() if one is not None]
            for one in under_way:
                self.mark(one)
            self.under_way = under_way
        for box in boxes:
            fault: RelayFault | None = None
            is_down = box.name in self.down
            gave_up = is_down
            while not gave_up and (transaction := first.pop(box.name, None) or box.take()):
                found = self.answer(box, transaction)
                fault = found or fault
                gave_up = found in (FAULTS["early"], FAULTS["session"])
            if self.coming and delivery.look_for_more():
                self.said.append(f"> more: {box.backlog()}")
                while transaction := box.take():
                    fault = self.answer(box, transaction) or fault
            if is_down:
                fault = RelayFault("connect", "connection refused")
            summaries.append(
                LaneSummary(
                    box.name,
                    reached=not is_down,
                    gave_up=gave_up,
                    fault=fault,
                    connections=1,
                    too_fast=False,
                    throttled="450 4.7.1 slower" if box.name in self.throttled else "",
                )
            )
        return summaries

    def answer(self, box: Outbox, transaction: Transaction) -> RelayFault | None:
        """Answer one transaction as its first recipient wants it; return the fault."""
        kinds = [one.partition("@")[0].rstrip("0123456789") for one in transaction.recipients]
        kind = kinds[0]
        count = len(kinds)
        shown = transaction.recipients if count < 4 else f"{count} from {transaction.recipients[0]}"
        self.said.append(f"> {box.name} {transaction.sender} {shown} dsn={transaction.dsn}")
        self.said.append(f"> behind it: {box.backlog()}")
        if kind in SECOND:
            if transaction.recipients[0] in self.again:
                kind = SECOND[kind]
            self.again.add(transaction.recipients[0])
        if kind == "unsteady":
            kind = "blind"
        if kind == "seven":
            assert transaction.in_seven_bits is not None
            self.said.append(f"> in seven bits: {type(transaction.in_seven_bits()).__name__}")
            kind = "ok"
        if kind == "stop":
            self.is_stopped = True
            kind = "ok"
        fault = FAULTS.get(kind)
        results = [UNTRIED] * count
        withheld: tuple[int, ...] = ()
        in_doubt = kind in ("doubt", "chunk", "hindered", "lmtp")
        if kind in REPLIES or kind == "blind" or in_doubt:
            self.mark(transaction)
        if kind == "broken":
            os.mkdir(self.progress_of(transaction))
            self.mark(transaction)
            os.rmdir(self.progress_of(transaction))
        if kind in REPLIES:
            replies = [REPLIES.get(one, REPLIES["ok"]) for one in (kind, *kinds[1:])]
            results = [RecipientResult(outcome, None, text) for outcome, text in replies]
        elif kind == "few":
            self.mark(transaction)
            results[0] = RecipientResult("delivered", None, "250 ok")
            withheld = tuple(range(1, count))
        elif kind == "lmtp":
            results[0] = RecipientResult("delivered", None, "250 ok")
            fault = FAULTS["doubt"]
        said = () if kind == "early" else (f"C: MAIL FROM:<{transaction.sender}>",)
        verdict = Verdict(
            tuple(results), fault, in_doubt=in_doubt, transcript=said, relay=box.name,
            withheld=withheld,
        )  # fmt: skip
        box.done(transaction, verdict)
        work: Any = transaction.key.work  # type: ignore[attr-defined]
        if work.open_parts:
            self.said.append(f"> still marked: {work.claim.is_marked}")
        return fault

    def progress_of(self, transaction: Transaction) -> str:
        """Return the path of the progress of a message."""
        message_id = transaction.key.work.claim.message.id  # type: ignore[attr-defined]
        return self.home.path(self.home.state(message_id), message_id, ".progress")

    def mark(self, transaction: Transaction) -> None:
        """Let the end of the data be sent, if it was not."""
        if transaction in self.under_way:
            self.under_way.remove(transaction)
            return
        try:
            transaction.mark_in_doubt()
        except (OSError, PicoqmailError) as exc:
            self.said.append(f"> not marked: {type(exc).__name__}")
        else:
            claim: Any = transaction.body
            self.said.append(f"> marked: {claim.is_marked}")


def replayed(lines: list[str]) -> list[str]:
    """Replay an episode; return its lines as they come out."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with (
        tempfile.TemporaryDirectory(dir=memory) as root,
        # IDs, and with them bodies, are as long each time.
        mock.patch.object(layout, "_sequence", itertools.count(1)),
    ):
        home = TemporaryHome(f"{root}/home").make(relay="one.test")
        home.setting("bounces", "off")
        episode = Episode(home)
        verbs = (
            "set", "mail", "mark", "note", "damage", "block", "unblock", "down", "later", "quiet",
            "come", "run", "lock", "trouble", "throttled", "late", "blind",
            "together",
        )  # fmt: skip
        for line in lines:
            if line.partition(" ")[0] in verbs:
                episode.line(line)
        for lock in episode.locks:
            os.close(lock)
        return [episode.path_free(line) for line in episode.said]


def main() -> None:
    """Write the file anew."""
    write_scripts(PATH, {name: replayed(lines) for name, lines in episodes().items()})


if __name__ == "__main__":
    main()
