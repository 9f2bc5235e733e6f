"""A message with a header becomes a message with an envelope, as qmail-inject(8) does it. Hot.

This module decides what is done to each field, and who the sender and the recipients are. Lines,
tokens and single addresses are read by `header`, `tokens` and `completion`; `handover` takes the
message on. Everything is octets, because mail is.
"""

from __future__ import annotations

import posix
import time

from picoqmail.durable import write_all
from picoqmail.errors import (
    QUEUE_REFUSED,
    ConfigurationError,
    EnvelopeError,
    MessageTooLargeError,
    PicoqmailError,
)
from picoqmail.home.control import Control, read_text
from picoqmail.home.owner import become_submitter
from picoqmail.home.paths import locate
from picoqmail.layout import VERP_END
from picoqmail.message.completion import (
    Completion,
    UnparsableError,
    drop_route,
    is_understood,
    raw_address,
    reversed_tokens,
)
from picoqmail.message.header import MessageReader, date_field, field_name, message_id_field
from picoqmail.message.tokens import (
    AT,
    ATOM,
    COLON,
    COMMENT,
    LEFT,
    QUOTE,
    RIGHT,
    address_list,
    needs_quotes,
    parse,
    parts_by_blanks,
    quote_address,
    unparse,
)
from picoqmail.submission.caller import ACCEPTED, PERMANENT, TEMPORARY, read_stdin, say
from picoqmail.submission.handover import hand_over, is_directory, may_spool, named_program
from picoqmail.submission.start_sender import BECOME_SENDER, leave_a_sender

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from picoqmail.home.control import ControlValue
    from picoqmail.home.paths import Home
    from picoqmail.message.rewriting import LocalNames, SenderRules
    from picoqmail.message.tokens import Rewrite, Token

FROM_HEADER, FROM_ARGUMENTS, FROM_BOTH, FROM_EITHER = range(4)
"""Where recipients come from: the flags -h, -a, -H, -A."""

MAX_ADDRESS_OCTETS = 8 * 1024 * 1024
"""The most that all address fields of one header may hold together: an address costs many times
its size in memory, and 100,000 recipients with their names need half of this."""
MAX_RECIPIENTS = 500_000
"""The most recipients of one header; `a a a a` would make one out of every other octet."""

_NAME_VARIABLES = (b"QMAILNAME", b"MAILNAME", b"NAME")
# The variables whose values become a part of addresses and of the Message-ID.
_ADDRESS_VARIABLES = (
    b"QMAILUSER",
    b"MAILUSER",
    b"USER",
    b"LOGNAME",
    b"QMAILHOST",
    b"MAILHOST",
    b"QMAILSUSER",
    b"QMAILSHOST",
    b"QMAILDEFAULTDOMAIN",
    b"QMAILDEFAULTHOST",
    b"QMAILPLUSDOMAIN",
    b"QMAILIDHOST",
)
_BLANKS = bytes(b" "[0] if octet < 32 or octet == 127 else octet for octet in range(256))
_LONGEST_SHOWN = 200
_WORD_OCTETS = 39  # in base64 52, and 17 around it at most
_STDOUT = 1

# What happens to the addresses of a field. The two sorts of recipient fields may be unparsable.
_TO_CC, _BCC, _RESENT, _RETURN_PATH, _AUTHOR, _OTHER = range(6)
_FIELDS = {
    b"to": _TO_CC,
    b"cc": _TO_CC,
    b"bcc": _BCC,
    b"apparently-to": _BCC,
    b"resent-to": _RESENT,
    b"resent-cc": _RESENT,
    b"resent-bcc": _RESENT,
    b"return-path": _RETURN_PATH,
    b"sender": _AUTHOR,
    b"from": _AUTHOR,
    b"resent-sender": _AUTHOR,
    b"resent-from": _AUTHOR,
    b"reply-to": _OTHER,
    b"return-receipt-to": _OTHER,
    b"errors-to": _OTHER,
    b"resent-reply-to": _OTHER,
}
_MAY_FAIL = (_TO_CC, _BCC, _RESENT)
_DELETED = frozenset((b"bcc", b"resent-bcc", b"return-path", b"content-length"))
# One of these makes the message a resent one, whose other recipients got it long ago.
_RESENT_FIELDS = (
    b"resent-sender",
    b"resent-from",
    b"resent-reply-to",
    b"resent-to",
    b"resent-cc",
    b"resent-bcc",
    b"resent-date",
    b"resent-message-id",
)


