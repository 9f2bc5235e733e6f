"""What delivery, administration and the ways in ask of a store, whichever engine it has.

A store keeps messages from the yes to the last recipient. `DirectoryStore` (directory.py) is the
default and the heart; `PostgresStore` (postgresql/store.py) serves several hosts. Both keep the
promises of INTERNALS.md, and one suite of tests runs on both (tests/store/conformance).

The rule of this module: types only, nothing is imported from it at run time. A verb is here if code
above the stores calls it; what only one engine needs is not. Times are Unix seconds of the store's
`clock`, which is that of the host or that of the database server. A failure of the engine is a
SpoolError, which is temporary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, Self

    from picoqmail.errors import SpoolError
    from picoqmail.home.limits import Limits
    from picoqmail.home.values import RateLimit
    from picoqmail.ledger.report_limit import Overdue
    from picoqmail.ledger.routes import Outage
    from picoqmail.smtp.lessons import Lessons
    from picoqmail.spool.figures import Figures
    from picoqmail.spool.message import Message


class ClaimedMessage(Protocol):
    """A message that this process alone may change, until `release` or the end of the process."""

    @property
    def message(self) -> Message:
        """What is kept of it, as it was when it was claimed."""

    @property
    def state(self) -> str:
        """Where it is: new, cur or undelivered."""

    @property
    def newlines(self) -> int:
        """How many LF its body has."""

    @property
    def eight_bit(self) -> bool:
        """Whether an octet of its body is over 127."""

    @property
    def was_in_doubt(self) -> bool:
        """Whether an earlier sender died between the end of the data and the reply.

        Only until the message counts it.
        """

    @property
    def has_progress(self) -> bool:
        """Whether outcomes are noted that the sidecar does not contain."""

    @property
    def size(self) -> int:
        """Octets of the body."""

    @property
    def is_marked(self) -> bool:
        """Whether the mark of doubt is there. Raises OSError."""

    def blocks(self) -> Iterator[bytes]:
        """Yield the body's octets. Raises OSError."""

    def mark_in_doubt(self) -> None:
        """Leave a mark that outlives this process: the end of the data is sent now.

        Raises OSError; then the end of the data must not be sent. LostClaimError, which is one,
        means that the message may be another's by now.
        """

    def clear_doubt(self) -> None:
        """Take the mark back: the reply came. Raises OSError."""

    def doubt_counted(self) -> ClaimedMessage:
        """Return the claim for a record that counts what an earlier sender left in doubt.

        That record takes the mark of doubt back. Any other leaves it, unless this process set it.
        """

    def has_survived(self, *, is_removed: bool = False) -> None:
        """Note that an attempt was recorded: no run died of this message."""

    def release(self) -> None:
        """Release the message; the claim cannot be used any more."""


