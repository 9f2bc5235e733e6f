"""What became of some recipients of a message that takes several transactions: ID.progress.

One line for each transaction: the revision of the sidecar that it counts for, and the outcomes.
Before the end of its data a transaction adds a line with the outcome `in_doubt`. After a crash
this shows whose transactions were in the window of doubt. A later outcome takes it back.
"""

from __future__ import annotations

import posix

from picoqmail import durable
from picoqmail.errors import SpoolError
from picoqmail.layout import PROGRESS
from picoqmail.spool.files import read_lines
from picoqmail.spool.json_reading import read_json
from picoqmail.spool.message import DELIVERED, FAILED, PENDING, draft_of, settled
from picoqmail.spool.sidecar import to_json
from picoqmail.value import evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from picoqmail.spool.files import SpoolFiles
    from picoqmail.spool.message import Message

IN_DOUBT = "in_doubt"
"""The outcome that is noted before the end of the data is sent."""


def append_progress(  # noqa: PLR0913 - a line, and how it is written
    files: SpoolFiles,
    message: Message,
    state: str,
    results: Mapping[int, tuple[str, str]],
    *,
    is_first: bool,
    is_synced: bool = True,
) -> None:
    """Append one line, and sync it; `results` are pairs of state and reply by index.

    So the cost is that of these recipients, and a crash repeats none of them. `is_first` says that
    the file has to be made. A line that is not `is_synced` survives the end of this process, but
    not power loss. Raises SpoolError.
    """
    path = files.join(state, message.id + PROGRESS)
    # A line of its own also where a crash cut the one before.
    line = f"\n{to_json([message.revision, [[i, *r] for i, r in results.items()]])}\n"
    try:
        descriptor = durable.open_append(path)
        try:
            durable.write_all(descriptor, line.encode())
            if is_synced:
                durable.sync(descriptor)
        finally:
            posix.close(descriptor)
        if is_first:
            durable.sync_directory(files.join(state))
    except OSError as exc:
        raise SpoolError("note progress in", path, exc) from exc


def merge_progress(files: SpoolFiles, message: Message, state: str) -> tuple[Message, bool]:
    """Return a message with what an earlier run noted and did not record; and if there was a file.

    Raises OSError.
    """
    if len(message.recipients) == 1:
        # Nothing is noted of a message that goes in one part.
        return message, False
    try:
        return merge_lines(message, read_lines(files.join(state, message.id + PROGRESS))), True
    except FileNotFoundError:
        return message, False


def merge_lines(message: Message, lines: Iterable[bytes]) -> Message:
    """Return a message with the outcomes of those lines that count for its revision."""
    recipients = draft_of(message.recipients)
    for index, noted_state, reply in _noted(message, lines):
        recipient = message.recipients[index]
        if recipient.state == PENDING and noted_state in (DELIVERED, FAILED, PENDING):
            recipients[index] = evolve(recipient, state=noted_state, reply=reply)
    return evolve(message, recipients=settled(recipients))


def read_doubts(files: SpoolFiles, message: Message, state: str) -> dict[int, int]:
    """Return how many transactions of each recipient, by index, ended without an outcome.

    Empty if nothing was noted. Raises OSError.
    """
    if len(message.recipients) == 1:
        return {}
    try:
        return doubts_of_lines(message, read_lines(files.join(state, message.id + PROGRESS)))
    except FileNotFoundError:
        return {}


def doubts_of_lines(message: Message, lines: Iterable[bytes]) -> dict[int, int]:
    """Return the same from those lines that count for the message's revision."""
    doubts: dict[int, int] = {}
    for index, noted_state, _ in _noted(message, lines):
        more = 1 if noted_state == IN_DOUBT else -1
        doubts[index] = max(doubts.get(index, 0) + more, 0)
    return {index: times for index, times in doubts.items() if times}


def _noted(message: Message, lines: Iterable[bytes]) -> Iterator[tuple[int, str, str]]:
    """Yield index, outcome and reply of what counts for this revision."""
    indexes = range(len(message.recipients))
    for line in lines:
        try:
            revision, results = read_json(line.decode())
            noted = [(indexes[i], str(s), str(r)) for i, s, r in results]
        except (ValueError, TypeError, IndexError, RecursionError):
            continue  # The end of a line that a crash cut: nothing relies on it.
        if revision == message.revision:
            yield from noted


def drop_progress(files: SpoolFiles, message_id: str, state: str) -> None:
    """Unlink the file of a message whose sidecar has it all. Raises OSError."""
    if durable.unlink_if_there(files.join(state, message_id + PROGRESS)):
        files.sync_later(state)
