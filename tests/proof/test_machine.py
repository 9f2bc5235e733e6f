"""A state machine over the real library: any steps in any order, and each step may die.

The model is simple: a set of messages, the relay's record of each, and how often a message was in
doubt. Everything else is read from the spool, and compared with the model.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from functools import partial
from typing import Any

from attrs import define
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from picoqmail.errors import DamagedMessageError
from picoqmail.layout import DIRECTORIES, IN_DOUBT_BIT
from picoqmail.spool.files import SpoolFiles
from picoqmail.spool.message import Message
from picoqmail.spool.progress import merge_progress
from proof.steps import DIED, Steps, start
from temporary_home import TemporaryHome

STATES_OF_SPOOL = ("undelivered", "cur", "new")
ADDRESSES = ("a@there.test", "b@there.test", "c@there.test")
BEGIN = 1_800_000_000.0
DAY = 86400

outcomes = st.sampled_from(["delivered", "deferred", "failed"])
plans = st.one_of(
    st.lists(outcomes, min_size=1, max_size=4).map(tuple),
    st.sampled_from([("fault",), ("in_doubt",), ("fault", "delivered"), ("in_doubt", "delivered")]),
)
# Most runs are short, so a small number is more often a death inside a run than after it.
deaths = st.one_of(st.just(0), st.integers(1, 12), st.integers(1, 12), st.integers(1, 60))


@define
class Known:
    """A message of the model."""

    recipients: tuple[str, ...]
    doubts: int = 0
    may_be_gone: bool = False


class SpoolMachine(RuleBasedStateMachine):
    """The rules are the actions of people, programs and power on a spool."""

    def __init__(self) -> None:
        """Start with an empty home."""
        super().__init__()
        self.base = tempfile.mkdtemp()
        home = TemporaryHome(f"{self.base}/home")
        self.root = home.root
        self.now = BEGIN
        self.known: dict[str, Known] = {}
        home.make("proof.test", "127.0.0.1:9")
        home.setting("bounces", "off")
        home.setting("log", f"{self.root}/events")
        home.setting("queuelifetime", "100000")

    def teardown(self) -> None:
        """Deliver everything: in the end no message is stuck, and no file is left over."""
        try:
            steps = Steps(self.root, self.now)
            for message_id in list(self.known):
                start(partial(steps.change, "release", message_id)).wait()
            for days in (0, 1, 2):
                later = Steps(self.root, self.now + days * DAY)
                start(partial(later.attempt, ("delivered",), forced=True)).wait()
            self.books_balance()
            old = Steps(self.root, self.now + 400 * DAY)
            start(lambda: old.attempt(("delivered",), forced=True)).wait()
            left = [n for d in ("new", "cur", "tmp") for n in os.listdir(f"{self.root}/spool/{d}")]
            assert [] == left
        finally:
            shutil.rmtree(self.base)

    # --- Rules ------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 3), delay=st.sampled_from([0, 0, 3600]), death=deaths)
    def enqueue(self, count: int, delay: int, death: int) -> None:
        """Submit a message; the program may die, and then it has not reported success."""
        steps = Steps(self.root, self.now)
        recipients = ADDRESSES[:count]
        code, message_id = start(lambda: steps.enqueue(recipients, delay), death % 9).wait()
        if code == 0:
            self.known[message_id] = Known(recipients)
        else:
            assert code == DIED
        self._adopt()

    @rule(plan=plans, forced=st.booleans(), death=deaths)
    def attempt(self, plan: tuple[str, ...], forced: bool, death: int) -> None:  # noqa: FBT001 - hypothesis passes by name
        """Run cron, which may die anywhere."""
        self._run([(plan, forced, death)])

    @rule(forced=st.booleans())
    def two_runners(self, forced: bool) -> None:  # noqa: FBT001 - hypothesis passes by name
        """Run cron twice at the same time: no recipient gets a mail from both."""
        fresh = self._run([(("delivered",), forced, 0), (("delivered",), forced, 0)])
        assert all(count == 1 for count in fresh.values())

    @precondition(lambda self: self.known)
    @rule(
        data=st.data(),
        verb=st.sampled_from(["hold", "release", "retry", "requeue", "delete"]),
        death=deaths,
    )
    def administer(self, data: st.DataObject, verb: str, death: int) -> None:
        """Apply an administrator's verb to one message; this may die, too."""
        message_id = data.draw(st.sampled_from(sorted(self.known)))
        steps = Steps(self.root, self.now)
        code, result = start(lambda: steps.change(verb, message_id), death % 15).wait()
        assert code in (0, DIED)
        if verb == "delete":
            self.known[message_id].may_be_gone = True
        if (code, verb, result) == (0, "hold", "done"):
            assert self._read(message_id)[1].held

    @rule(seconds=st.sampled_from([1, 600, 4000, DAY, 2 * DAY, -600, -DAY, -30 * DAY, 30 * DAY]))
    def jump(self, seconds: int) -> None:
        """Let time pass, or set the clock."""
        self.now += seconds

    # --- What holds always ------------------------------------------------------------------------

    @invariant()
    def books_balance(self) -> None:
        """Each recipient has the mail, or the spool still has it; twice only if in doubt."""
        books = Counter(Steps(self.root, self.now).ledger.read())
        for message_id, known in self.known.items():
            for address in known.recipients:
                count = books[message_id, address]
                assert count <= 1 + known.doubts, f"{message_id} {count} times to {address}"
                if count or known.may_be_gone:
                    continue
                state, message = self._read(message_id)
                (one,) = [r for r in message.recipients if r.address == address]
                assert (state, one.state) in {
                    ("new", "pending"),
                    ("cur", "pending"),
                    ("cur", "failed"),
                    ("undelivered", "failed"),
                }

    # --- Helpers ----------------------------------------------------------------------------------

    def _run(self, runs: list[tuple[tuple[str, ...], bool, int]]) -> Counter[tuple[str, str]]:
        """Run cron several times at once; return the relay's new records."""
        steps = Steps(self.root, self.now)
        before = Counter(steps.ledger.read())
        held = {one for one in self.known if self._is_held(one)}
        children = [
            start(partial(steps.attempt, plan, forced=forced), death)
            for plan, forced, death in runs
        ]
        codes = [child.wait()[0] for child in children]
        assert set(codes) <= {0, DIED}
        fresh = Counter(steps.ledger.read()) - before
        touched = {message_id for message_id, _ in fresh}
        assert not touched & held
        in_doubt = {one for one in touched if self._is_pending(one, fresh)}
        if "in_doubt" not in {word for plan, _, _ in runs for word in plan}:
            assert len(in_doubt) <= codes.count(DIED)
        for message_id in in_doubt:
            assert self._is_marked(message_id), f"{message_id} is in doubt, and nothing says so"
            self.known[message_id].doubts += 1
        return fresh

    def _is_pending(self, message_id: str, fresh: Counter[tuple[str, str]]) -> bool:
        """Say whether a recipient that has the mail could get it again, perhaps by a requeue."""
        found = self._look(message_id)
        if found is None:
            return False
        return any(
            one.state != "delivered" and fresh[message_id, one.address]
            for one in self._with_progress(found[0], found[1]).recipients
        )

    def _is_marked(self, message_id: str) -> bool:
        """Say whether body or history show that the relay may have the message."""
        _, message = self._read(message_id)
        if any(entry.get("outcome") == "in_doubt" for entry in message.history):
            return True
        paths = [f"{self.root}/spool/{one}/{message_id}.eml" for one in STATES_OF_SPOOL]
        return any(os.stat(path).st_mode & IN_DOUBT_BIT for path in paths if os.path.exists(path))

    def _with_progress(self, state: str, message: Message) -> Message:
        merged, _ = merge_progress(SpoolFiles(f"{self.root}/spool"), message, state)
        return merged

    def _is_held(self, message_id: str) -> bool:
        found = self._look(message_id)
        return found is not None and found[1].held

    def _look(self, message_id: str) -> tuple[str, Message] | None:
        """Return the message as the spool has it: the later of two sidecars, with its body."""
        found: list[tuple[str, Message]] = []
        for state in STATES_OF_SPOOL:
            try:
                with open(f"{self.root}/spool/{state}/{message_id}.json", "rb") as file:
                    found.append((state, Message.from_sidecar(file.read(), message_id)))
            except FileNotFoundError:
                continue
        return max(found, key=lambda one: one[1].revision) if found else None

    def _read(self, message_id: str) -> tuple[str, Message]:
        found = self._look(message_id)
        assert found is not None, f"LOST: {message_id}"
        bodies = [
            os.path.getsize(f"{self.root}/spool/{one}/{message_id}.eml")
            for one in DIRECTORIES
            if os.path.exists(f"{self.root}/spool/{one}/{message_id}.eml")
        ]
        assert found[1].size in bodies, f"{message_id} has no body"
        return found

    def _adopt(self) -> None:
        """Add messages to the model whose programs died before they could report success."""
        for state in ("new", "cur"):
            for name in os.listdir(f"{self.root}/spool/{state}"):
                message_id, _, suffix = name.rpartition(".")
                if suffix != "json" or message_id in self.known:
                    continue
                try:
                    found: Any = self._read(message_id)
                except DamagedMessageError as exc:
                    raise AssertionError(f"half a message: {message_id}: {exc}") from exc
                addresses = tuple(one.address for one in found[1].recipients)
                self.known[message_id] = Known(addresses)


TestSpoolMachine = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(
    max_examples=int(os.environ.get("PROOF_EXAMPLES", "40")),
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    database=None,
)
