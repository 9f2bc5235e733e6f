"""SMTP submission on two descriptors, what `sendmail -bs` asks for (RFC 5321, RFC 6409).

Reading commands and message data of one local client lives here; a message goes the way of every
other through `inject`, which completes and rewrites it. The client may be hostile: lines,
commands, errors and recipients are bounded, and nothing but CRLF dot CRLF ends a message.
"""

from __future__ import annotations

import posix
import time

from picoqmail.durable import write_all
from picoqmail.errors import InputError, PicoqmailError
from picoqmail.home.control import Control
from picoqmail.home.limits import read_limits
from picoqmail.home.owner import become_submitter
from picoqmail.home.paths import locate
from picoqmail.message.tokens import AT, COLON, COMMA, DOT, WORDS, parse, unquote
from picoqmail.submission.caller import ACCEPTED, TEMPORARY, read_stdin
from picoqmail.submission.inject import FROM_ARGUMENTS, Request, inject
from picoqmail.submission.sendmail import make_author
from picoqmail.submission.start_sender import start_sender

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from picoqmail.home.paths import Home

MAX_COMMAND_OCTETS = 4096
"""Longest command line; RFC 5321 wants 512 and a little for each extension."""
MAX_RECIPIENTS = 10000
"""Recipients of one transaction; RFC 5321 wants 100."""
MAX_ERRORS = 20
"""Commands that may fail before we hang up."""
MAX_IDLE_COMMANDS = 1000
"""Commands between two messages that are no RCPT."""

_STDOUT = 1
_PATH_KINDS = frozenset((*WORDS, DOT, AT))
_HOST_SPECIALS = frozenset(b' \t\r\n\0<>(),;\\"')
_ROUTE_KINDS = _PATH_KINDS | {COMMA, COLON}


class _LostClientError(InputError):
    """The client has closed the connection, in the middle of a message or between two."""


class Stream:
    """The client's octets: lines of commands, and between them the data of messages.

    If the first line of a client ends with a bare LF, as that of a script that prints its commands,
    all its lines may. Every other client has to send CRLF.
    """

    __slots__ = ("_buffer", "_has_begun", "_read", "has_bare_lf")

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._buffer = b""
        self._has_begun = False
        self.has_bare_lf = False

    def fill(self) -> bool:
        """Wait for more; False at the end of the input."""
        chunk = self._read()
        self._buffer += chunk
        return bool(chunk)

    def line(self) -> bytes | None:
        """Return the next command without its line end; None if it is too long.

        A command that is too long is skipped to its end. Raises _LostClientError.
        """
        too_long = False
        while True:
            end = self._buffer.find(b"\n")
            if end >= 0:
                line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
                if not self._has_begun:
                    self._has_begun = True
                    self.has_bare_lf = not line.endswith(b"\r")
                if too_long or len(line) > MAX_COMMAND_OCTETS:
                    return None
                return line.removesuffix(b"\r")
            if len(self._buffer) > MAX_COMMAND_OCTETS:
                too_long = True
                self._buffer = b""
            if not self.fill():
                raise _LostClientError(0, "the client closed the connection")

    def take(self) -> bytes:
        """Return what is buffered, or else the next octets. Raises _LostClientError."""
        if not self._buffer and not self.fill():
            raise _LostClientError(0, "the client closed the connection before the final dot")
        data, self._buffer = self._buffer, b""
        return data

    def put_back(self, data: bytes) -> None:
        """Make `data` the next to be read."""
        self._buffer = data + self._buffer


