"""When does a certificate end? Read from its DER, checked or not. Pure.

The ssl module tells the dates only of certificates that it has verified, and `tls may` verifies
none. What is needed of X.509 (RFC 5280 4.1) is little: skip to `validity`, read its second time.
"""

from __future__ import annotations

import calendar
import time

_SEQUENCE = 0x30
_VERSION = 0xA0
_UTC_TIME = 0x17
_GENERALIZED_TIME = 0x18


def not_after(der: bytes) -> int | None:
    """Unix seconds of the end of a certificate; None if this is none, or has no such date."""
    try:
        certificate = _content(der, 0, _SEQUENCE)
        fields = _content(certificate, 0, _SEQUENCE)
        position = 0
        if fields[0] == _VERSION:
            position = _end(fields, position)
        for _ in range(3):  # serialNumber, signature, issuer
            position = _end(fields, position)
        validity = _content(fields, position, _SEQUENCE)
        position = _end(validity, 0)  # notBefore
        kind = validity[position]
        start, length = _header(validity, position)
        return _seconds(kind, validity[start : start + length].decode("ascii"))
    except (IndexError, ValueError, OverflowError):
        return None


def _header(data: bytes, position: int) -> tuple[int, int]:
    """Where the content of the element at a position starts, and its length (X.690 8.1.3)."""
    length = data[position + 1]
    if length < 0x80:
        return position + 2, length
    count = length & 0x7F
    start = position + 2 + count
    if not count or start > len(data):
        raise ValueError("a length that DER does not have")
    return start, int.from_bytes(data[position + 2 : start])


def _end(data: bytes, position: int) -> int:
    start, length = _header(data, position)
    return start + length


def _content(data: bytes, position: int, kind: int) -> bytes:
    if data[position] != kind:
        raise ValueError("another kind of element")
    start, length = _header(data, position)
    return data[start : start + length]


def _seconds(kind: int, text: str) -> int:
    if kind == _UTC_TIME:
        # RFC 5280 4.1.2.5.1: two digits of the year, from 1950 to 2049.
        text = ("19" if text[:2] >= "50" else "20") + text
    elif kind != _GENERALIZED_TIME:
        raise ValueError("no time")
    return calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ"))