class NoRecipientsError(EnvelopeError):
    """The recipients are said to be in the arguments, and there are none."""

    qmail_status = QUEUE_REFUSED


class Request:
    """What the command line asks for."""

    __slots__ = (
        "arguments",
        "extra",
        "program",
        "qmail_form",
        "queue",
        "recipients_from",
        "sender",
    )

    def __init__(self) -> None:
        """Recipients from the arguments, or the header if there are none; to the queue."""
        self.recipients_from = FROM_EITHER
        self.queue = True
        self.sender: bytes | None = None
        self.arguments: list[bytes] = []
        self.extra: dict[str, Any] | None = None
        self.program = "inject"
        self.qmail_form = True
        """Do as qmail-inject does, to the octet: write every address field anew, take the author
        from variables alone, accept a message without recipients. Else do as other sendmails."""


class Letters:
    """The variable QMAILINJECT: each letter switches something on, others mean nothing."""

    __slots__ = (
        "delete_from",
        "delete_message_id",
        "delete_return_path",
        "name_as_comment",
        "verp_per_message",
        "verp_per_recipient",
    )

    def __init__(self, letters: bytes) -> None:
        self.name_as_comment = b"c" in letters
        self.delete_return_path = b"s" in letters
        self.delete_from = b"f" in letters
        self.delete_message_id = b"i" in letters
        self.verp_per_recipient = b"r" in letters
        self.verp_per_message = b"m" in letters

    def deletes(self, name: bytes) -> bool:
        """Say whether the caller's field of this name is dropped unread."""
        return (
            (self.delete_from and name == b"from")
            or (self.delete_message_id and name == b"message-id")
            or (self.delete_return_path and name == b"return-path")
        )


def _first(environ: Mapping[bytes, bytes], *names: bytes) -> bytes | None:
    """Return the first of these variables that is set, be it to nothing."""
    for name in names:
        if name in environ:
            return environ[name]
    return None


class Identity:
    """The author, by the environment; `host` is None if no variable names one."""

    __slots__ = ("_is_phrase", "full_name", "host", "return_host", "return_user", "user")

    def __init__(self, environ: Mapping[bytes, bytes], *, qmail_form: bool = True) -> None:
        """Without `qmail_form`, the account of the real uid stands in where no variable is set."""
        user = _first(environ, b"QMAILUSER", b"MAILUSER", b"USER", b"LOGNAME")
        self.host = _first(environ, b"QMAILHOST", b"MAILHOST")
        self.full_name = _first(environ, *_NAME_VARIABLES)
        if not qmail_form:
            if user is None:
                user, name = _account(posix.getuid())
                self.full_name = name if self.full_name is None else self.full_name
            if self.full_name is not None:
                self.full_name = _as_phrase(self.full_name.strip())
        self._is_phrase = not qmail_form and (self.full_name or b"").startswith(b"=?")
        self.user = b"anonymous" if user is None else user
        self.return_user = environ.get(b"QMAILSUSER", self.user)
        self.return_host = environ.get(b"QMAILSHOST", self.host)

    def from_field(self, name: bytes, *, as_comment: bool) -> list[Token]:
        """Return the tokens of a From field for this person; the host may hold anything."""
        address: list[Token] = [(QUOTE if needs_quotes(self.user) else ATOM, self.user)]
        if self.host is not None:
            address += ((AT, b""), (ATOM, self.host))
        head: list[Token] = [(ATOM, name), (COLON, b"")]
        if self.full_name is None:
            return head + address
        if as_comment:
            return [*head, *address, (COMMENT, self.full_name)]
        if self._is_phrase:
            return [*head, (ATOM, self.full_name), (LEFT, b""), *address, (RIGHT, b"")]
        return [*head, (QUOTE, self.full_name), (LEFT, b""), *address, (RIGHT, b"")]

    def return_path_field(self, suffix: bytes) -> list[Token]:
        """Return the tokens of a Return-Path field, `suffix` added to the user."""
        field: list[Token] = [
            (ATOM, b"Return-Path"),
            (COLON, b""),
            (QUOTE, self.return_user + suffix),
        ]
        if self.return_host is not None:
            field += ((AT, b""), (ATOM, self.return_host))
        return field


