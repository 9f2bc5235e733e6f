"""The sidecar: the JSON text of one message's envelope and retry state, both directions. Pure.

Written without the json module, which the once-a-mail programs cannot afford to import; read
with it, by those who deliver. Only builtins: the model (model.py) wraps them.
"""

from __future__ import annotations

from picoqmail.errors import DamagedMessageError
from picoqmail.layout import FORMAT_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from json import JSONDecoder
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
    """The record of a message just accepted; times are Unix seconds, `size` octets."""
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
    """One JSON object in UTF-8, a key a line so that it can be read with `cat`, LF at the end."""
    items = [f"{_text(key)}: {_value(value)}" for key, value in record.items()]
    return ("{\n" + ",\n".join(items) + "\n}\n").encode()


def _value(value: Any) -> str:  # noqa: ANN401, PLR0911 - JSON has seven kinds of value
    if isinstance(value, str):
        return _text(value)
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join([f"{_text(k)}: {_value(v)}" for k, v in value.items()]) + "}"
    if isinstance(value, (list, tuple)):
        separator = ",\n  " if value and isinstance(value[0], dict) else ", "
        return "[" + separator.join([_value(one) for one in value]) + "]"
    raise TypeError(f"{type(value).__name__} has no form in a sidecar")


def _text(text: str) -> str:
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    # isprintable is a fast yes; control characters, and lone surrogates, which UTF-8 cannot
    # carry, are escaped one by one.
    if not text.isprintable():
        text = "".join([c if c.isprintable() else _escape(ord(c)) for c in text])
    return f'"{text}"'


def _escape(code: int) -> str:
    if code > 0xFFFF:
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"


def decode(data: bytes, message_id: str) -> dict[str, Any]:
    """Read a sidecar and check every key that delivery relies on; unknown keys are kept.

    Raises DamagedMessageError, whose text says what is wrong, also for a version from the future.
    """
    try:
        record = _decoder().decode(data.decode())
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
    _check_recipients(record["recipients"])
    if not all(isinstance(event, dict) for event in record["history"]):
        raise DamagedMessageError("its sidecar has no proper value under 'history'")
    for key, value in record.items():
        if value and key != "recipients" and _is_deep(value, _DEPTH_LIMIT):
            raise DamagedMessageError("its sidecar is nested too deeply")
    return record


def _check_values(record: dict[str, Any]) -> None:
    """Check the values one by one, and make times whole."""
    for key, kind in _KINDS.items():
        if not _is_proper(record.get(key), kind):
            raise DamagedMessageError(f"its sidecar has no proper value under {key!a}")
    for key in _TIMES:
        record[key] = int(record[key])


def _check_recipients(recipients: list[Any]) -> None:
    if not recipients:
        raise DamagedMessageError("its sidecar names no recipient")
    for recipient in recipients:
        if (
            not isinstance(recipient, dict)
            or not isinstance(recipient.get("address"), str)
            or recipient.get("state") not in RECIPIENT_STATES
            or not isinstance(recipient.get("reply"), (str, type(None)))
            or (len(recipient) > _RECIPIENT_KEYS and _is_deep(recipient, _DEPTH_LIMIT))
        ):
            raise DamagedMessageError("its sidecar has a recipient without proper values")


def _is_usual(record: dict[str, Any]) -> bool:
    """Say in few steps whether all values are proper, and no time has a fraction: most are so."""
    values = [record.get(key) for key in _KINDS]
    if [type(value) for value in values] != _USUAL:
        return False
    numbers = [value for value in values if type(value) is int]
    return min(numbers) >= 0 and max(numbers) <= _MOST


def _is_proper(value: object, kind: type) -> bool:
    """Say whether a value is of that type exactly (a bool is no int), and no absurd number."""
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


# float stands for a time.
_KINDS: dict[str, type] = {
    "sender": str,
    "recipients": list,
    "created": float,
    "next_attempt": float,
    "expires": float,
    "attempts": int,
    "size": int,
    "crc32": int,
    "held": bool,
    "history": list,
    "origin": dict,
    "revision": int,
}
_USUAL = [int if kind is float else kind for kind in _KINDS.values()]
_TIMES = tuple(key for key, kind in _KINDS.items() if kind is float)
# What every JSON reader keeps exact (RFC 8259 section 6).
_MOST = 2**53 - 1
_DEPTH_LIMIT = 32
_RECIPIENT_KEYS = 3


def _decoder() -> JSONDecoder:
    """A reader of strict JSON; making one takes as long as reading a sidecar with it."""
    global _DECODER  # noqa: PLW0603 - made when first needed, for json costs 3 ms to import
    if _DECODER is None:
        import json

        _DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
    return _DECODER


_DECODER: JSONDecoder | None = None


def _finite(text: str) -> float:
    """A number with a fraction or exponent; too large a one could not be written again."""
    value = float(text)
    # Infinity less itself is not a number, and no number is equal to that.
    if value - value != 0:
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
