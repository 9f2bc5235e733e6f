"""A message of another store comes into a spool directory, with its ID, its state and its history.

The steps are those of an acceptance with a key (INTERNALS.md): the record of the key says that the
message has arrived, also after it was delivered and is gone. So a copy that was interrupted, and is
made again, comes in once.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, closing

from picoqmail import durable
from picoqmail.errors import SpoolError
from picoqmail.layout import (
    BODY,
    HELD_UNTIL,
    IDEMPOTENCY,
    IN_DOUBT_BIT,
    RESULT,
    SIDECAR,
    TMP,
    UNDELIVERED,
)
from picoqmail.spool.claim import mark
from picoqmail.spool.keys import KeyRecord, name_of
from picoqmail.spool.locks import try_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from picoqmail.spool.message import Message

# Longer than any message lives, as a rule; a copy that is made again later finds no record.
_REMEMBERED_SECONDS = 30 * 86400


def bring_in(  # noqa: PLR0913 - all that a message is
    spool: str,
    message: Message,
    state: str,
    blocks: Iterable[bytes],
    result: str = "",
    *,
    in_doubt: bool = False,
) -> bool:
    """Put a message into a state, durably; False if it has arrived before. Raises SpoolError.

    `blocks` are its body, `result` is what relays said of it. `in_doubt`: a sender died between the
    end of its data and the reply.
    """
    with ExitStack() as undo:
        record = undo.enter_context(closing(KeyRecord(spool, _key_of(message.id))))
        if record.find(time.time()) is not None:
            return False
        try:
            _copy(spool, message, state, blocks, result, record, undo, in_doubt=in_doubt)
        except SpoolError:
            raise
        except OSError as exc:
            raise SpoolError("bring in", f"{spool}/{state}/{message.id}", exc) from exc
    return True


def forget_arrival(spool: str, message_id: str) -> None:
    """Forget, durably, that a message came in: it goes to another store, and may come back.

    Raises SpoolError.
    """
    path = f"{spool}/{IDEMPOTENCY}/{name_of(_key_of(message_id))}"
    try:
        if not durable.is_there(path):
            return
        with closing(KeyRecord(spool, _key_of(message_id))) as record:
            record.forget()
        durable.sync_directory(f"{spool}/{IDEMPOTENCY}")
    except SpoolError:
        raise
    except OSError as exc:
        raise SpoolError("forget the arrival in", path, exc) from exc


def _key_of(message_id: str) -> str:
    return f"arrived {message_id}"


def _copy(  # noqa: PLR0913, PLR0917 - all that a message is
    spool: str,
    message: Message,
    state: str,
    blocks: Iterable[bytes],
    result: str,
    record: KeyRecord,
    undo: ExitStack,
    *,
    in_doubt: bool,
) -> None:
    def at(directory: str, suffix: str) -> str:
        return f"{spool}/{directory}/{message.id}{suffix}"

    for suffix in (SIDECAR, BODY):
        # What a copy that died has left there.
        durable.unlink_if_there(at(TMP, suffix))
    body = durable.create(at(TMP, BODY))
    undo.callback(os.close, body)
    if not try_lock(body):
        raise BlockingIOError(11, "another process has it")
    for block in blocks:
        durable.write_all(body, block)
    if in_doubt:
        mark(body, IN_DOUBT_BIT)
    durable.sync(body)
    due = HELD_UNTIL if message.held else message.next_attempt
    sidecar = durable.create_written(at(TMP, SIDECAR), message.sidecar_blocks(), due)
    try:
        durable.sync(sidecar)
    finally:
        os.close(sidecar)
    if result:
        durable.replace(at(TMP, RESULT), at(UNDELIVERED, RESULT), result.encode(errors="replace"))
        durable.sync_directory(f"{spool}/{UNDELIVERED}")
    durable.sync_directory(f"{spool}/{TMP}")
    record.intend(
        {
            "id": message.id,
            "fingerprint": "",
            "size": message.size,
            "created": message.created,
            "next_attempt": message.next_attempt,
            "expires": int(time.time()) + _REMEMBERED_SECONDS,
        }
    )
    durable.sync_directory(f"{spool}/{IDEMPOTENCY}")
    try:
        durable.link(at(TMP, BODY), at(state, BODY))
    except OSError:
        durable.rename(at(TMP, BODY), at(state, BODY))
    durable.rename(at(TMP, SIDECAR), at(state, SIDECAR))
    durable.sync_directory(f"{spool}/{state}")
    record.arrived()
    durable.unlink_if_there(at(TMP, BODY))