class IncomingMessage(Protocol):
    """A message on its way into a store; the end of its `with` block takes it back.

    Unless it was committed. `size` counts its octets so far, our Received: line included.
    """

    @property
    def id(self) -> str:
        """Its ID."""

    @property
    def size(self) -> int:
        """Octets so far."""

    @property
    def committed(self) -> bool:
        """Whether it was accepted."""

    def write(self, data: bytes) -> None:
        """Append octets to the body. Raises SpoolError, MessageTooLargeError."""

    def commit(
        self, sender: str, recipients: list[str], extra: dict[str, Any] | None = None
    ) -> str:
        """Make the message durable and visible; return its ID. Raises SpoolError."""

    def prepare(
        self,
        sender: str,
        recipients: list[str],
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Do all that can fail for want of room or rights, still invisible. Raises SpoolError."""

    def abort(self) -> None:
        """Take everything back; nothing if the message was committed. Raises nothing."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class Routes(Protocol):
    """Which routes are down, for all runs on all hosts."""

    def read(self) -> dict[str, Outage]:
        """Return the routes that are down, by name. Raises SpoolError."""

    def change(self, name: str, how: Callable[[Outage | None], Outage | None]) -> Outage | None:
        """Replace what is noted of a route by what `how` makes of it, and return that.

        None means that it is not down. Nobody else changes it meanwhile. Raises SpoolError.
        """


class RelayNotes(Protocol):
    """What was learnt of relays; it saves detours and loses no mail."""

    def read(self, now: float) -> dict[str, dict[str, tuple[str, int]]]:
        """Return for each relay its facts, each with its value and when it was learnt."""

    def load(self, now: float) -> dict[str, Lessons]:
        """Return what is known of each relay, by its name. Raises SpoolError."""

    def save(self, lessons: Mapping[str, Lessons], now: float) -> list[tuple[str, str]]:
        """Add what was learnt since; return a sentence for each relay. Raises SpoolError."""


class ReportLimit(Protocol):
    """So many reports an hour for one address, and the rest in one digest."""

    def may_report(self, address: str, now: float) -> bool:
        """Say whether one more may be made now, and count it if so. Raises SpoolError."""

    def keep(self, address: str, failures: Iterable[Mapping[str, Any]], now: float) -> None:
        """Keep failures for the digest, durably. Raises SpoolError."""

    def overdue(self, now: float) -> list[str]:
        """Return the names of what is to become a digest. Raises SpoolError."""

    def take(self, name: str, digest: str) -> Overdue | None:
        """Take it for the digest of this ID; None if another process has it. Raises SpoolError."""

    def finish(self, name: str) -> None:
        """Remove it: its digest was made, or nothing was kept. Raises SpoolError."""


class Totals(Protocol):
    """Counts of results since the store was made, for people and graphs."""

    def read(self) -> dict[str, int]:
        """Return all of them, and `last_delivery`, 0 if there was none."""

    def add(self, counts: Mapping[str, int], now: int) -> None:
        """Add to them. Raises OSError."""


class Store(Protocol):
    """Where mail is kept. Methods raise SpoolError unless they say otherwise."""

    @property
    def location(self) -> str:
        """What people are shown: a path, or a URL without its password."""

    @property
    def clock(self) -> Callable[[], float]:
        """The time that due times are compared with."""

    # --- The way in ---

    def incoming(
        self, limits: Limits, *, program: str, uid: int, pid: int, now_ns: int = 0
    ) -> IncomingMessage:
        """Begin a message. `now_ns` is its time, Unix nanoseconds of the store; 0 for now."""

    def collect(self, limits: Limits, most: int, on_trouble: Callable[[str], None]) -> list[str]:
        """Bring in mail that this host has accepted elsewhere; return the IDs that came.

        At most so many messages of each user. What prevents single ones is told to `on_trouble`.
        """

    def bring_in(
        self, message: Message, state: str, body: ClaimedMessage, result: str = ""
    ) -> bool:
        """Put a message of another store into a state, durably; False if it has arrived before.

        It keeps its ID. What was brought in is known for longer than a message lives, also after it
        has left this store.
        """

    # --- What is due ---

    def due(self, most: int, states: Iterable[str], skip: Iterable[str] = ()) -> list[str]:
        """Return the next messages that are due, oldest first, without a lock.

        Those of `skip` are left out, and as a rule those that another process has.
        """

    def next_due(self) -> float | None:
        """Return when the next message is due, None if none waits."""

    def wait(self, seconds: float, is_stopped: Callable[[], bool]) -> None:
        """Wait until somebody says that there is mail, at most so long, or until `is_stopped`."""

    # --- Delivery ---

    def claim(
        self,
        message_id: str,
        states: Iterable[str] = ...,
        *,
        in_hand: bool = False,
        suspects: bool = False,
    ) -> ClaimedMessage | None:
        """Take a message; None if another has it, or it is in no such state, or was put aside.

        `in_hand` marks it until its release, for runs that might die of it. Raises RunDiedError if
        one did, unless that is known and `suspects` says that such messages are wanted.
        """

    def renew(self) -> None:
        """Tell the engine that the claims of this process are still in use."""

    def remove(self, claim: ClaimedMessage) -> None:
        """Remove a message that is done. Durable at the latest with `flush`."""

    def hand_over(self, claim: ClaimedMessage) -> None:
        """Remove a message that another store has now; it may come back here. As `remove`."""

    def record(
        self, claim: ClaimedMessage, message: Message, state: str, result: str = ""
    ) -> ClaimedMessage:
        """Replace what is known of a message, durably, in `state`; return the new claim.

        `result` is appended to what relays said of it.
        """

    def note_progress(
        self,
        claim: ClaimedMessage,
        results: Mapping[int, tuple[str, str]],
        *,
        is_synced: bool = True,
    ) -> ClaimedMessage:
        """Note outcomes of some recipients: pairs of state and reply by index.

        The state may be `in_doubt`: the end of the data is sent now. What is not `is_synced`
        outlives this process, and need not survive power loss.
        """

    def doubts(self, claim: ClaimedMessage) -> dict[int, int]:
        """Return whose transactions an earlier run left without a reply: how many, by index.

        Empty where that was not noted, as for a message of one transaction.
        """

    def flush(self) -> None:
        """Make every removal and move so far durable."""

    def put_off(self, message_id: str, when: int) -> None:
        """Let runs pass over a message until `when`, without reading or rewriting it."""

    def repeat_due_time(self, claim: ClaimedMessage) -> None:
        """Correct what the engine remembers of when a message is due."""

    def gather(self, claim: ClaimedMessage) -> None:
        """Finish a move that power loss cut short."""

    def sync(self, state: str) -> None:
        """Make sure that what can be seen in a state is also durable."""

    # --- Cleaning ---

    def sweep(self, found: Iterable[str]) -> tuple[list[str], list[SpoolError]]:
        """Remove leftovers of programs that died; return what went, and errors.

        `found` are those that a look at the store found old enough.
        """

    # --- Reading, without a lock ---

    def find(self, name: str) -> str:
        """Return the ID that an ID or a path names. Raises NoSuchMessageError."""

    def where(self, message_id: str) -> list[str]:
        """Return the states that a message is in; more than one only after a crash."""

    def is_whole(self, message_id: str) -> bool:
        """Say whether a message is there, with its body."""

    def read(self, message_id: str, hint: str = "") -> tuple[str, Message]:
        """Return state and message. Raises NoSuchMessageError, DamagedMessageError."""

    def sidecar(self, message_id: str, state: str) -> bytes | None:
        """Return what is kept of a message beside its body, damaged or not; None if it is gone."""

    def body(self, message_id: str) -> Iterator[bytes]:
        """Yield the body's octets, damaged or not. Raises DamagedMessageError if there is none."""

    def check_body(self, message: Message) -> None:
        """Compare a body with what was accepted. Raises DamagedMessageError."""

    def read_result(self, message_id: str) -> str:
        """Return what relays said of a message, "" if nothing was written. Raises OSError."""

    def names(self) -> dict[str, str]:
        """Return the IDs of all messages, each with its state, oldest first."""

    def walk(self, *, newest_first: bool = False) -> Iterator[tuple[str, str]]:
        """Yield the same one by one, or the newest first. Raises SpoolError."""

    def figures(self, now: float) -> Figures:
        """Return how much mail there is."""

    # --- Administration ---

    def change(self, claim: ClaimedMessage, outcome: str, note: str, **fields: object) -> Message:
        """Rewrite a claimed message as an administrator wants it, with a line in its history."""

    def destroy(self, message_id: str) -> bool:
        """Remove all of a message; False if another process has it. Raises NoSuchMessageError."""

    def purge(self, seconds: float) -> int:
        """Delete what has lain in undelivered/ for so long; return how many went."""

    # --- What runs leave for later runs ---

    def routes(self, names: Sequence[str] = ()) -> Routes:
        """Return the breaker's notes; `names` are all routes that there are."""

    def pace(self, limit: RateLimit) -> Callable[[], float]:
        """Return what counts a message and says how many seconds to wait first."""

    def report_limit(self, most: int) -> ReportLimit:
        """Return the limit of reports; 0 means none."""

    @property
    def notes(self) -> RelayNotes:
        """What was learnt of relays."""

    @property
    def totals(self) -> Totals:
        """Counts of results."""
