"""A progress bar for long work on a terminal; rich is loaded only then, and only if it is there."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Item = TypeVar("Item")
PATIENCE_SECONDS = 1.0


def progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yield the items; after a second of work show how far it is, on standard error."""
    began = time.monotonic()
    for index, item in enumerate(items):
        if time.monotonic() - began > PATIENCE_SECONDS and sys.stderr.isatty():
            yield from _shown(items, index, what)
            return
        yield item


def _shown(items: Sequence[Item], done: int, what: str) -> Iterator[Item]:
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:
        yield from _counted(items, done, what)
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=len(items), completed=done)
        for item in items[done:]:
            yield item
            bar.advance(task)


def _counted(items: Sequence[Item], done: int, what: str) -> Iterator[Item]:
    """Yield the items, and print a line that is written over a few times a second."""
    printed = 0.0
    for index in range(done, len(items)):
        yield items[index]
        now = time.monotonic()
        if now - printed > 0.25:
            printed = now
            print(f"\r{what}: {index + 1} of {len(items)}", end="", file=sys.stderr, flush=True)
    print(f"\r{what}: {len(items)} of {len(items)}", file=sys.stderr)
