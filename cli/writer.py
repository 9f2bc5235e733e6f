"""Writing one file as the user who started the command, although it becomes another user.

The figures are read as the spool's owner, and the collector's directory belongs to root. So a child
is forked first. It keeps the caller's rights, and does nothing but write one text.
"""

from __future__ import annotations

import os

from picoqmail import durable

_MODE = 0o644


class Writer:
    """A child that writes one file, whole or not at all: a reader never sees half of it."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        receive, self._send = os.pipe()
        complaint, self._complain = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._send)
            os.close(complaint)
            os._exit(self._serve(receive))
        os.close(receive)
        os.close(self._complain)
        self._complaint = complaint

    def write(self, text: str) -> str:
        """Hand the text over; returns what went wrong, "" if nothing. An empty text writes nothing.

        To be called once.
        """
        with open(self._send, "w", encoding="utf-8") as pipe:
            pipe.write(text)
        with open(self._complaint, encoding="utf-8", errors="replace") as pipe:
            problem = pipe.read()
        os.waitpid(self._child, 0)
        return problem

    def _serve(self, receive: int) -> int:
        scratch = f"{self._path}.{os.getpid()}"
        try:
            with open(receive, "rb") as pipe:
                data = pipe.read()
            if not data:
                return 0
            descriptor = durable.create_written(scratch, data)
            try:
                os.fchmod(descriptor, _MODE)
                durable.rename(scratch, self._path)
            finally:
                os.close(descriptor)
                durable.unlink_if_there(scratch)
        except OSError as exc:
            os.write(self._complain, f"cannot write {self._path}: {exc.strerror}".encode())
            return 1
        return 0
