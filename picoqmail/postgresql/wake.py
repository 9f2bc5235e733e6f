"""Waiting for mail: until a commit wakes us, or for a while.

An acceptance wakes workers at most once a second in each process (NOTIFY), because all commits that
do so wait for each other. A wake-up may be lost, and behind a pooler none comes. So it only
shortens the wait: whoever waits looks again after a while in any case.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

import psycopg

from picoqmail.errors import PicoqmailError
from picoqmail.postgresql.connections import connect
from picoqmail.postgresql.insertion import channel_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from picoqmail.postgresql.connections import Connections, Link

# How often a signal is looked for.
_SLICE_SECONDS = 0.2


class WakeUps:
    """One process's ear for wake-ups; it has a connection of its own."""

    def __init__(self, connections: Connections) -> None:
        """Nothing is connected before the first wait."""
        self._connections = connections
        self._link: Link | None = None
        self._pid = 0

    def wait(self, seconds: float, is_stopped: Callable[[], bool]) -> bool:
        """Wait until there is mail, at most so long, or until `is_stopped`; True if woken.

        Raises nothing: without a connection it is only time that passes.
        """
        deadline = time.monotonic() + seconds
        link = self._listening()
        while not is_stopped() and (left := deadline - time.monotonic()) > 0:
            if link is None:
                time.sleep(min(left, _SLICE_SECONDS))
                continue
            try:
                if self._has_notice(link, min(left, _SLICE_SECONDS)):
                    return True
            except (psycopg.Error, OSError):
                self.close()
                link = None
        return False

    def close(self) -> None:
        """Listen no more."""
        link, self._link = self._link, None
        if link is not None and self._pid == os.getpid():
            link.close()

    def _listening(self) -> Link | None:
        """Return a connection that listens; None if there can be none.

        A pooler shows by another number of the session than the one that was given at the start:
        there a LISTEN would stay behind in a session of somebody else.
        """
        if self._pid != os.getpid():
            self._link, self._pid = None, os.getpid()
        if self._link is not None and not self._link.closed:
            return self._link
        link = None
        try:
            link = connect(self._connections.address)
            row = link.execute("SELECT pg_backend_pid()").fetchone()
            if row is not None and row[0] == link.info.backend_pid:
                # A name of ours, which needs no quotes (address.py).
                link.execute(f"LISTEN {channel_of(self._connections.address.schema)}".encode())
                self._link = link
                return link
        except (psycopg.Error, PicoqmailError, OSError):
            # The look that follows reports what is wrong.
            pass
        if link is not None:
            link.close()
        return None

    @staticmethod
    def _has_notice(link: Link, seconds: float) -> bool:
        """Wait for a notice; take all that have come. Raises psycopg.Error, OSError."""
        if not select.select([link.pgconn.socket], [], [], seconds)[0]:
            return False
        link.pgconn.consume_input()
        is_woken = False
        while link.pgconn.notifies() is not None:
            is_woken = True
        return is_woken
