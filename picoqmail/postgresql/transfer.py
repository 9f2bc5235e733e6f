"""A message of another store comes in, with its ID, its state and its history: once.

The ledger has the IDs of all that came in this way, and of all that have left. It is asked and
written in the transaction that puts the message in. So whoever brings a message over may die at any
moment, and do it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.layout import NEW
from picoqmail.postgresql.insertion import CHUNK_OCTETS, channel_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from picoqmail.postgresql.connections import Connections

# So much of a body is held at once.
_HELD_OCTETS = 8 * CHUNK_OCTETS

# Waits for an acceptance of the same ID whose answer was lost and that is still under way.
_ARRIVE = """
    WITH arrived AS (
        INSERT INTO picoqmail.ledger (id, forgotten_at)
        VALUES (%(id)s, extract(epoch FROM clock_timestamp())::float8 + %(remembered)s)
        ON CONFLICT (id) DO NOTHING RETURNING id
    )
    INSERT INTO picoqmail.message (id, state, due, sidecar, doubt, entered)
    SELECT id, %(state)s, %(due)s, %(sidecar)s, %(doubt)s,
        coalesce(%(entered)s::float8, extract(epoch FROM clock_timestamp())) FROM arrived
    ON CONFLICT (id) DO NOTHING RETURNING id
"""
_FORGET_DRAFT = "DELETE FROM picoqmail.message WHERE id = %(id)s AND state = 'tmp'"
_CHUNK = """
    INSERT INTO picoqmail.chunk (message, number, octets)
    VALUES (%(id)s, %(number)s, %(octets)s)
"""
_SIZE = "UPDATE picoqmail.message SET octets = %(octets)s WHERE id = %(id)s"
_RESULT = "INSERT INTO picoqmail.result (message, octets) VALUES (%(id)s, %(octets)s)"


def bring_in(  # noqa: PLR0913 - all that a message is
    connections: Connections,
    message_id: str,
    state: str,
    sidecar: bytes,
    blocks: Iterable[bytes],
    *,
    due: float,
    result: bytes = b"",
    doubt: bool = False,
    entered: float | None = None,
    remembered: float,
) -> bool:
    """Put a message in, durably; False if it has arrived before, also if it has left since.

    `blocks` is its body, and may be read while the transaction is open. `doubt`: its end of data
    went to a relay, and no reply is recorded. `entered` is when it came into its state (Unix
    seconds), None for now; `remembered` for how many seconds the ledger has it. Raises SpoolError:
    then it may have come in, and the same is to be done again.
    """
    with connections.transaction("bring a message in") as arriving:
        values = {
            "id": message_id,
            "state": state,
            "due": due,
            "sidecar": sidecar,
            "doubt": doubt,
            "entered": entered,
            "remembered": remembered,
        }
        # Whoever wrote a copy of it here has not committed that, and went elsewhere.
        arriving.queue(_FORGET_DRAFT, {"id": message_id})
        if not arriving.run(_ARRIVE, values):
            return False
        held = size = 0
        for number, octets in enumerate(_in_chunks(blocks)):
            arriving.queue(_CHUNK, {"id": message_id, "number": number, "octets": octets})
            held += len(octets)
            size += len(octets)
            if held >= _HELD_OCTETS:
                arriving.send()
                held = 0
        arriving.queue(_SIZE, {"id": message_id, "octets": size})
        if result:
            arriving.queue(_RESULT, {"id": message_id, "octets": result})
        if state == NEW and connections.may_notify():
            channel = channel_of(connections.address.schema)
            arriving.queue("SELECT pg_notify(%(channel)s, '')", {"channel": channel})
    return True


def _in_chunks(blocks: Iterable[bytes]) -> Iterator[bytes]:
    octets = bytearray()
    for block in blocks:
        octets += block
        while len(octets) >= CHUNK_OCTETS:
            yield bytes(octets[:CHUNK_OCTETS])
            del octets[:CHUNK_OCTETS]
    if octets:
        yield bytes(octets)
