"""`picoqmail move`: all mail of one store goes to another one, message by message.

Each message is locked here, brought in there, and removed here. The new store keeps a ledger of
what arrived, which outlives the messages. So the move may be killed at any time and made again: no
message is lost, and none comes twice. Mail may be sent from both stores meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field

from picoqmail.errors import DamagedMessageError, NoSuchMessageError, PicoqmailError
from picoqmail.layout import STATES
from picoqmail.store.forwarding import bring_over

if TYPE_CHECKING:
    from collections.abc import Callable

    from picoqmail.store.protocol import Store


@define
class Moved:
    """What became of the messages: IDs that went, were busy, or could not be moved and why."""

    gone: list[str] = field(factory=list)
    busy: list[str] = field(factory=list)
    refused: dict[str, str] = field(factory=dict)


def move(source: Store, target: Store, is_stopped: Callable[[], bool] = bool) -> Moved:
    """Move every message of a store, the oldest first; stop soon once `is_stopped` returns True.

    A message that another process has is left, and named as busy. Raises SpoolError if one of the
    stores cannot be used any more.
    """
    moved = Moved()
    for message_id in source.names():
        if is_stopped():
            break
        try:
            claim = source.claim(message_id, STATES)
        except PicoqmailError as exc:
            moved.refused[message_id] = str(exc)
            continue
        if claim is None:
            _note_left(source, message_id, moved)
            continue
        try:
            bring_over(source, target, claim)
            moved.gone.append(message_id)
        finally:
            claim.release()
    source.flush()
    return moved


def _note_left(source: Store, message_id: str, moved: Moved) -> None:
    """Note why a message could not be claimed: it is gone, damaged, or another process has it."""
    try:
        _, message = source.read(message_id)
        source.check_body(message)
    except NoSuchMessageError:
        return
    except DamagedMessageError as exc:
        moved.refused[message_id] = str(exc)
        return
    moved.busy.append(message_id)
