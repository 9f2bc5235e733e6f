"""What the flags of sendmail(1) ask for: the one table, and what it makes of a command line.

Hot, pure but for `stop_at_dot`, which reads through a function that it is given. The table is the
union of the flags of the sendmail programs of qmail, Postfix, nullmailer, dma, msmtp and
OpenSMTPD; docs/sendmail.md shows it to users and says where we differ from one of them, and why.
"""

from __future__ import annotations

from picoqmail.submission.arguments import recipients_of, sender_of
from picoqmail.submission.flags import MAYBE_ATTACHED, PLAIN, WITH_ARGUMENT, UsageError, cut
from picoqmail.submission.handover import named_program
from picoqmail.submission.inject import FROM_ARGUMENTS, FROM_BOTH, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from typing import Any

USAGE = "usage: sendmail [ -t ] [ -fsender ] [ -Fname ] [ -bp ] [ -bs ] [ arg ... ]"

DELIVER, LIST, SUBMISSION, RUN_QUEUE, ALIASES = range(5)
"""What to do: take one message; mailq; SMTP on stdin and stdout; send what waits; newaliases."""

_KNOWN = {
    b"A": WITH_ARGUMENT,  # -Am, -Ac: which configuration; there is one
    b"B": WITH_ARGUMENT,  # body type; found out from the message
    b"C": WITH_ARGUMENT,  # configuration file; PICOQMAIL_HOME chooses it here
    b"D": PLAIN,  # of dma: deliver in the foreground
    b"E": MAYBE_ATTACHED,  # of NEWS-OS
    b"F": WITH_ARGUMENT,
    b"G": PLAIN,  # a gateway submits: headers are not to be repaired
    b"I": PLAIN,  # newaliases
    b"J": MAYBE_ATTACHED,  # of NEWS-OS
    b"L": WITH_ARGUMENT,  # name in the log
    b"N": WITH_ARGUMENT,
    b"O": WITH_ARGUMENT,
    b"R": WITH_ARGUMENT,
    b"S": PLAIN,  # of OpenSMTPD: who the user is
    b"U": PLAIN,  # first submission
    b"V": WITH_ARGUMENT,
    b"X": WITH_ARGUMENT,  # log of the session
    b"b": WITH_ARGUMENT,
    b"c": PLAIN,
    b"d": MAYBE_ATTACHED,  # debugging
    b"e": WITH_ARGUMENT,  # how to report errors: always exit code and standard error
    b"f": WITH_ARGUMENT,
    b"h": WITH_ARGUMENT,  # hop count
    b"i": PLAIN,
    b"m": PLAIN,  # also to the sender, if the sender is on a list
    b"n": PLAIN,  # no aliases
    b"o": WITH_ARGUMENT,
    b"p": WITH_ARGUMENT,  # protocol that the message came by
    b"q": MAYBE_ATTACHED,
    b"r": WITH_ARGUMENT,
    b"t": PLAIN,
    b"v": PLAIN,
    b"x": PLAIN,
}
_MODES = {
    b"m": DELIVER,
    b"q": DELIVER,  # of dma: and only queue
    b"s": SUBMISSION,
    b"p": LIST,
    b"i": ALIASES,
}
# These long names are msmtp's; of other words with two hyphens see flags.cut.
_LONG = {b"--read-recipients": b"-t", b"--from": b"-f"}
_NOTIFY = frozenset(("SUCCESS", "FAILURE", "DELAY"))
_LONGEST_ENVELOPE_ID = 100  # RFC 3461 section 4.4


