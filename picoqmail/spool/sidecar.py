"""The sidecar: the JSON text of one message's envelope and retry state, written. Hot, pure.

Without the json module, which is too slow to import for programs that are started once a mail;
delivery reads sidecars with it (sidecar_reading.py). Only builtins: message.py wraps them.
"""

from __future__ import annotations

from picoqmail.layout import FORMAT_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PENDING = "pending"
DELIVERED = "delivered"
FAILED = "failed"
# An extra key: Unix seconds from which on the schedule of attempts counts, instead of `created`.
NOT_BEFORE = "not_before"
RECIPIENT_STATES = (PENDING, DELIVERED, FAILED)


def new_record(  # noqa: PLR0913 - one argument a key of the format
    message_id: str,
    sender: str,
    recipients: list[str],
    *,
    created: int,
    next_attempt: int,
    expires: int,
    size: int,
    crc32: int,
    origin: dict[str, Any],
) -> dict[str, Any]:
    """Return the record of a message just accepted; times are Unix seconds, `size` octets."""
    return {
        "version": FORMAT_VERSION,
        "id": message_id,
        "sender": sender,
        "recipients": [{"address": a, "state": PENDING, "reply": None} for a in recipients],
        "created": created,
        "next_attempt": next_attempt,
        "expires": expires,
        "attempts": 0,
        "size": size,
        "crc32": crc32,
        "held": False,
        "history": [],
        "origin": origin,
        "revision": 0,
    }


def encode(record: dict[str, Any]) -> bytes:
    """Return one JSON object in UTF-8, one line a key, so that it can be read with `cat`."""
    return ("{\n" + ",\n".join(_json_items(record)) + "\n}\n").encode()


def _json_items(record: dict[str, Any]) -> list[str]:
    # A plain name needs no look at its characters; all keys of ours are such names.
    return [
        f'"{key}": {to_json(value)}'
        if key.isidentifier()
        else f"{_json_text(key)}: {to_json(value)}"
        for key, value in record.items()
    ]


# Each object of a list has a line of its own.
_NEXT_OBJECT = ",\n  "
BETWEEN_OBJECTS = _NEXT_OBJECT.encode()


def encode_objects(objects: list[dict[str, Any]]) -> bytes:
    """Return objects as they stand in a list of a record, without its brackets."""
    return to_json(objects)[1:-1].encode()


def to_json(value: Any) -> str:  # noqa: ANN401, PLR0911 - JSON has seven kinds of value
    """Return a value as JSON. Raises TypeError for what has no form in it."""
    if isinstance(value, str):
        return _json_text(value)
    if type(value) is int:
        return str(value)
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(_json_items(value)) + "}"
    if isinstance(value, (list, tuple)):
        separator = _NEXT_OBJECT if value and isinstance(value[0], dict) else ", "
        return "[" + separator.join([to_json(one) for one in value]) + "]"
    raise TypeError(f"{type(value).__name__} has no form in a sidecar")


def _json_text(text: str) -> str:
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    # isprintable accepts most texts quickly. Control characters, and lone surrogates, which UTF-8
    # cannot carry, are escaped one by one.
    if not text.isprintable():
        text = "".join([c if c.isprintable() else _escape_code(ord(c)) for c in text])
    return f'"{text}"'


def _escape_code(code: int) -> str:
    if code > 0xFFFF:
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"
