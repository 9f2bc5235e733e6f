"""`picoqmail worker`: deliver what is due in a database, beside the workers of other hosts.

It stays in the foreground until SIGTERM or SIGINT. Then it finishes the messages in hand and ends.
Exit codes: 0 after a signal, 78 a wrong setting or a database that cannot be used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from picoqmail.delivery.sender import work

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how it ends; there are no options."""
    parser.epilog = (
        "It stays in the foreground, for systemd or a container. SIGTERM finishes what is in hand. "
        "Restart it after a change of settings."
    )


def run(arguments: argparse.Namespace) -> int:
    """Work until a signal comes."""
    del arguments
    return work()
