"""The protocol rules that a strict receiver checks: pure functions from bytes to complaints.

Sources: RFC 5321 (4.1.2 syntax, 4.5.3.1 sizes, 2.3.8 lines), RFC 1870 SIZE, RFC 6152 8BITMIME,
RFC 6531 SMTPUTF8, RFC 3461 DSN, RFC 3030 CHUNKING.
"""

from __future__ import annotations

import re

# RFC 5321 4.5.3.1.4; extensions add to it (RFC 1870: 26, RFC 6531: 10, RFC 3461: 100 and 500 ...).
COMMAND_OCTETS = 512
EXTENSION_OCTETS = 1200
# RFC 5321 4.5.3.1.6, with the CRLF.
TEXT_LINE_OCTETS = 1000

PATH = rb"<(?P<path>(?:[^<>\"\\\x00-\x20\x7f]|\"(?:[^\"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*\")*)>"
PARAMETER = rb"[A-Za-z0-9][A-Za-z0-9-]*(?:=[!-<>-~\x80-\xff]+)?"
MAIL = re.compile(rb"MAIL FROM:" + PATH + rb"(?P<more>(?: " + PARAMETER + rb")*)", re.IGNORECASE)
RCPT = re.compile(rb"RCPT TO:" + PATH + rb"(?P<more>(?: " + PARAMETER + rb")*)", re.IGNORECASE)

# Parameter of MAIL or RCPT: the extension that must have been offered first.
NEEDS = {
    "SIZE": "SIZE",
    "BODY": "8BITMIME",
    "SMTPUTF8": "SMTPUTF8",
    "AUTH": "AUTH",
    "RET": "DSN",
    "ENVID": "DSN",
    "NOTIFY": "DSN",
    "ORCPT": "DSN",
}

# RFC 2920 3.1: commands that must end a group, because their reply changes what may follow.
LAST_OF_A_GROUP = frozenset({"EHLO", "DATA", "VRFY", "EXPN", "TURN", "QUIT", "NOOP", "STARTTLS"})


def command_complaints(line: bytes, *, utf8: bool) -> list[str]:
    """Return what is wrong with one command line, which has no line end."""
    complaints = []
    if not line.endswith(b"\r\n"):
        complaints.append(f"a command that does not end with CRLF: {line!r}")
    text = line.rstrip(b"\r\n")
    if len(line) > COMMAND_OCTETS + EXTENSION_OCTETS:
        complaints.append(f"a command of {len(line)} octets")
    if any(byte < 0x20 or byte == 0x7F for byte in text):
        complaints.append(f"a control character in a command: {text!r}")
    if not utf8 and not text.isascii():
        complaints.append(f"a command with 8-bit characters, without SMTPUTF8: {text!r}")
    return complaints


def parameter_complaints(parameters: tuple[str, ...], offers: frozenset[str]) -> list[str]:
    """Return which parameters of MAIL or RCPT use an extension that was not offered."""
    names = [parameter.partition("=")[0].upper() for parameter in parameters]
    return [
        f"parameter {name} although {NEEDS.get(name, 'its extension')} was not offered"
        for name in names
        if NEEDS.get(name) not in offers
    ]


def content_complaints(wire: bytes, mail_parameters: tuple[str, ...], *, binary: bool) -> list[str]:
    """Return what is wrong with the data, as received from the wire.

    `wire` still has its stuffed dots, but not the final one. `binary` is true for BDAT.
    """
    complaints = []
    if b"\n" in wire.replace(b"\r\n", b""):
        complaints.append("a bare LF in the data")
    if b"\r" in wire.replace(b"\r\n", b""):
        complaints.append("a bare CR in the data")
    if b"\0" in wire:
        complaints.append("a NUL in the data")
    text = wire if binary else unstuffed(wire)
    longest = max(len(line) + 2 for line in text.split(b"\r\n"))
    if longest > TEXT_LINE_OCTETS:
        complaints.append(f"a line of {longest} octets in the data")
    upper = {parameter.upper() for parameter in mail_parameters}
    if not wire.isascii() and not upper & {"BODY=8BITMIME", "BODY=BINARYMIME"}:
        complaints.append("8-bit data that BODY did not declare")
    sizes = [int(p[5:]) for p in upper if p.startswith("SIZE=") and p[5:].isdigit()]
    complaints.extend(
        f"SIZE={size} declared, but {len(text)} octets sent" for size in sizes if size < len(text)
    )
    return complaints


def unstuffed(wire: bytes) -> bytes:
    """Return the data without the dots that were stuffed before leading dots (RFC 5321 4.5.2)."""
    return re.sub(rb"(\A|\r\n)\.", rb"\1", wire)