class Invocation:
    """A command line, understood."""

    __slots__ = ("full_name", "ignore_dots", "mode", "only_queue", "request")

    def __init__(self) -> None:
        """A message for the arguments, which a lone dot may end."""
        self.mode = DELIVER
        self.only_queue = False
        self.ignore_dots = False
        self.full_name: bytes | None = None
        self.request = Request()
        self.request.recipients_from = FROM_ARGUMENTS
        self.request.program = "sendmail"
        self.request.qmail_form = False

    def adjust(self, environ: MutableMapping[bytes, bytes]) -> None:
        """Put -F, -f and -bq into the variables that inject uses, as qmail's sendmail does.

        With -f, the author of a message without From is the sender, without a full name from the
        environment or -F. Addresses of the command line are text of RFC 5322 and become raw ones;
        in front of another program's queue they are raw already. Raises UnparsableError.
        """
        request = self.request
        is_ours = not named_program(environ)
        if is_ours:
            request.arguments = [
                one for argument in request.arguments for one in recipients_of(argument)
            ]
            if request.sender is not None:
                request.sender = sender_of(request.sender)
        if self.full_name is not None:
            environ[b"MAILNAME"] = self.full_name
        if request.sender or (request.sender is not None and not is_ours):
            make_author(environ, request.sender)
        if self.only_queue:
            environ[b"PICOQMAIL_SEND"] = b"off"


def make_author(environ: MutableMapping[bytes, bytes], sender: bytes) -> None:
    """Make this envelope sender the author of a message that names none, without a full name."""
    for name in (b"QMAILNAME", b"MAILNAME", b"NAME", b"QMAILHOST", b"MAILHOST"):
        environ.pop(name, None)
    user, at, host = sender.rpartition(b"@")
    environ[b"QMAILUSER"] = user if at else sender
    if at:
        environ[b"QMAILHOST"] = host


def understand(name: bytes, words: list[bytes], *, qmail_words: bool = False) -> Invocation:
    """Return what `words` ask for; `name` is the program's, without directories.

    With `qmail_words`, `--word` ends the flags, as for qmail's sendmail. Raises UsageError.
    """
    found = Invocation()
    words = _with_long_names(words)
    if qmail_words:
        words = [b"--" if word[:2] == b"--" else word for word in words]
    flags, found.request.arguments = cut(words, _KNOWN, anywhere=True)
    for letter, argument in flags:
        _apply(found, letter, argument)
    if name == b"mailq":
        found.mode = LIST
    elif name == b"newaliases":
        found.mode = ALIASES
    if found.mode == DELIVER and not (
        found.request.arguments or found.request.recipients_from == FROM_BOTH
    ):
        text = "no recipients: name them as arguments, or in the header with the flag -t"
        raise UsageError(text)
    return found


def _with_long_names(words: list[bytes]) -> list[bytes]:
    """Replace the known long names before `--`."""
    found: list[bytes] = []
    for index, word in enumerate(words):
        if word == b"--":
            return found + words[index:]
        name, _, value = word.partition(b"=")
        short = _LONG.get(name)
        found.append(word if short is None else short + value)
    return found


def _apply(found: Invocation, letter: bytes, argument: bytes) -> None:
    """Do what one flag asks; those that are not here are taken and ignored."""
    request = found.request
    if letter == b"t":
        request.recipients_from = FROM_BOTH
    elif letter in (b"f", b"r"):
        request.sender = argument
    elif letter == b"F":
        found.full_name = argument
    elif letter == b"i" or (letter == b"o" and argument[:1] == b"i"):
        found.ignore_dots = True
    elif letter == b"O":
        _long_option(found, argument)
    elif letter == b"b":
        mode = _MODES.get(argument[:1])
        if mode is None:
            text = f"-b{argument.decode('latin-1')}: there is no daemon and no such mode\n{USAGE}"
            raise UsageError(text)
        found.mode = mode
        found.only_queue = argument[:1] == b"q"
    elif letter == b"q":
        found.mode = RUN_QUEUE
    elif letter == b"I":
        found.mode = ALIASES
    elif letter in (b"N", b"R", b"V"):
        extra: dict[str, Any] = request.extra or {"dsn": {}}
        key, value = _delivery_notice(letter, argument.decode("utf-8", "surrogateescape"))
        extra["dsn"].pop(key, None)
        if value:
            extra["dsn"][key] = value
        request.extra = extra if extra["dsn"] else None


