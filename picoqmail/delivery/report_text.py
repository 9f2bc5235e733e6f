"""The text of a report: multipart/report of RFC 6522 with the delivery status of RFC 3464. Pure.

A report has three parts: sentences for people, fields for programs, and the message that it is
about, whole or its header only. What a relay or a sender wrote is escaped or folded before it
stands in a field, so that no reply can forge a field.
"""

from __future__ import annotations

import re
import textwrap
from itertools import islice
from typing import TYPE_CHECKING

from attrs import frozen

from picoqmail.delivery.report_state import ACTIONS, KIND_DELAYED, KIND_FAILED, KIND_IN_DOUBT
from picoqmail.home.values import rough_duration
from picoqmail.message.dates import header_date
from picoqmail.smtp import dsn
from picoqmail.smtp.address import UnsendableAddressError, ascii_form, to_xtext, wire_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from picoqmail.spool.message import Indexes, Message
    from picoqmail.spool.recipient import Recipient

_WIDTH = 72
_FIELD_WIDTH = 76
_RECIPIENTS_IN_TEXT = 100
_LINES_AT_ONCE = 1000
_ENHANCED = re.compile(r"(?:[245]\d\d[ -])?([245]\.\d{1,3}\.\d{1,3})(?!\S)")
_CODE = re.compile(r"([245])\d\d(?!\S)")
_EXPIRED = re.compile(r"expired after .*? in the queue(?:; last: (.*))?", re.DOTALL)
_MESSAGE_ID = re.compile(rb"^message-id:\s*(<[!-;=?-~]{1,250}>)", re.IGNORECASE | re.MULTILINE)
_SUBJECT = re.compile(rb"^subject:((?:[^\n]|\n[ \t])*)", re.IGNORECASE | re.MULTILINE)


@frozen
class Report:
    """What a report says. `kind` is one of report_state.py; `host` is the setting me.

    `indexes` are those of the recipients that it is about. `author` and `to` are addresses,
    `header` is the message's header as spooled; `whole` says that the whole message follows, and
    not only this header. `now` in Unix seconds.
    """

    id: str
    kind: str
    message: Message
    indexes: Indexes
    host: str
    author: str
    to: str
    now: int
    header: bytes
    whole: bool
    eight_bit: bool


def frame(report: Report, boundary: str) -> tuple[Iterator[bytes], bytes]:
    """Return what stands in the report before the message (or its header), in blocks, and after it.

    `boundary` must not occur in the message.
    """
    return _blocks(_before(report, boundary)), f"\n--{boundary}--\n".encode()


def _blocks(lines: Iterator[str]) -> Iterator[bytes]:
    """Yield lines as octets; those of very many recipients are never held at once."""
    while several := list(islice(lines, _LINES_AT_ONCE)):
        yield "".join([f"{line}\n" for line in several]).encode(errors="replace")


def _before(report: Report, boundary: str) -> Iterator[str]:
    text = "\n".join(_sentences(report))
    is_global = _has_utf8_address(report)
    yield from _header(report, boundary)
    yield ""
    yield f"--{boundary}"
    yield "Content-Type: text/plain; charset=utf-8"
    yield f"Content-Transfer-Encoding: {'7bit' if text.isascii() else '8bit'}"
    yield "Content-Description: Notification"
    yield ""
    yield text
    yield f"--{boundary}"
    # With an address in UTF-8 the delivery status has a type of its own (RFC 6533).
    yield f"Content-Type: message/{'global-delivery-status' if is_global else 'delivery-status'}"
    yield f"Content-Transfer-Encoding: {'8bit' if is_global else '7bit'}"
    yield "Content-Description: Delivery report"
    yield ""
    yield from _status(report)
    yield f"--{boundary}"
    yield f"Content-Type: {'message/rfc822' if report.whole else 'text/rfc822-headers'}"
    yield f"Content-Transfer-Encoding: {'8bit' if report.eight_bit else '7bit'}"
    yield "Content-Description: " + (
        "Undelivered message" if report.whole else "Header of the undelivered message"
    )
    yield ""


def _has_utf8_address(report: Report) -> bool:
    """Say whether a field of the delivery status has an address in UTF-8; no other field may."""
    asked = report.message.unknown.get("dsn")
    for index in report.indexes:
        address = report.message.recipients[index].address
        fields: list[str] = []
        if not address.isascii():
            fields += _field("Final-Recipient", _path(address))
        if asked and (original := dsn.original_recipient(asked, index)):
            fields += _field("Original-Recipient", "; ".join(original))
        if not "".join(fields).isascii():
            return True
    return False


