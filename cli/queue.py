"""picoqmail-queue: the qmail-queue interface, which has no arguments (qmail-queue(8)). Hot."""

from __future__ import annotations

from picoqmail.submission.queue import receive


def main(argv: list[str]) -> int:
    """Run the program; return the exit code. `argv` is ignored, as by qmail-queue."""
    del argv
    return receive()
