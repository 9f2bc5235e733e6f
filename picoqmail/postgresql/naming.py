"""Statements name our tables `picoqmail.TABLE`; here the schema in use takes that place. Pure."""

from __future__ import annotations

import functools

from picoqmail.postgresql.address import DEFAULT_SCHEMA


@functools.lru_cache(maxsize=512)
def named(text: str, schema: str) -> str:
    """Return statements for another schema. Its name has been checked (address.py).

    Values are never part of `text`, so nothing but names of tables is touched.
    """
    if schema == DEFAULT_SCHEMA:
        return text
    return text.replace(f"{DEFAULT_SCHEMA}.", f'"{schema}".')