def _account(uid: int) -> tuple[bytes | None, bytes | None]:
    """Return the name and the full name of an account, None for what it has not.

    cron and systemd start programs without USER and LOGNAME.
    """
    import pwd

    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        return None, None
    # The first part is the full name, and `&` stands for the name (passwd(5), finger(1)).
    full_name = account.pw_gecos.partition(",")[0].replace("&", account.pw_name.capitalize())
    name = full_name.encode("utf-8", "surrogateescape")
    return account.pw_name.encode("utf-8", "surrogateescape"), name or None


def _as_phrase(name: bytes) -> bytes | None:
    """Return a full name for a header: None for an empty one, encoded words beyond ASCII."""
    if not name:
        return None
    if name.isascii():
        return name
    import binascii

    try:
        text, charset = name.decode(), "utf-8"
    except UnicodeDecodeError:
        text, charset = name.decode("latin-1"), "iso-8859-1"
    # RFC 2047 section 2: 75 octets a word at most, and no character is split.
    words, piece = [], b""
    for octets in (character.encode(charset) for character in text):
        if len(piece) + len(octets) > _WORD_OCTETS:
            words.append(piece)
            piece = b""
        piece += octets
    return b" ".join(
        b"=?%b?B?%b?=" % (charset.encode(), binascii.b2a_base64(one, newline=False))
        for one in (*words, piece)
    )


class InjectSettings:
    """The control files that injection uses, with the variables that override them."""

    __slots__ = ("_admin", "_local", "_rules", "completion", "control", "id_host")

    def __init__(
        self, home: Home, environ: Mapping[bytes, bytes], *, qmail_form: bool = True
    ) -> None:
        """Read them. Raises ConfigurationError, UnparsableError."""
        if not is_directory(home.root):
            raise ConfigurationError(
                home.root, "there is no such home", "make one with: picoqmail init"
            )
        self.control = control = Control(home.control)
        me = _qmail_value(control, "me")
        domain, host, plus, self.id_host = (
            _override(control, environ, name, me)
            for name in ("defaultdomain", "defaulthost", "plusdomain", "idhost")
        )
        # A host name without a dot is not a domain: qmail would make `root@box.box` of `root@box`.
        is_own = domain == me and domain.count(b".") == 0 and not qmail_form
        self.completion = Completion(host, None if is_own else domain, plus)
        self._local: LocalNames | None = None
        self._rules: SenderRules | None = None
        self._admin = b""
        rules, admin = control.read("rewritefrom"), control.read("adminaddr")
        if rules or admin:
            self._read_mappings(rules, admin, me or b"")

    def _read_mappings(
        self, rules: ControlValue | None, admin: ControlValue | None, me: bytes
    ) -> None:
        # Not for every mail: a module costs start-up time even when it is not used.
        from picoqmail.message.rewriting import LocalNames, SenderRules, admin_address

        examples = [self.completion.complete_raw(one) for one in (b"x", b"x@localhost")]
        hosts = [me, b"localhost", *(one.rpartition(b"@")[2] for one in examples)]
        self._local = local = LocalNames(hosts)
        if rules:
            self._rules = SenderRules(rules.places, local)
        if admin:
            self._admin = admin_address(admin.text, admin.where())

    def author(self, address: bytes) -> bytes:
        """Return what rewritefrom makes of a sender or author."""
        return self._rules.apply(address) if self._rules else address

    def recipients(self, addresses: list[bytes]) -> list[bytes]:
        """Return what adminaddr makes of the recipients."""
        if not self._admin or not self._local:
            return addresses
        from picoqmail.message.rewriting import to_admin

        return to_admin(addresses, self._admin, self._local)


