"""A long run is shared among some processes, because one would leave most of the machine idle.

What may live here: how many processes a run is worth, starting them, and taking what they report.
The run decides what they do. The messages are divided before the fork, so two processes of a run
never meet at one message. What keeps a run apart from other programs (locks, the breaker) keeps
these apart, too.

Only the sending programs do this: they have one thread and a process of their own. The library
never forks the application that calls it.
"""

from __future__ import annotations

import _signal
import posix
import select
import sys
import time

from picoqmail import durable
from picoqmail.layout import PIPE_BLOCK_OCTETS
from picoqmail.spool.json_reading import read_json
from picoqmail.spool.sidecar import to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TextIO

MESSAGES_WORTH_A_PROCESS = 200
"""With fewer it takes as long to start a second process as that one saves."""

MESSAGES_OF_A_DATABASE_WORTH_A_PROCESS = 25
"""There each message waits for the disk of the server, and several wait together."""

PROCESSES_LIMIT = 4
"""More would ask more of a relay than one host should."""

_WAIT_SECONDS = 1.0
_ENDING_SIGNALS = (_signal.SIGTERM, _signal.SIGINT)


def useful_processes(
    messages: int, connections: int, worth_a_process: int = MESSAGES_WORTH_A_PROCESS
) -> int:
    """Return how many processes to use for so many messages; each needs one connection at least.

    From `worth_a_process` messages on it pays to start one.
    """
    threading = sys.modules.get("threading")
    if threading is not None and threading.active_count() > 1:
        # A lock that another thread holds would stay held in the child for ever.
        return 1
    # One more than processors: some wait for the relay or the disk while others work.
    useful = len(posix.sched_getaffinity(0)) + 1
    worth = messages // worth_a_process
    return max(1, min(worth, useful, connections, PROCESSES_LIMIT))


class Worker:
    """One more process, at work until `wait` returns; then `pid` is 0."""

    def __init__(self, pid: int, descriptor: int) -> None:
        """`descriptor` is the end of the pipe from which its result is read."""
        self.pid = pid
        self.descriptor = descriptor

    def stop(self) -> None:
        """Ask it to end soon, as a signal asks the program. A signal handler may call this."""
        if self.pid:
            posix.kill(self.pid, _signal.SIGTERM)

    def wait(self) -> Any:  # noqa: ANN401 - whatever JSON its work gave
        """Return what its work returned. Raises ChildProcessError if it died before that."""
        blocks = []
        while block := posix.read(self.descriptor, PIPE_BLOCK_OCTETS):
            blocks.append(block)
        posix.close(self.descriptor)
        # After waitpid its number may belong to another process.
        pid, self.pid = self.pid, 0
        code = posix.waitstatus_to_exitcode(posix.waitpid(pid, 0)[1])
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            raise ChildProcessError(f"a process of this run, {pid}, {how}")
        return read_json(b"".join(blocks).decode())


def await_all(workers: Sequence[Worker]) -> bool:
    """Wait a second for the workers to finish; return whether all have, or have at least begun to.

    A result is short enough for its pipe, so a worker never waits for it to be read.
    """
    poll = select.poll()
    waiting = {worker.descriptor for worker in workers}
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + _WAIT_SECONDS
    while waiting and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            poll.unregister(descriptor)
            waiting.discard(descriptor)
    return not waiting


def start_worker(work: Callable[[Callable[[], bool]], object]) -> Worker:
    """Fork a process that does `work` and returns its result, which JSON must be able to express.

    `work` is given a function that says whether the parent is gone. Then the process should end
    soon, because the parent's end was meant for all of the run. Raises OSError if no process can be
    started.
    """
    reader, writer = posix.pipe()
    parent = posix.getpid()
    # After a fork, Python forgets in the child which signals came before. So a signal to end must
    # not arrive before the child can see it.
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _ENDING_SIGNALS)
    try:
        pid = posix.fork()
    except BaseException:
        posix.close(reader)
        posix.close(writer)
        raise
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
    if pid:
        posix.close(writer)
        return Worker(pid, reader)
    status = 1
    try:
        posix.close(reader)
        text = to_json(work(lambda: posix.getppid() != parent))
        durable.write_all(writer, text.encode())
        status = 0
    except BaseException:  # noqa: BLE001 - reported; its messages are left as any crash leaves them
        sys.excepthook(*sys.exc_info())
    finally:
        # It must never leave this function: it would go on as a second parent.
        try:
            for stream in (sys.stdout, sys.stderr):
                _flush(stream)
        finally:
            posix._exit(status)  # noqa: SLF001 - the documented name of it is os._exit


def _flush(stream: TextIO | None) -> None:
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        return  # A full disk or a closed pipe takes no more: only these words are lost.
