"""Reading a sidecar, and checking all that delivery relies on. Pure.

Not in sidecar.py, for the programs that run once a mail only write them.
"""

from __future__ import annotations

from picoqmail.errors import DamagedMessageError
from picoqmail.layout import FORMAT_VERSION
from picoqmail.spool.json_reading import read_json
from picoqmail.spool.sidecar import RECIPIENT_STATES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def decode(data: bytes, message_id: str) -> dict[str, Any]:
    """Read a sidecar and check every key that delivery relies on; unknown keys are kept.

    Raises DamagedMessageError, whose text says what is wrong, also for a version from the future.
    """
    try:
        record = read_json(data.decode())
    except (ValueError, RecursionError) as exc:
        raise DamagedMessageError(f"its sidecar is not JSON: {exc}") from None
    if not isinstance(record, dict):
        raise DamagedMessageError("its sidecar is no JSON object")
    version = record.get("version")
    if type(version) is int and version > FORMAT_VERSION:
        raise DamagedMessageError(
            f"its sidecar has version {version}, and this picoqmail knows {FORMAT_VERSION}: "
            "left as it is; requeue it with the newer picoqmail that wrote it"
        )
    if type(version) is not int or version != FORMAT_VERSION:
        raise DamagedMessageError(f"its sidecar has version {version!r}, not {FORMAT_VERSION}")
    if record.get("id") != message_id:
        raise DamagedMessageError(f"its sidecar belongs to another message, {record.get('id')!a}")
    record.setdefault("revision", 0)
    if not _is_usual(record):
        _check_values(record)
    if not _is_address(record["sender"]):
        raise DamagedMessageError("its sidecar has no proper value under 'sender'")
    check_recipients(record["recipients"])
    if not all(isinstance(event, dict) for event in record["history"]):
        raise DamagedMessageError("its sidecar has no proper value under 'history'")
    if data.count(b"{") + data.count(b"[") > _DEPTH_LIMIT:
        # Otherwise it cannot be.
        for key, value in record.items():
            if value and key != "recipients" and _is_deep(value, _DEPTH_LIMIT):
                raise DamagedMessageError("its sidecar is nested too deeply")
    return record


def _is_address(text: str) -> bool:
    """Say whether a text can be sent as an address: UTF-8, and nothing in it ends a line."""
    return text.isprintable() or not any(
        c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c < "\ue000" for c in text
    )


def _check_values(record: dict[str, Any]) -> None:
    """Check the values one by one, and make times whole."""
    for key, kind in _KINDS.items():
        if not _is_proper(record.get(key), kind):
            raise DamagedMessageError(f"its sidecar has no proper value under {key!a}")
    for key in _TIMES:
        record[key] = int(record[key])


def check_recipients(recipients: list[Any]) -> None:
    """Check each object of the list. Raises DamagedMessageError."""
    if not recipients:
        raise DamagedMessageError("its sidecar names no recipient")
    for recipient in recipients:
        if (
            not isinstance(recipient, dict)
            or not isinstance(recipient.get("address"), str)
            or not _is_address(recipient["address"])
            or recipient.get("state") not in RECIPIENT_STATES
            or not isinstance(recipient.get("reply"), (str, type(None)))
            or (len(recipient) > _RECIPIENT_KEYS and _is_deep(recipient, _DEPTH_LIMIT))
        ):
            raise DamagedMessageError("its sidecar has a recipient without proper values")


def _is_usual(record: dict[str, Any]) -> bool:
    """Say in few steps whether all values are proper, and no time has a fraction: most are so."""
    values: list[Any] = list(map(record.get, _KINDS))
    if list(map(type, values)) != _USUAL:
        return False
    numbers: list[int] = values[:_NUMBERS]
    return min(numbers) >= 0 and max(numbers) <= _MOST


def _is_proper(value: object, kind: type) -> bool:
    """Say whether a value is of that type exactly (a bool is not an int), and no absurd number."""
    if kind is int and type(value) is int:
        return 0 <= value <= _MOST
    # A time may have a fraction; infinity and the like fail the comparison.
    if kind is float:
        return type(value) in (int, float) and 0 <= value <= _MOST  # type: ignore[operator]
    return type(value) is kind


def _is_deep(value: object, levels: int) -> bool:
    """Say whether a value has more levels than that: to write it again would end in recursion."""
    if isinstance(value, dict):
        return not levels or any(_is_deep(one, levels - 1) for one in value.values())
    if isinstance(value, list):
        return not levels or any(_is_deep(one, levels - 1) for one in value)
    return False


# float stands for a time. The numbers come first.
_KINDS: dict[str, type] = {
    "created": float,
    "next_attempt": float,
    "expires": float,
    "attempts": int,
    "size": int,
    "crc32": int,
    "revision": int,
    "sender": str,
    "recipients": list,
    "held": bool,
    "history": list,
    "origin": dict,
}
_USUAL = [int if kind is float else kind for kind in _KINDS.values()]
_NUMBERS = _USUAL.count(int)
_TIMES = tuple(key for key, kind in _KINDS.items() if kind is float)
# What every JSON reader keeps exact (RFC 8259 section 6).
_MOST = 2**53 - 1
_DEPTH_LIMIT = 32
_RECIPIENT_KEYS = 3