def _qmail_value(control: Control, name: str) -> bytes | None:
    """Return the first line of a control file, without blanks at its end; None if there is none.

    A blank first line is an empty value, as for qmail's programs; only `#` lines are passed over.
    """
    text = control.text(name)
    if text is None:
        value = control.minivars().get(name.upper())
        return value.text.encode() if value else None
    for line in text.split("\n"):
        if not line.startswith("#"):
            return line.rstrip(" \t").encode()
    return b""


def _override(
    control: Control, environ: Mapping[bytes, bytes], name: str, me: bytes | None
) -> bytes:
    """Return a setting: the variable QMAIL<NAME>, the control file, me, or its own name."""
    value = _qmail_value(control, name)
    if value is None:
        value = name.encode() if me is None else me
    return environ.get(b"QMAIL" + name.upper().encode(), value)


class _FollowupLists:
    """The variable QMAILMFTFILE: addresses of mailing lists, one a line (qmail-inject(8))."""

    __slots__ = ("_lists",)

    def __init__(self, path: bytes | None) -> None:
        text = None if path is None else read_text(path.decode("utf-8", "surrogateescape"))
        lines = (text or "").split("\n")
        kept = (line.rstrip(" \t") for line in lines)
        self._lists = {line.lower().encode() for line in kept if line and line[0] != "#"}

    def concern(self, addresses: list[bytes]) -> bool:
        """Say whether one of the addresses is one of the lists."""
        return bool(self._lists) and any(address.lower() in self._lists for address in addresses)


class _Noted:
    """Rewrites addresses as another does, and notes what that did."""

    __slots__ = ("_rewrite", "changed", "lacked_host", "understood")

    def __init__(self, rewrite: Rewrite) -> None:
        self._rewrite = rewrite
        self.changed = False
        self.lacked_host = False
        self.understood = True

    def __call__(self, address: list[Token]) -> None:
        before = address.copy()
        if before:
            plain = before.copy()
            if plain[-1][0] == AT:
                drop_route(plain)
            self.understood = self.understood and bool(plain) and is_understood(plain)
        self._rewrite(address)
        self.changed = self.changed or address != before
        self.lacked_host = self.lacked_host or (AT, b"") not in before


