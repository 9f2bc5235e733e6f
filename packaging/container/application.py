#!/usr/bin/python3
"""An application in a container: it reports by mail that it begins, and that it is to stop."""

from __future__ import annotations

import os
import signal

import picoqmail

RECIPIENT = os.environ.get("REPORT_TO", "you@example.net")


def report(subject: str) -> None:
    """Send a mail: it is on disk when this returns, and a sender is on its way."""
    header = f"From: application@example.org\nTo: {RECIPIENT}\nSubject: {subject}\n"
    picoqmail.enqueue(f"{header}\nNothing more.\n".encode())


def main() -> None:
    """Work until told to stop."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    report("the application has begun")
    signal.sigwait({signal.SIGTERM})
    report("the application was told to stop")


main()
