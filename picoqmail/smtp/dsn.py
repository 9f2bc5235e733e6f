"""What a sender asked for about reports on its message (RFC 3461), as sidecars keep it. Pure.

The rule of this module: a sidecar may hold anything under `dsn`. What makes no sense counts as not
asked for.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def notify(dsn: object) -> list[str]:
    """Return the words of NOTIFY in upper case; none if it was not given."""
    text = str(_parameters(dsn).get("notify") or "").upper().replace(" ", "")
    return text.split(",") if text else []


def ret(dsn: object) -> str:
    """Return RET, `FULL` or `HDRS`; `""` if it was not given."""
    text = str(_parameters(dsn).get("ret") or "").upper()
    return text if text in ("FULL", "HDRS") else ""


def envelope_id(dsn: object) -> str:
    """Return ENVID, `""` if it was not given."""
    return str(_parameters(dsn).get("envid") or "")


def original_recipient(dsn: object, index: int) -> tuple[str, str] | None:
    """Return ORCPT of the recipient at an index: type and address; None if it was not given."""
    given = _parameters(dsn).get("orcpt")
    if isinstance(given, list | tuple):
        given = given[index] if index < len(given) else None
    if not given:
        return None
    kind, mark, address = str(given).partition(";")
    return (kind, address) if mark else ("rfc822", kind)


def _parameters(dsn: object) -> dict[str, Any]:
    return dsn if isinstance(dsn, dict) else {}