class Injection:
    """One message on its way: its header as it is to be, and its envelope."""

    __slots__ = (
        "_address_octets",
        "_fields",
        "_followup",
        "_from_header",
        "_from_resent",
        "_identity",
        "_letters",
        "_now",
        "_pid",
        "_request",
        "_seen",
        "_settings",
        "_to_cc",
        "_warn",
        "_warnings",
        "recipients",
        "sender",
    )

    def __init__(
        self,
        request: Request,
        settings: InjectSettings,
        environ: Mapping[bytes, bytes],
        *,
        now: float,
        pid: int,
    ) -> None:
        """Complete the addresses of the command line. Raises UnparsableError."""
        self._request = request
        self._settings = settings
        self._letters = Letters(environ.get(b"QMAILINJECT", b""))
        self._identity = Identity(environ, qmail_form=request.qmail_form)
        self._now = now
        self._pid = pid
        self._seen: set[bytes] = set()
        # One buffer, not a list: millions of small fields would cost many times their size.
        self._fields = bytearray()
        self._followup = b""
        self._to_cc: list[bytes] = []
        self._from_header: list[bytes] = []
        self._from_resent: list[bytes] = []
        self._warnings: list[tuple[bool, bytes]] = []
        self._address_octets = 0
        complete = settings.completion.complete_raw
        self.sender: bytes | None = None
        if request.sender is not None:
            self.sender = complete(request.sender)
        self.recipients: list[bytes] = []
        if request.recipients_from == FROM_EITHER:
            request.recipients_from = FROM_ARGUMENTS if request.arguments else FROM_HEADER
        if request.recipients_from != FROM_HEADER:
            self.recipients += [
                complete(one, what="unable to parse address") for one in request.arguments
            ]

    # One method for each thing that may happen to an address; they get it in reverse.

    def _complete(self, address: list[Token]) -> None:
        self._settings.completion.complete(address)

    def _recipient(self, address: list[Token], recipients: list[bytes]) -> bytes:
        if len(recipients) >= MAX_RECIPIENTS:
            reason = f"the header names more than {MAX_RECIPIENTS} recipients"
            raise MessageTooLargeError(reason)
        self._complete(address)
        raw = raw_address(address)
        recipients.append(raw)
        return raw

    def _to_or_cc(self, address: list[Token]) -> None:
        self._to_cc.append(self._recipient(address, self._from_header))

    def _bcc(self, address: list[Token]) -> None:
        self._recipient(address, self._from_header)

    def _resent(self, address: list[Token]) -> None:
        self._recipient(address, self._from_resent)

    def _author(self, address: list[Token]) -> None:
        self._complete(address)
        raw = raw_address(address)
        mapped = self._settings.author(raw)
        if mapped != raw:
            address[:] = reversed_tokens(quote_address(mapped), "rewritefrom")

    def _return_path(self, address: list[Token]) -> None:
        self._complete(address)
        # The last address of the first field counts: lists are read from right to left.
        if self.sender is None:
            suffix = VERP_END.encode() if self._letters.verp_per_recipient else b""
            self.sender = raw_address(address) + suffix

    def _rewriting(self, sort: int) -> Rewrite:
        return {
            _TO_CC: self._to_or_cc,
            _BCC: self._bcc,
            _RESENT: self._resent,
            _RETURN_PATH: self._return_path,
            _AUTHOR: self._author,
            _OTHER: self._complete,
        }[sort]

    def take(self, field: bytes) -> None:
        """Take one field of the caller's header. Raises UnparsableError, MessageTooLargeError."""
        name = field_name(field)
        if self._letters.deletes(name):
            return
        self._seen.add(name)
        sort = _FIELDS.get(name)
        if sort is not None:
            self._address_octets += len(field)
            if self._address_octets > MAX_ADDRESS_OCTETS:
                reason = (
                    f"the address fields hold more than {MAX_ADDRESS_OCTETS} bytes; "
                    "send the message in several parts"
                )
                raise MessageTooLargeError(reason)
            field = self._rewritten(field, sort)
        if name not in _DELETED:
            self._fields += field

    def _rewritten(self, field: bytes, sort: int) -> bytes:
        found = parse(field)
        if found is not None:
            rewrite = self._rewriting(sort)
            if self._request.qmail_form:
                listed = address_list(found, rewrite)
                if listed is not None:
                    return unparse(listed)
            else:
                noted = _Noted(rewrite)
                listed = address_list(found, noted)
                parted_by_blanks = listed is not None and parts_by_blanks(found, listed)
                # `b@ex ample.net` is not two recipients.
                is_list = not (parted_by_blanks and noted.lacked_host) and noted.understood
                if sort in _MAY_FAIL and not is_list:
                    listed = None
                if listed is not None:
                    # A signature of the caller's (DKIM) covers the octets.
                    return unparse(listed) if noted.changed or parted_by_blanks else field
        if sort not in _MAY_FAIL:
            raise UnparsableError.of_line(field)
        self._warnings.append((sort == _RESENT, field))
        return field

    def _made(self, tokens: list[Token], rewrite: Rewrite) -> bytes:
        """Write a field of our own, read it again as if it were the caller's, and rewrite it.

        That is how a host with a blank becomes two addresses, as with qmail.
        """
        line = unparse(tokens)
        found = parse(line)
        listed = None if found is None else address_list(found, rewrite)
        if listed is None:
            raise UnparsableError.of_line(
                line, "the environment (QMAILUSER, QMAILHOST and their kin)"
            )
        return unparse(listed)

    @property
    def is_resent(self) -> bool:
        """Whether the caller's header has any of the Resent- fields."""
        return any(name in self._seen for name in _RESENT_FIELDS)

    def finish(self) -> None:
        """Settle the envelope, once the header is read. Raises UnparsableError."""
        if self.sender is None:
            letters = self._letters
            suffix = f"-{int(self._now)}.{self._pid}".encode() if letters.verp_per_message else b""
            if letters.verp_per_recipient:
                suffix += b"-"
            self._made(self._identity.return_path_field(suffix), self._return_path)
        # An address ends at a NUL, where it does for every program that speaks C.
        self.sender = _until_nul(self._settings.author(self.sender or b""))
        if self._request.recipients_from != FROM_ARGUMENTS:
            found = self._from_resent if self.is_resent else self._from_header
            self.recipients += found
            unread = [field for resent, field in self._warnings if resent == self.is_resent]
            if unread and not self._request.qmail_form:
                raise UnparsableError.of_line(unread[0], "the header; its recipients get nothing")
        self.recipients = self._settings.recipients([_until_nul(one) for one in self.recipients])

    def warnings(self) -> list[str]:
        """Return what the caller should know although the message is accepted."""
        if self._request.recipients_from == FROM_ARGUMENTS:
            return [] if self.recipients else ["no recipients: the message goes to nobody"]
        found = []
        for resent, field in self._warnings:
            if resent == self.is_resent:
                shown = field[:_LONGEST_SHOWN].decode("utf-8", "surrogateescape")
                found.append(
                    "unable to parse this line, so not all of its addresses get the message:\n"
                    + shown.rstrip("\n")
                )
        if not self.recipients:
            found.append("no recipients: the message goes to nobody")
        return found

    def header(self) -> bytes:
        """Return the header as it is to be: what was missing, then the caller's fields."""
        prefix = b"Resent-" if self.is_resent else b""
        lacks = {
            name: (prefix + name).lower() not in self._seen
            for name in (b"Date", b"Message-ID", b"From", b"To", b"Cc")
        }
        added = []
        if lacks[b"Date"]:
            added.append(prefix + date_field(self._now))
        if lacks[b"Message-ID"]:
            token = posix.urandom(8).hex()
            host = self._settings.id_host
            added.append(prefix + message_id_field(self._now, self._pid, token, host))
        if lacks[b"From"]:
            # Made without the prefix, which does not count for where the line is folded.
            tokens = self._identity.from_field(b"From", as_comment=self._letters.name_as_comment)
            added.append(prefix + self._made(tokens, self._author))
        if lacks[b"To"] and lacks[b"Cc"]:
            added.append(prefix + b"Cc: recipient list not shown: ;\n")
        return b"".join((*added, self._followup, self._fields))

    def add_followup(self, lists: _FollowupLists) -> None:
        """Put Mail-Followup-To before the caller's fields, if a list is in To or Cc."""
        if self.is_resent or b"mail-followup-to" in self._seen or not lists.concern(self._to_cc):
            return
        shown = [quote_address(_until_nul(address)) for address in reversed(self._to_cc)]
        self._followup = b"Mail-Followup-To: " + b",\n  ".join(shown) + b"\n"


