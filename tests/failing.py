"""A function that another process can import: it is in no module of tests."""

from __future__ import annotations

from typing import NoReturn


def fail(error: Exception) -> NoReturn:
    """Raise this error."""
    raise error