class Data:
    r"""The content of one message, as it is stored: dots unstuffed, `\r\n` made `\n`.

    Only `\r\n.\r\n` ends it; a lone CR or LF is content like any other octet, so that nobody can
    put a second transaction into a message. Of a client of bare LFs only `\n.\n` does.
    """

    __slots__ = ("_end", "_held", "_line_end", "_skip", "_stream", "ended")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._line_end = b"\n" if stream.has_bare_lf else b"\r\n"
        self._end = self._line_end + b"." + self._line_end
        # The line end before the data is part of the pattern that ends them: "DATA\r\n.\r\n".
        self._held = self._line_end
        self._skip = 1
        self.ended = False

    def read(self) -> bytes:
        """Return the next octets, b"" after the last. Raises _LostClientError."""
        while not self.ended:
            data = self._held + self._stream.take()
            end = data.find(self._end)
            if end >= 0:
                self.ended = True
                self._stream.put_back(data[end + len(self._end) :])
                data = data[: end + len(self._line_end)]
            else:
                keep = _unfinished(data, self._end)
                self._held = data[len(data) - keep :]
                data = data[: len(data) - keep]
            stored = data.replace(self._line_end + b".", self._line_end)
            stored = stored.replace(self._line_end, b"\n")
            if stored:
                stored = stored[self._skip :]
                self._skip = 0
            if stored:
                return stored
        return b""

    def drain(self) -> None:
        """Read to the end and keep nothing. Raises _LostClientError."""
        while self.read():
            pass


def _unfinished(data: bytes, ending: bytes) -> int:
    """Return how many octets at the end of `data` may be the beginning of `ending`."""
    for length in range(len(ending) - 1, 0, -1):
        if data.endswith(ending[:length]):
            return length
    return 0


class _RefusedError(Exception):
    """A command is answered with this reply and counts as an error."""


def path_of(argument: bytes, keyword: bytes) -> tuple[bytes, list[bytes]]:
    """Return the raw address and the parameters of `FROM:<path> ...` or `TO:<path> ...`.

    A source route is dropped, and a path without angle brackets is taken, as most servers do
    (RFC 5321 sections 3.3 and 4.1.2). Raises _RefusedError.
    """
    if argument[: len(keyword)].upper() != keyword:
        raise _RefusedError(f"501 5.5.4 Say {keyword.decode()}<address>")
    rest = argument[len(keyword) :].strip(b" ")
    if rest[:1] != b"<":
        path, _, parameters = rest.partition(b" ")
        if not path:
            raise _RefusedError(f"501 5.5.4 Say {keyword.decode()}<address>")
    else:
        end = _closing_bracket(rest)
        path, parameters = rest[1:end], rest[end + 1 :]
    if path[:1] == b"@":
        route = parse(path)
        if route is None or not _ROUTE_KINDS.issuperset(kind for kind, _ in route):
            raise _RefusedError("501 5.1.7 Bad address syntax")
        path = path.partition(b":")[2]
    found = parse(path)
    if found is None or not _PATH_KINDS.issuperset(kind for kind, _ in found):
        raise _RefusedError("501 5.1.7 Bad address syntax")
    kinds = [kind for kind, _ in found]
    # Not itertools.pairwise: one module less to import.
    if any(kind in WORDS and kinds[at - 1] in WORDS for at, kind in enumerate(kinds) if at):
        # One reader takes that for two addresses, another drops the blank and reads one.
        raise _RefusedError("501 5.1.7 A blank is allowed in quotes only")
    address = unquote(found)
    if not _HOST_SPECIALS.isdisjoint(address.rpartition(b"@")[2]) and b"@" in address:
        raise _RefusedError("501 5.1.2 Bad host name")
    return address, parameters.split()


def _closing_bracket(text: bytes) -> int:
    """Return where the `>` of a path is that begins `text`; one in quotes is none."""
    quoted = False
    at = 1
    while at < len(text):
        byte = text[at : at + 1]
        if byte == b"\\":
            at += 1
        elif byte == b'"':
            quoted = not quoted
        elif byte == b">" and not quoted:
            return at
        at += 1
    raise _RefusedError("501 5.5.4 The address has no closing >")


