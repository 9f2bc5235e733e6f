"""Our own relay, which obeys every rule until a test chooses a step at which to break one.

Without faults it is the strict receiver: it works as a good relay would, and records in
`complaints` whatever a client did against the RFCs. It uses one thread for each connection, and
records everything.
"""

from __future__ import annotations

import socket
import struct
from collections import defaultdict
from typing import TYPE_CHECKING, Literal

from rig import certificates, strict
from rig.received import Received
from rig.server import MailboxRelay, ThreadServer

if TYPE_CHECKING:
    import re
    import ssl
    from collections.abc import Mapping, Sequence

    from rig.faults import Fault

# No connection of a test lives longer than this without a byte, so threads always end.
IDLE_SECONDS = 60
OFFERS = ("PIPELINING", "SIZE 50000000", "8BITMIME", "ENHANCEDSTATUSCODES", "SMTPUTF8")
EVERYTHING = (*OFFERS, "CHUNKING", "BINARYMIME", "DSN", "AUTH PLAIN LOGIN XOAUTH2")


class HostileRelay(MailboxRelay, ThreadServer):
    """An SMTP (or LMTP) server on a free port of 127.0.0.1; a context manager.

    `faults` maps a step to one fault, which applies every time, or to a list with one fault for
    each occurrence (over all connections). None, and the end of the list, is the ordinary reply.
    Steps: `banner`, the verbs (`EHLO`, `HELO`, `LHLO`, `STARTTLS`, `AUTH`, `MAIL`, `RCPT`, `DATA`,
    `BDAT`, `RSET`, `NOOP`, `QUIT`), one mechanism (`AUTH PLAIN`), one address (`RCPT <a@b>`,
    `MAIL <a@b>`), and `.` for the reply to the content (LMTP: also `. <a@b>`). `offers` are the
    lines of the reply to EHLO; with None the relay knows only HELO. `tls` is `starttls` or
    `implicit`.
    """

    def __init__(
        self,
        faults: Mapping[str, Fault | Sequence[Fault | None]] | None = None,
        *,
        offers: Sequence[str] | None = OFFERS,
        tls: Literal["", "starttls", "implicit"] = "",
        lmtp: bool = False,
        certificate: certificates.Certificate | None = None,
    ) -> None:
        super().__init__()
        self.certificate = certificate or certificates.default()
        self.commands: list[tuple[int, bytes]] = []
        self.complaints: list[str] = []
        self.wire: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.reads: list[bytes] = []
        self.offers = offers
        self.tls = tls
        self.lmtp = lmtp
        self._faults = {
            step: fault if callable(fault) else list(fault)
            for step, fault in (faults or {}).items()
        }
        self._context: ssl.SSLContext | None = None

    def verbs(self, connection: int | None = None) -> list[str]:
        """Return the verbs of the received commands, of one connection (from 1) or of all."""
        return [
            line.split(None, 1)[0].decode("ascii", "replace").upper() if line.strip() else ""
            for number, line in list(self.commands)
            if connection in (None, number)
        ]

    def start(self) -> None:
        """Accept connections."""
        if self.tls:
            self._context = self.certificate.server_context()
        super().start()

    def fault_at(self, *steps: str) -> Fault | None:
        """Take the fault for the first of these steps that has one now."""
        with self.lock:
            for step in steps:
                faults = self._faults.get(step)
                if callable(faults):
                    return faults
                if faults:
                    return faults.pop(0)
        return None

    def secured(self, connection: socket.socket) -> socket.socket:
        """Do the TLS handshake on an accepted connection."""
        if self._context is None:
            raise RuntimeError("a relay without tls= was asked for TLS")
        secure = self._context.wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        )
        self.exchange(connection, secure)
        try:
            secure.do_handshake()
        except BaseException:
            self.release(secure)
            raise
        return secure

    def serve(self, connection: socket.socket, number: int) -> None:
        """Talk, as long as the client does."""
        connection.settimeout(IDLE_SECONDS)
        talk = _Talk(self, connection, number)
        try:
            talk.run()
        finally:
            self.release(talk.connection)