def _long_option(found: Invocation, argument: bytes) -> None:
    """Take -O name=value: IgnoreDots is done, the others are ignored."""
    name, equals, value = argument.partition(b"=")
    if not equals or not name:
        text = f"-O {argument.decode('latin-1')}: a name=value is wanted"
        raise UsageError(text)
    if name.lower() == b"ignoredots":
        found.ignore_dots = value[:1].lower() in (b"", b"t", b"y", b"1")


def _delivery_notice(letter: bytes, argument: str) -> tuple[str, str]:
    """Return key and value of one wish about delivery notices (RFC 3461). Raises UsageError.

    The value "" wishes for nothing: `off`, as msmtp has it.
    """
    upper = argument.upper()
    if upper == "OFF" and letter != b"V":
        return ("notify" if letter == b"N" else "ret"), ""
    if letter == b"N":
        if upper == "NEVER" or _NOTIFY.issuperset(upper.split(",")):
            return "notify", upper
        wanted = "never, or a list of success, failure, delay"
    elif letter == b"R":
        if upper in ("FULL", "HDRS"):
            return "ret", upper
        wanted = "full or hdrs"
    else:
        short = 0 < len(argument) <= _LONGEST_ENVELOPE_ID
        if short and argument.isascii() and argument.isprintable():
            return "envid", argument
        wanted = f"1 to {_LONGEST_ENVELOPE_ID} printable ASCII characters"
    text = f"-{letter.decode()} {argument!a}: {wanted} is wanted"
    raise UsageError(text)


def stop_at_dot(read: Callable[[], bytes]) -> Callable[[], bytes]:
    r"""Return a reader that ends where `read` does, or before a line that is just a dot.

    Nothing after the dot is read: a user who types the dot does not type an end of file. If
    the first line ends with `\r\n`, so does that of the dot.
    """
    return _DotStop(read).read


class _DotStop:
    __slots__ = ("_crlf", "_ended", "_held", "_last", "_read", "_skip")

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        # A newline is put before the first line, so that all lines look alike.
        self._held = b"\n"
        self._skip = 1
        self._crlf: bool | None = None
        self._last = b""
        self._ended = False

    def read(self) -> bytes:
        """Return the next octets before the dot, b"" at the end."""
        while not self._ended:
            chunk = self._read()
            self._notice_line_end(chunk)
            data = self._held + chunk
            end = self._dot(data, last=not chunk)
            if end >= 0:
                self._ended = True
                self._held = b""
                data = data[:end]
            elif chunk:
                keep = self._unfinished(data)
                self._held = data[len(data) - keep :]
                data = data[: len(data) - keep]
            else:
                self._ended = True
            if data:
                data = data[self._skip :]
                self._skip = 0
            if data:
                return data
        return b""

    def _notice_line_end(self, chunk: bytes) -> None:
        """Find out whether the first line ends with a CR."""
        if self._crlf is None:
            end = chunk.find(b"\n")
            if end >= 0:
                self._crlf = (self._last + chunk[:end]).endswith(b"\r")
            self._last = chunk[-1:]

    def _dot(self, data: bytes, *, last: bool) -> int:
        """Return where a dot's line begins in `data`, -1 if it has none."""
        places = [data.find(b"\n.\n")]
        if self._crlf:
            places.append(data.find(b"\n.\r\n"))
        if last and data.endswith((b"\n.", b"\n.\r") if self._crlf else b"\n."):
            places.append(data.rindex(b"\n"))
        return min((place for place in places if place >= 0), default=-2) + 1 or -1

    @staticmethod
    def _unfinished(data: bytes) -> int:
        """Return how many octets at the end of `data` may be the beginning of a dot's line."""
        for start in (b"\n.\r", b"\n.", b"\n"):
            if data.endswith(start):
                return len(start)
        return 0