def _header(report: Report, boundary: str) -> Iterator[str]:
    yield f"Date: {header_date(report.now)}"
    yield f"From: Mail system of {report.host} <{_path(report.author)}>"
    yield f"To: <{_path(ascii_form(report.to))}>"
    yield f"Subject: {_SUBJECTS[KIND_IN_DOUBT if _is_maybe(report) else report.kind]}"
    yield f"Message-ID: <{report.id}.report@{report.host}>"
    original = _MESSAGE_ID.search(report.header)
    if original:
        yield f"In-Reply-To: {original[1].decode()}"
        yield f"References: {original[1].decode()}"
    # So that no vacation program answers (RFC 3834).
    yield "Auto-Submitted: auto-replied"
    yield "MIME-Version: 1.0"
    yield "Content-Type: multipart/report; report-type=delivery-status;"
    yield f'\tboundary="{boundary}"'


def _sentences(report: Report) -> Iterator[str]:
    message = report.message
    count = len(report.indexes)
    whom = "this recipient" if count == 1 else f"{count} recipients"
    yield from _wrapped(f"This is the mail system of {report.host}.")
    yield ""
    subject = _subject(report.header)
    about = f"Your mail{f' about {subject!r}' if subject else ''} of {header_date(message.created)}"
    if report.kind == KIND_FAILED:
        what = "may have been delivered to {}, or not," if _is_maybe(report) else _NOT_DELIVERED
        yield from _wrapped(f"{about} {what.format(whom)} and will not be tried again:")
    elif report.kind == KIND_IN_DOUBT:
        yield from _wrapped(
            f"{about} may have been delivered to {whom}, or not. The relay got the whole mail, but "
            "the connection ended before it replied. This host does not send it again by itself, "
            "because it may arrive several times:"
        )
    else:
        age = rough_duration(report.now - message.created)
        yield from _wrapped(f"{about} has waited for {age} and was not taken yet for {whom}:")
    for index in report.indexes[:_RECIPIENTS_IN_TEXT]:
        one = message.recipients[index]
        yield ""
        yield f"<{_path(one.address)}>"
        yield from _wrapped(f"{_said(one, report.kind)}", "    ")
    if count > _RECIPIENTS_IN_TEXT:
        yield ""
        yield f"and {count - _RECIPIENTS_IN_TEXT} more, which the delivery report lists."
    yield ""
    if report.kind == KIND_DELAYED:
        yield from _wrapped(
            "You need not send it again: it is tried until "
            f"{header_date(int(message.expires))}, and you get a report if it fails."
        )
        yield ""
    elif report.kind == KIND_IN_DOUBT:
        yield from _wrapped(
            "Ask the recipient before you send it again. The administrator of this host can have "
            f"it sent once more, until {header_date(int(message.expires))}. Then it is given up, "
            "and you get a report of that."
        )
        yield ""
    yield from _wrapped(
        "The administrator of this host finds more under the name "
        f"{message.id} (picoqmail explain {message.id})."
    )
    yield ""


def _is_maybe(report: Report) -> bool:
    """Say whether all recipients may have the mail, as far as this host knows."""
    return all(report.message.recipients[index].doubts for index in report.indexes)


_NOT_DELIVERED = "could not be delivered to {},"
_SUBJECTS = {
    KIND_FAILED: "Your mail could not be delivered",
    KIND_DELAYED: "Your mail is delayed",
    KIND_IN_DOUBT: "Your mail may have been delivered, or not",
}


def _said(one: Recipient, kind: str) -> str:
    if kind == KIND_IN_DOUBT:
        return f"It was sent as a whole {one.doubts} times, and no reply came."
    if not one.reply:
        return "No reason is known."
    said = f"The relay said: {one.reply}" if _CODE.match(one.reply) else one.reply
    if one.doubts and _CODE.match(one.reply):
        said += f"; but {one.doubts} times before it was sent as a whole, and no reply came"
    return said


def _status(report: Report) -> Iterator[str]:
    """Yield the fields of RFC 3464 2.2 and 2.3."""
    message = report.message
    asked = message.unknown.get("dsn")
    envelope_id = dsn.envelope_id(asked)
    if envelope_id:
        yield from _field("Original-Envelope-Id", to_xtext(envelope_id))
    yield from _field("Reporting-MTA", f"dns; {report.host}")
    yield from _field("X-Picoqmail-ID", message.id)
    yield from _field("Arrival-Date", header_date(int(message.created)))
    last = message.history[-1] if message.history else {}
    remote = str(last.get("relay") or "")
    for index in report.indexes:
        one = message.recipients[index]
        yield ""
        original = dsn.original_recipient(asked, index)
        if original:
            yield from _field("Original-Recipient", "; ".join(original))
        kind = "rfc822" if one.address.isascii() else "utf-8"
        yield from _field("Final-Recipient", f"{kind}; {_path(one.address)}")
        yield from _field("Action", ACTIONS[report.kind])
        is_in_doubt = report.kind == KIND_IN_DOUBT
        said = "" if is_in_doubt else one.reply or ""
        yield from _field("Status", enhanced_status(said, report.kind, is_in_doubt=one.doubts > 0))
        if remote:
            yield from _field("Remote-MTA", f"dns; {_host(remote)}")
        if is_in_doubt:
            yield from _field("Diagnostic-Code", f"x-picoqmail; {_said(one, report.kind)}")
        elif one.reply:
            yield from _field("Diagnostic-Code", _diagnostic(one.reply))
        yield from _field("Last-Attempt-Date", header_date(report.now))
        if report.kind == KIND_DELAYED:
            yield from _field("Will-Retry-Until", header_date(int(message.expires)))
    yield ""


