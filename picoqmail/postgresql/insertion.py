"""A message that is ready, put into the tables: by us, or within a transaction of somebody else.

The rules of this module: it needs no more than something that runs a statement with named values
(`%(name)s`, as psycopg has it). It neither begins nor ends a transaction, and sets nothing. What it
puts in is a message from the instant at which whoever began the transaction commits it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.layout import CUR, NEW
from picoqmail.postgresql.naming import named
from picoqmail.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any, Final

CHUNK_OCTETS = 262144
"""A body is cut into chunks of so many octets; most are one."""

# One round trip for most mails. The chunk takes its message from the row that was just made. The
# notice, if there is to be one, wakes workers at the commit.
_ENTER = """
    WITH entered AS (
        INSERT INTO picoqmail.message (id, state, due, sidecar, entered, octets)
        VALUES (%(id)s, %(state)s, %(due)s, %(sidecar)s::bytea, %(entered)s, %(size)s)
        RETURNING id
    ), body AS (
        INSERT INTO picoqmail.chunk (message, number, octets)
        SELECT id, 0, %(octets)s::bytea FROM entered
        RETURNING message
    )
    SELECT CASE WHEN %(wakes)s THEN pg_notify(%(channel)s, '')::text END,
        CASE WHEN %(lasting)s AND current_setting('synchronous_commit') = 'off'
            THEN set_config('synchronous_commit', 'on', true) END
    FROM body
"""
_MORE = """
    INSERT INTO picoqmail.chunk (message, number, octets)
    VALUES (%(id)s, %(number)s, %(octets)s::bytea)
"""


class ReadyMessage(Value):
    """A message as the tables have it.

    `due` is Unix seconds of the server, `chunks` are the body, cut by `in_chunks`.
    """

    __slots__ = ("id", "state", "due", "sidecar", "chunks")

    def __init__(
        self,
        id: str,  # noqa: A002 - the sidecar's name for it
        state: str,
        due: float,
        sidecar: bytes,
        chunks: Sequence[bytes],
    ) -> None:
        self.id: Final = id
        self.state: Final = state
        self.due: Final = due
        self.sidecar: Final = sidecar
        self.chunks: Final = chunks

    @property
    def size(self) -> int:
        """Octets of the body."""
        return sum(map(len, self.chunks))


def state_and_due(created: int, extra: Mapping[str, Any]) -> tuple[str, int]:
    """Return where a new message belongs, and when it is due: in cur/ if it was given a time."""
    due = int(extra.get("next_attempt", created))
    return (CUR if due > created else NEW), due


def in_chunks(blocks: Iterable[bytes]) -> list[bytes]:
    """Cut octets into chunks, whatever blocks they come in."""
    whole = b"".join(blocks)
    return [whole[i : i + CHUNK_OCTETS] for i in range(0, len(whole), CHUNK_OCTETS)]


def channel_of(schema: str) -> str:
    """Return the name of the channel on which workers are woken."""
    return f"{schema}_mail"


def insert(  # noqa: PLR0913 - how a transaction is to end
    run: Callable[[str, Mapping[str, Any]], object],
    message: ReadyMessage,
    schema: str,
    *,
    entered: float,
    wakes: bool = False,
    lasting: bool = False,
) -> None:
    """Put a message in, by one statement for a body of one chunk.

    `run` runs a statement in the transaction that the caller has begun. `entered` is the server's
    time (Unix seconds). With `wakes` the commit wakes workers: at most once a second in a process,
    for all commits that do so wait for each other. `lasting`: if synchronous_commit is off, it is
    on for this transaction. What `run` raises passes through.
    """
    values: dict[str, Any] = {
        "id": message.id,
        "state": message.state,
        "due": float(message.due),
        "sidecar": message.sidecar,
        "entered": entered,
        "size": message.size,
        "octets": message.chunks[0],
        "channel": channel_of(schema),
        "wakes": wakes,
        "lasting": lasting,
    }
    run(named(_ENTER, schema), values)
    for number in range(1, len(message.chunks)):
        octets = message.chunks[number]
        run(named(_MORE, schema), {"id": message.id, "number": number, "octets": octets})