class _Talk:
    """One connection: its unread input, and the state of RFC 5321 4.1.4."""

    def __init__(self, relay: HostileRelay, connection: socket.socket, number: int) -> None:
        self.relay = relay
        self.connection = connection
        self.number = number
        self.stopping = relay.stopping
        self._rest = bytearray()
        self._helo = ""
        self._offers: frozenset[str] = frozenset()
        self._secure = False
        self._user: str | None = None
        self._sender: str | None = None
        self._mail_parameters: tuple[str, ...] = ()
        self._recipients: list[str] = []
        self._rcpt_parameters: list[tuple[str, ...]] = []
        self._chunks = bytearray()

    # The actions of a fault (rig.faults.Line).

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def reset(self) -> None:
        # A zero linger time makes close() send RST (socket(7), SO_LINGER).
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def await_end(self) -> None:
        while not self.stopping.is_set() and self._receive():
            self._rest.clear()

    def drop_input(self) -> bytes:
        dropped = bytes(self._rest)
        self._rest.clear()
        return dropped

    def next_line(self) -> bytes:
        line = self._line()
        self.relay.commands.append((self.number, line))
        return line

    # The conversation.

    def run(self) -> None:
        if self.relay.tls == "implicit":
            self._secured()
        going = self._answer("220 hostile.rig ready", "banner")
        while going:
            line = self._line()
            if not line:
                return
            going = self._command(line)

    def _command(self, line: bytes) -> bool:
        self.relay.commands.append((self.number, line))
        verb = line.split(None, 1)[0].decode("ascii", "replace").upper() if line.strip() else ""
        utf8 = "SMTPUTF8" in self._mail_parameters or b" SMTPUTF8" in line.upper()
        self._complain(*strict.command_complaints(line, utf8=utf8))
        # The octets of a chunk belong to their BDAT (RFC 3030 2) and are not the next command.
        may_follow = verb == "BDAT" or (
            "PIPELINING" in self._offers and verb not in strict.LAST_OF_A_GROUP
        )
        if self._rest and not may_follow:
            self._complain(f"more in the same breath after {verb}: {bytes(self._rest[:80])!r}")
        commands = {
            "EHLO": self._greet,
            "HELO": self._greet,
            "LHLO": self._greet,
            "STARTTLS": self._starttls,
            "AUTH": self._auth,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "BDAT": self._bdat,
            "RSET": self._rset,
            "NOOP": self._noop,
            "QUIT": self._quit,
        }
        if verb not in commands:
            self._complain(f"an unknown command: {line!r}")
            return self._answer("500 5.5.1 Unknown command", verb)
        return commands[verb](line.rstrip(b"\r\n"))

    def _greet(self, line: bytes) -> bool:
        verb, _, name = line.decode("utf-8", "replace").partition(" ")
        verb = verb.upper()
        if self.relay.lmtp != (verb == "LHLO"):
            self._complain(f"{verb} to a server of {'LMTP' if self.relay.lmtp else 'SMTP'}")
            return self._answer("500 5.5.1 Not this protocol", verb)
        if not name or " " in name:
            self._complain(f"a malformed {verb}: {line!r}")
        if verb == "EHLO" and self.relay.offers is None:
            return self._answer("500 5.5.1 Only HELO here", verb)
        self._helo = name
        self._forget()
        offers = list(self.relay.offers or ()) if verb != "HELO" else []
        if self.relay.tls == "starttls" and not self._secure and verb != "HELO":
            offers.append("STARTTLS")
        self._offers = frozenset(offer.split()[0].upper() for offer in offers)
        lines = ["hostile.rig", *offers]
        text = "\r\n".join(f"250-{text}" for text in lines[:-1])
        return self._answer(f"{text}\r\n250 {lines[-1]}".lstrip("\r\n"), verb)

    def _starttls(self, _line: bytes) -> bool:
        if "STARTTLS" not in self._offers:
            self._complain("STARTTLS although it was not offered")
            return self._answer("502 5.5.1 Not offered", "STARTTLS")
        if not self._answer("220 2.0.0 Go ahead", "STARTTLS"):
            return False
        if self._rest:
            # The injection of CVE-2011-0411, seen from the client's side.
            self._complain(f"plain text after STARTTLS: {bytes(self._rest[:80])!r}")
        self._secured()
        self._helo = ""
        self._offers = frozenset()
        return True

    def _secured(self) -> None:
        self.connection = self.relay.secured(self.connection)
        self._secure = True

    def _auth(self, line: bytes) -> bool:
        if "AUTH" not in self._offers:
            self._complain("AUTH although it was not offered")
        words = line.split()
        mechanism = words[1].decode("ascii", "replace").upper() if len(words) > 1 else ""
        if self._sender is not None:
            self._complain("AUTH inside a transaction")
        if (fault := self.relay.fault_at(f"AUTH {mechanism}")) is not None:
            return fault(_Spoken(self), b"235 2.7.0 Come in\r\n")
        if mechanism == "LOGIN":
            for challenge in ("334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6")[len(words) - 2 :]:
                self.send(challenge.encode() + b"\r\n")
                self.relay.commands.append((self.number, self._line()))
        elif len(words) < 3:
            self.send(b"334 \r\n")
            self.relay.commands.append((self.number, self._line()))
        self._user = mechanism
        return self._answer("235 2.7.0 Come in", "AUTH")

    def _mail(self, line: bytes) -> bool:
        match = strict.MAIL.fullmatch(line)
        if match is None:
            self._complain(f"a malformed MAIL: {line!r}")
            return self._answer("501 5.5.4 Syntax", "MAIL")
        if not self._helo or self._sender is not None:
            self._complain("MAIL before EHLO" if not self._helo else "MAIL inside a transaction")
            return self._answer("503 5.5.1 Not now", "MAIL")
        parameters = _parameters(match)
        self._complain(*strict.parameter_complaints(parameters, self._offers))
        sender = _path(match)
        going, code = self._judge("250 2.1.0 Sender noted", f"MAIL <{sender}>", "MAIL")
        if code.startswith("2"):
            self._sender, self._mail_parameters = sender, parameters
        return going

    def _rcpt(self, line: bytes) -> bool:
        match = strict.RCPT.fullmatch(line)
        if match is None or not _path(match):
            self._complain(f"a malformed RCPT: {line!r}")
            return self._answer("501 5.5.4 Syntax", "RCPT")
        if self._sender is None:
            # A pipelining client sends these even after a refused MAIL, so that is no complaint.
            return self._answer("503 5.5.1 No sender yet", "RCPT")
        parameters = _parameters(match)
        self._complain(*strict.parameter_complaints(parameters, self._offers))
        recipient = _path(match)
        going, code = self._judge("250 2.1.5 Noted", f"RCPT <{recipient}>", "RCPT")
        if code.startswith("2"):
            self._recipients.append(recipient)
            self._rcpt_parameters.append(parameters)
        return going

    def _data(self, _line: bytes) -> bool:
        if not self._recipients:
            # If a fault replies 354 nevertheless, a lone dot must follow.
            going, code = self._judge("503 5.5.1 No recipient", "DATA")
        else:
            going, code = self._judge("354 Go ahead", "DATA")
        if not going or not code.startswith("3"):
            return going
        wire = self._until_dot()
        self._complain(*strict.content_complaints(wire, self._mail_parameters, binary=False))
        return self._end(strict.unstuffed(wire))

    def _bdat(self, line: bytes) -> bool:
        words = line.split()
        if "CHUNKING" not in self._offers or len(words) < 2 or not words[1].isdigit():
            self._complain(f"BDAT not offered or malformed: {line!r}")
            return self._answer("501 5.5.4 Syntax", "BDAT")
        size = int(words[1])
        while len(self._rest) < size:
            if not self._receive():
                return False
        self._chunks += self._rest[:size]
        del self._rest[:size]
        if not self._recipients:
            return self._answer("503 5.5.1 No recipient", "BDAT")
        if len(words) == 2:
            return self._answer("250 2.0.0 Chunk noted", "BDAT")
        fault = self.relay.fault_at("BDAT")
        if fault is not None:
            return fault(_Spoken(self), b"250 2.0.0 Kept\r\n")
        content = bytes(self._chunks)
        self._complain(*strict.content_complaints(content, self._mail_parameters, binary=True))
        return self._end(content)

    def _end(self, content: bytes) -> bool:
        """Reply to a whole content, once, or with LMTP once for each recipient; and file it."""
        going, code = True, ""
        targets = self._recipients if self.relay.lmtp else [""]
        # Filed before the reply is sent, so that a client that has the reply finds the message.
        for target in targets:
            steps = [f". <{target}>", "."] if target else ["."]
            fault = self.relay.fault_at(*steps)
            spoken = _Spoken(self)
            if fault is None:
                code = "250 2.0.0 Kept"
                self._file(content, code, target)
                self.send(code.encode() + b"\r\n")
                continue
            going = fault(spoken, b"250 2.0.0 Kept\r\n")
            self._file(content, spoken.reply(), target)
            if not going:
                break
        self._forget()
        return going

    def _file(self, content: bytes, reply: str | None, target: str) -> None:
        self.relay.mailbox.put(
            Received(
                sender=self._sender or "",
                recipients=(target,) if target else tuple(self._recipients),
                content=content,
                mail_parameters=self._mail_parameters,
                rcpt_parameters=tuple(self._rcpt_parameters),
                helo=self._helo,
                connection=self.number,
                user=self._user,
                tls=self._secure,
                reply=reply,
            )
        )

    def _rset(self, _line: bytes) -> bool:
        self._forget()
        return self._answer("250 2.0.0 Forgotten", "RSET")

    def _noop(self, _line: bytes) -> bool:
        return self._answer("250 2.0.0 Here", "NOOP")

    def _quit(self, _line: bytes) -> bool:
        self._answer("221 2.0.0 Bye", "QUIT")
        return False

    # Bytes.

    def _forget(self) -> None:
        self._sender = None
        self._mail_parameters = ()
        self._recipients = []
        self._rcpt_parameters = []
        self._chunks = bytearray()

    def _complain(self, *complaints: str) -> None:
        self.relay.complaints.extend(f"connection {self.number}: {text}" for text in complaints)

    def _answer(self, ordinary: str, *steps: str) -> bool:
        return self._judge(ordinary, *steps)[0]

    def _judge(self, ordinary: str, *steps: str) -> tuple[bool, str]:
        """Reply, or apply the fault of this step; return the reply that counts."""
        fault = self.relay.fault_at(*steps)
        if fault is None:
            self.send(ordinary.encode() + b"\r\n")
            return True, ordinary
        spoken = _Spoken(self)
        going = fault(spoken, ordinary.encode() + b"\r\n")
        return going, spoken.reply() or ""

    def _receive(self) -> bytes:
        data = self.connection.recv(65536)
        self.relay.wire[self.number] += data
        self.relay.reads.append(data)
        self._rest += data
        return data

    def _line(self) -> bytes:
        """Return the next line with its end, or the rest before the end of the connection."""
        while b"\n" not in self._rest and self._receive():
            pass
        line, newline, _ = self._rest.partition(b"\n")
        del self._rest[: len(line) + len(newline)]
        return bytes(line + newline)

    def _until_dot(self) -> bytes:
        """Return the data up to CRLF . CRLF, without the dot.

        Raises:
            ConnectionError: the connection ended before the dot.
        """
        seen = 0
        while not self._rest.startswith(b".\r\n"):
            end = self._rest.find(b"\r\n.\r\n", max(0, seen - 4))
            if end >= 0:
                wire = bytes(self._rest[: end + 2])
                del self._rest[: end + 5]
                return wire
            seen = len(self._rest)
            if not self._receive():
                raise ConnectionError("the client left inside the data")
        del self._rest[:3]
        return b""


class _Spoken:
    """Gives a fault the connection, and records the beginning of what the fault sends."""

    def __init__(self, talk: _Talk) -> None:
        self._talk = talk
        self._said = b""
        self.stopping = talk.stopping

    def send(self, data: bytes) -> None:
        if len(self._said) < 200:
            self._said += data[:200]
        self._talk.send(data)

    def reset(self) -> None:
        self._talk.reset()

    def await_end(self) -> None:
        self._talk.await_end()

    def drop_input(self) -> bytes:
        return self._talk.drop_input()

    def next_line(self) -> bytes:
        return self._talk.next_line()

    def reply(self) -> str | None:
        """Return the first line that was sent, or None if it was not a whole line."""
        line, newline, _ = self._said.partition(b"\r\n")
        return line.decode("utf-8", "replace") if newline else None


def _path(match: re.Match[bytes]) -> str:
    return match["path"].decode("utf-8", "replace")


def _parameters(match: re.Match[bytes]) -> tuple[str, ...]:
    return tuple(match["more"].decode("utf-8", "replace").split())