def _until_nul(address: bytes) -> bytes:
    return address.partition(b"\0")[0]


def _with_plain_values(
    environ: Mapping[bytes, bytes], names: tuple[bytes, ...]
) -> Mapping[bytes, bytes]:
    """Return the environment with blanks for control characters in these variables."""
    changed = {name: environ[name].translate(_BLANKS) for name in names if name in environ}
    return {**environ, **changed}


def inject(  # noqa: PLR0913 - the world of one message, all of it injected
    request: Request,
    environ: Mapping[bytes, bytes],
    home: Home,
    read: Callable[[], bytes] = read_stdin,
    *,
    now: float,
    pid: int,
    warn: Callable[[str], None],
) -> bool:
    """Read one message from `read` and hand it over, or print it if the request says so.

    Return only when the spool, or another program, has the message durably; True if the caller has
    to start a sender. Memory: the header, and one buffer of the body. `now` is Unix seconds; `warn`
    gets one text at a time. Raises PicoqmailError, after which nothing was accepted; OSError if
    printing fails.
    """
    # In front of another program's queue, the octets are those of qmail-inject. Our own spool gets
    # what the caller meant: PHP 8, Ruby and others end header and blank line with CRLF, and a name
    # with line ends would add lines to the header. Other variables never have line ends.
    own_queue = not named_program(environ)
    if own_queue:
        environ = _with_plain_values(environ, _NAME_VARIABLES)
    else:
        request.qmail_form = True
    environ = _with_plain_values(environ, _ADDRESS_VARIABLES)
    qmail_form = request.qmail_form
    lists = _FollowupLists(environ.get(b"QMAILMFTFILE"))
    settings = InjectSettings(home, environ, qmail_form=qmail_form)
    if not (own_queue and may_spool(home.spool)):
        # Imported before anything is read, so that an upgrade meanwhile cannot mix two versions.
        from picoqmail.submission import queue_program  # noqa: F401 - `hand_over` uses it
    injection = Injection(request, settings, environ, now=now, pid=pid)
    message = MessageReader(read, crlf_blank=own_queue, quoted_mbox=not qmail_form)
    for field in message.fields():
        injection.take(field)
    injection.finish()
    injection.add_followup(lists)
    header = injection.header()
    sender = injection.sender or b""
    recipients = injection.recipients
    from_arguments = request.recipients_from == FROM_ARGUMENTS
    if not recipients and request.queue and own_queue and (from_arguments or not qmail_form):
        text = "no recipients: name them as arguments, or let them be taken from the header"
        if not from_arguments:
            text = "no recipients: To, Cc and Bcc of the header name none, and no argument does"
        raise NoRecipientsError(text)

    def pieces() -> Iterator[bytes]:
        yield header
        yield from message.body()
        # The message was read whole; it is committed next.
        for text in injection.warnings():
            warn(text)

    if request.queue:
        return hand_over(
            home,
            environ,
            sender,
            recipients,
            pieces(),
            extra=request.extra,
            program=request.program,
            control=settings.control,
        )
    write_all(_STDOUT, b"Return-Path: <" + quote_address(sender) + b">\n")
    for piece in pieces():
        write_all(_STDOUT, piece)
    return False


