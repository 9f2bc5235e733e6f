"""A long run shared among some processes: one leaves most of the machine idle.

What may live here: how many processes a run is worth, making them, and hearing what came of them.
What they do is the run's. Messages are dealt out before the fork, so no two processes of a run
meet at one; what keeps a run apart from other programs (locks, the breaker) keeps them apart too.

Only the sending programs do this, which have one thread and a process of their own; a library
never forks its caller.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress

from picoqmail import durable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MESSAGES_WORTH_A_PROCESS = 200
"""With fewer a second process takes as long to make as it saves."""

PROCESSES_LIMIT = 4
"""More would ask a relay for more than one host should."""

_BLOCK_OCTETS = 65536
_ENDING = (signal.SIGTERM, signal.SIGINT)


def size(messages: int, connections: int) -> int:
    """How many processes so many messages are worth, each of which needs a connection at least."""
    if threading.active_count() > 1:
        # A lock that another thread holds would stay held in the child for ever.
        return 1
    # One of them waits for the relay or the disk while the others work.
    useful = len(os.sched_getaffinity(0)) + 1
    worth = messages // MESSAGES_WORTH_A_PROCESS
    return max(1, min(worth, useful, connections, PROCESSES_LIMIT))


class Hand:
    """One more process, at work until `wait`; `pid` is 0 when it has ended."""

    def __init__(self, pid: int, descriptor: int) -> None:
        """`descriptor` is the end of the pipe that it tells its result through."""
        self.pid = pid
        self._descriptor = descriptor

    def stop(self) -> None:
        """Ask it to end soon, as a signal asks the program. Safe in a handler."""
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)

    def wait(self) -> Any:  # noqa: ANN401 - whatever JSON its work gave
        """What its work returned. Raises ChildProcessError if it died before it could say so."""
        blocks = []
        while block := os.read(self._descriptor, _BLOCK_OCTETS):
            blocks.append(block)
        os.close(self._descriptor)
        # Once it is waited for, its number may be somebody else's.
        pid, self.pid = self.pid, 0
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            raise ChildProcessError(f"a process of this run, {pid}, {how}")
        return json.loads(b"".join(blocks))


def hire(work: Callable[[Callable[[], bool]], object]) -> Hand:
    """Fork a process that does `work` and returns its result, which must have a form in JSON.

    `work` is given a function that says whether its parent is gone: who killed the program meant
    all of it. Raises OSError where no process can be had.
    """
    reader, writer = os.pipe()
    parent = os.getpid()
    # A child begins by forgetting the signals that came before it could look (Python's after-fork
    # rites): one that asks it to end has to wait until then.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        pid = os.fork()
    except BaseException:
        os.close(reader)
        os.close(writer)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if pid:
        os.close(writer)
        return Hand(pid, reader)
    status = 1
    try:
        os.close(reader)
        text = json.dumps(work(lambda: os.getppid() != parent))
        durable.write_all(writer, text.encode())
        status = 0
    except BaseException:  # noqa: BLE001 - told, and its messages are as any crash leaves them
        sys.excepthook(*sys.exc_info())
    finally:
        # On no account may it leave this function: it would go on as a second parent.
        try:
            for stream in (sys.stdout, sys.stderr):
                # What a full disk or a closed pipe will not take is lost; the mail is not.
                with suppress(OSError, ValueError, AttributeError):
                    stream.flush()
        finally:
            os._exit(status)
