"""Reading JSON with little start-up: the scanner of the json module without its Python part. Pure.

`_json` is what json itself reads with. What json puts around it compiles patterns when it is
imported, and would be a twelfth of the start of a sender, which starts for nearly every mail.
"""

from __future__ import annotations

from _json import make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def read_json(text: str) -> Any:  # noqa: ANN401 - whatever it says
    """Return the value of a JSON text, which must be one that can be written again.

    So there is no NaN and no number beyond a float (RFC 8259 6). Raises ValueError, RecursionError.
    """
    text = text.strip(" \t\r\n")
    try:
        value, end = _scan(text, 0)
    except StopIteration as exc:
        raise ValueError(f"there is no value at character {exc.value}") from None
    except (SystemError, ImportError):
        # Other errors are of a class of json.decoder. Python 3.11 ends in SystemError unless that
        # is imported; later ones import it, which may fail.
        raise ValueError("it is cut or malformed") from None
    if end < len(text):
        raise ValueError(f"there is more than one value, from character {end} on")
    return value


def _finite(text: str) -> float:
    """Return a number with a fraction or exponent."""
    value = float(text)
    # Infinity less itself is not a number, and no number is equal to that.
    if value - value != 0:
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


class _Strict:
    """What the scanner asks of a json.JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = staticmethod(_finite)
    parse_int = int
    parse_constant = staticmethod(_refuse_constant)


_scan = make_scanner(_Strict)  # type: ignore[arg-type] # it only reads the above