def run(
    request: Request, environ: Mapping[bytes, bytes], read: Callable[[], bytes] = read_stdin
) -> int:
    """Inject the message that `read` gives, and say what went wrong; return the exit code.

    It is BECOME_SENDER in a child that has to become the sender (start_sender.py).
    """
    try:
        home = locate()
        become_submitter(home)
        sends = inject(
            request,
            environ,
            home,
            read,
            now=time.time(),
            pid=posix.getpid(),
            warn=lambda text: say(f"qmail-inject: warning: {text}"),
        )
    except PicoqmailError as exc:
        say(f"qmail-inject: fatal: {str(exc).removesuffix(chr(10))}")
        return PERMANENT if exc.permanent else TEMPORARY
    except OSError as exc:
        say(f"qmail-inject: fatal: {exc}")
        return TEMPORARY
    except MemoryError:
        say("qmail-inject: fatal: out of memory")
        return TEMPORARY
    except KeyboardInterrupt:
        say("qmail-inject: fatal: interrupted")
        return TEMPORARY
    except Exception as exc:  # noqa: BLE001 - a traceback would exit 1, which no caller of inject knows
        say(f"qmail-inject: fatal: internal bug, please report it: {exc!r}")
        return TEMPORARY
    # All that belonged to the message is free again.
    return BECOME_SENDER if sends and leave_a_sender(home, time.time()) else ACCEPTED