def enhanced_status(reply: str, kind: str, *, is_in_doubt: bool = False) -> str:
    """Return the status code of RFC 3463 for a relay's reply; a reply without one gives x.0.0.

    A message that expired has 4.4.7, as RFC 3463 says; if connections had ended before the reply
    to the whole message, 4.4.2 (bad connection). A delay never has a 5.
    """
    if _EXPIRED.match(reply):
        return "4.4.7"
    found = _ENHANCED.match(reply)
    if found:
        return found[1]
    code = _CODE.match(reply)
    if is_in_doubt and not code:
        return "4.4.2"
    if code and (code[1] != "5" or kind == KIND_FAILED):
        return f"{code[1]}.0.0"
    return "5.0.0" if kind == KIND_FAILED else "4.0.0"


def _diagnostic(reply: str) -> str:
    expired = _EXPIRED.match(reply)
    last = expired[1] if expired else reply
    if last and _CODE.match(last):
        return f"smtp; {last}"
    return f"x-picoqmail; {reply}"


def _field(name: str, value: str) -> Iterator[str]:
    """Yield one field, folded; what is no plain text in it is escaped (RFC 3464 2.1.1)."""
    plain = "".join(c if c.isprintable() else "?" for c in value)
    if name not in ("Final-Recipient", "Original-Recipient"):
        plain = plain.encode("ascii", "backslashreplace").decode()
    line = f"{name}: {plain}"
    if len(line) <= _FIELD_WIDTH:
        yield line.rstrip()
        return
    yield from textwrap.wrap(
        line,
        _FIELD_WIDTH,
        subsequent_indent=" ",
        break_long_words=len(plain) > 900,
        break_on_hyphens=False,
    )


def _wrapped(text: str, indent: str = "") -> list[str]:
    plain = "".join(c if c.isprintable() else "?" for c in text)
    lines = textwrap.wrap(
        plain,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=len(plain) > 900,
        break_on_hyphens=False,
    )
    return lines or [indent]


def _path(address: str) -> str:
    """Return an address as it stands between angle brackets."""
    try:
        return wire_path(address)[1:-1]
    except UnsendableAddressError:
        return address.encode("ascii", "backslashreplace").decode()


def _host(relay: str) -> str:
    """Return the host of a relay as histories name it: `smtp://user@host:port`, `[v6]:port`."""
    host = relay.split(maxsplit=1)[0].rpartition("//")[2].rpartition("@")[2]
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0] or "unknown"


def _subject(header: bytes) -> str:
    """Return the subject for a sentence, "" if there is none or it is not plain text."""
    found = _SUBJECT.search(header)
    if not found:
        return ""
    text = " ".join(found[1].decode("ascii", "replace").split())
    if "=?" in text or "\ufffd" in text or not text.isprintable():
        return ""
    return text if len(text) <= 60 else text[:57] + "..."


_DIGEST_LIMIT = 1000


def digest(  # noqa: PLR0913 - one argument a fact
    digest_id: str,
    to: str,
    kept: Sequence[Mapping[str, Any]],
    *,
    host: str,
    author: str,
    now: int,
) -> bytes:
    """Return a mail about the failures of an hour in which too many reports were made.

    `kept` has `id`, `recipient`, `reply` and `when` of each, as report_limit.py keeps them.
    """
    # A crash between keeping a failure and recording its message leaves it there twice.
    failures = list({(one.get("id"), one.get("index")): one for one in kept}.values())
    text = _wrapped(f"This is the mail system of {host}.")
    text += ["", *_wrapped(
        f"{len(failures)} more of your mails could not be delivered within an hour. So many "
        "reports were sent to you in that hour that these are listed here, without their content:"
    )]  # fmt: skip
    for one in failures[:_DIGEST_LIMIT]:
        text += ["", f"<{_path(str(one.get('recipient')))}>"]
        text += _wrapped(f"{one.get('id')}", "    ")
        text += _wrapped(str(one.get("reply") or "No reason is known."), "    ")
    if len(failures) > _DIGEST_LIMIT:
        text += ["", f"and {len(failures) - _DIGEST_LIMIT} more."]
    text += [
        "",
        *_wrapped("The administrator of this host finds each with: picoqmail explain ID"),
        "",
    ]
    body = "\n".join(text)
    header = [
        f"Date: {header_date(now)}",
        f"From: Mail system of {host} <{_path(author)}>",
        f"To: <{_path(to)}>",
        f"Subject: {len(failures)} more of your mails could not be delivered",
        f"Message-ID: <{digest_id}.report@{host}>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Transfer-Encoding: {'7bit' if body.isascii() else '8bit'}",
        "",
        "",
    ]
    return ("\n".join(header) + body).encode(errors="replace")