class Submission:
    """One session; `read` and `write` are those of the client's connection."""

    __slots__ = (
        "_environ",
        "_errors",
        "_has_data",
        "_home",
        "_host",
        "_idle",
        "_limit",
        "_recipients",
        "_sender",
        "_stream",
        "_write",
    )

    def __init__(
        self,
        home: Home,
        environ: dict[bytes, bytes],
        read: Callable[[], bytes],
        write: Callable[[bytes], None],
    ) -> None:
        """Read what is needed of the settings. Raises ConfigurationError."""
        self._home = home
        self._environ = environ
        self._stream = Stream(read)
        self._write = write
        value = Control(home.control).read("me")
        self._host = value.text if value else "localhost"
        # Another queue program has limits of its own, and may work where we have no name.
        self._limit = 0 if b"QMAILQUEUE" in environ else read_limits(home).databytes
        self._sender: bytes | None = None
        self._recipients: list[bytes] = []
        self._errors = 0
        self._idle = 0
        self._has_data = False

    def _reply(self, text: str) -> None:
        self._write(f"{text}\r\n".encode("ascii", "replace"))

    def serve(self) -> int:
        """Serve the client to its QUIT or its end; return the exit code."""
        self._reply(f"220 {self._host} ESMTP picoqmail")
        try:
            while self._next():
                pass
        except _LostClientError:
            # Between two messages that is an end like QUIT. A message that was cut is not accepted,
            # and the exit code says so.
            return TEMPORARY if self._has_data else ACCEPTED
        return ACCEPTED

    def _next(self) -> bool:
        """Do one command; False if it was the last."""
        line = self._stream.line()
        if line is None:
            return self._failed("500 5.5.2 The line is too long")
        self._idle += 1
        verb, _, argument = line.partition(b" ")
        verb = verb.upper()
        argument = argument.strip(b" ")
        if verb == b"QUIT":
            self._reply(f"221 2.0.0 {self._host} closes the connection")
            return False
        if self._idle > MAX_IDLE_COMMANDS:
            self._reply(f"421 4.7.0 {self._host} Too many commands without a message")
            return False
        action = {
            b"HELO": self._helo,
            b"EHLO": self._ehlo,
            b"MAIL": self._mail,
            b"RCPT": self._rcpt,
            b"DATA": self._data,
            b"RSET": self._rset,
            b"NOOP": self._noop,
            b"VRFY": self._vrfy,
            b"HELP": self._help,
        }.get(verb)
        if action is None:
            return self._failed("500 5.5.1 No such command")
        try:
            action(argument)
        except _RefusedError as exc:
            return self._failed(str(exc))
        return True

    def _failed(self, text: str) -> bool:
        self._errors += 1
        if self._errors > MAX_ERRORS:
            self._reply(f"421 4.7.0 {self._host} Too many errors")
            return False
        self._reply(text)
        return True

    def _forget(self) -> None:
        self._sender = None
        self._recipients = []

    def _helo(self, _argument: bytes) -> None:
        self._forget()
        self._reply(f"250 {self._host}")

    def _ehlo(self, _argument: bytes) -> None:
        self._forget()
        size = f"SIZE {self._limit}" if self._limit else "SIZE"
        offers = (self._host, "PIPELINING", size, "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")
        lines = [f"250-{offer}" for offer in offers] + ["250 HELP"]
        self._reply("\r\n".join(lines))

    def _mail(self, argument: bytes) -> None:
        if self._sender is not None:
            raise _RefusedError("503 5.5.1 There is a sender already; RSET forgets it")
        sender, parameters = path_of(argument, b"FROM:")
        for parameter in parameters:
            self._check_parameter(parameter)
        self._sender = sender
        self._recipients = []
        self._reply("250 2.1.0 Sender ok")

    def _check_parameter(self, parameter: bytes) -> None:
        name, _, value = parameter.upper().partition(b"=")
        if name == b"SIZE" and value.isdigit():
            # Longer than any file: int() of a million digits would take its time.
            if self._limit and (len(value) > len(str(self._limit)) or int(value) > self._limit):
                raise _RefusedError(f"552 5.3.4 The limit is {self._limit} bytes")
        elif parameter.upper() != b"SMTPUTF8" and not (
            name == b"AUTH" or (name == b"BODY" and value in (b"7BIT", b"8BITMIME"))
        ):
            raise _RefusedError("555 5.5.4 That parameter is not offered")

    def _rcpt(self, argument: bytes) -> None:
        if self._sender is None:
            raise _RefusedError("503 5.5.1 MAIL first")
        recipient, parameters = path_of(argument, b"TO:")
        if parameters:
            raise _RefusedError("555 5.5.4 That parameter is not offered")
        if not recipient:
            raise _RefusedError("501 5.1.3 The recipient is empty")
        if len(self._recipients) >= MAX_RECIPIENTS:
            raise _RefusedError(f"452 4.5.3 More than {MAX_RECIPIENTS} recipients")
        # A client that sends a long list is not idle.
        self._idle = 0
        self._recipients.append(recipient)
        self._reply("250 2.1.5 Recipient ok")

    def _data(self, argument: bytes) -> None:
        if argument:
            raise _RefusedError("501 5.5.4 DATA has no argument")
        if self._sender is None:
            raise _RefusedError("503 5.5.1 MAIL first")
        if not self._recipients:
            raise _RefusedError("503 5.5.1 RCPT first")
        self._has_data = True
        self._reply("354 Go ahead; end with a dot on a line of its own")
        data = Data(self._stream)
        reply = self._take(data)
        data.drain()
        self._has_data = False
        self._forget()
        self._idle = 0
        if reply[:1] != "2":
            raise _RefusedError(reply)
        self._reply(reply)

    def _take(self, data: Data) -> str:
        """Inject one message; return the reply to its final dot."""
        request = Request()
        request.recipients_from = FROM_ARGUMENTS
        request.sender = self._sender
        request.arguments = self._recipients
        request.program = "sendmail -bs"
        request.qmail_form = False
        environ = dict(self._environ)
        if self._sender:
            make_author(environ, self._sender)
        try:
            sends = inject(
                request,
                environ,
                self._home,
                data.read,
                now=time.time(),
                pid=posix.getpid(),
                warn=lambda _text: None,
            )
        except _LostClientError:
            raise
        except PicoqmailError as exc:
            text = " ".join(str(exc).split())
            return f"554 5.6.0 {text}" if exc.permanent else f"451 4.3.0 {text}"
        except (OSError, MemoryError) as exc:
            return f"451 4.3.0 {' '.join(str(exc).split()) or 'out of memory'}"
        except Exception as exc:  # noqa: BLE001 - the client keeps the message, and says why
            return f"451 4.3.0 internal bug, please report it: {' '.join(repr(exc).split())}"
        if sends:
            start_sender(self._home, time.time())
        return "250 2.0.0 Accepted"

    def _rset(self, _argument: bytes) -> None:
        self._forget()
        self._reply("250 2.0.0 Forgotten")

    def _noop(self, _argument: bytes) -> None:
        self._reply("250 2.0.0 Ok")

    def _vrfy(self, _argument: bytes) -> None:
        self._reply("252 2.5.2 Send some mail, I will try my best")

    def _help(self, _argument: bytes) -> None:
        self._reply("214 2.0.0 EHLO HELO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT")


def _write_stdout(data: bytes) -> None:
    write_all(_STDOUT, data)


def serve_stdin(environ: dict[bytes, bytes]) -> int:
    """Serve the client on descriptors 0 and 1; return the exit code, 0 or 111."""
    try:
        home = locate()
        become_submitter(home)
        return Submission(home, environ, read_stdin, _write_stdout).serve()
    except PicoqmailError as exc:
        text = " ".join(str(exc).split())
        try:
            _write_stdout(f"421 4.3.0 {text}\r\n".encode("ascii", "replace"))
        except OSError:
            return TEMPORARY
        return TEMPORARY
    except OSError:
        # The client does not read our replies, so no reply can report it.
        return TEMPORARY
