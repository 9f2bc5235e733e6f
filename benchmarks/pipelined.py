"""The limit of draining: raw sockets that send prepared octets, one round trip for each mail."""

from __future__ import annotations

import socket
import sys
import threading


def send(host: str, port: int, mail: bytes, count: int) -> None:
    """Send one mail many times over one connection; one write has a final dot and an envelope."""
    body = b"\r\n".join(mail.split(b"\n")) + b".\r\n"
    envelope = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"
    with socket.create_connection((host, port)) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        replies = link.makefile("rb")
        _expect(replies, b"220")
        link.sendall(b"EHLO bench.test\r\n")
        _expect(replies, b"250")
        link.sendall(envelope)
        for number in range(count):
            for code in (b"250", b"250", b"354"):
                _expect(replies, code)
            link.sendall(body + (envelope if number < count - 1 else b"QUIT\r\n"))
            _expect(replies, b"250")


def _expect(replies: socket.SocketIO, code: bytes) -> None:
    while True:
        line = replies.readline()
        if not line.startswith(code):
            raise RuntimeError(f"{code!r} was wanted, {line!r} came")
        if line[3:4] != b"-":
            return


def main(host: str, port: int, mail: bytes, count: int, connections: int) -> None:
    """Divide the mails among so many connections, a thread each."""
    shares = [len(range(one, count, connections)) for one in range(connections)]
    senders = [threading.Thread(target=send, args=(host, port, mail, share)) for share in shares]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()


if __name__ == "__main__":
    with open(sys.argv[3], "rb") as file:
        main(sys.argv[1], int(sys.argv[2]), file.read(), int(sys.argv[4]), int(sys.argv[5]))
