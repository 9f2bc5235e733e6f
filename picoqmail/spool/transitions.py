"""How a message gets from state to state in the spool, step by step, as data. Pure.

INTERNALS.md says the same in sentences. The tests run every prefix of every transition of this
table against the real recovery, and compare the real programs' system calls with it.
"""

from __future__ import annotations

from picoqmail.layout import CUR, NEW, UNDELIVERED

# A step is (operation, path, ...): create (with O_EXCL and the lock of the message), write,
# sync (fsync of the file), link, rename, unlink, syncdir. ID stands for the message's name.
# `commit` is the instant from which the transition counts. A crash before it leaves the state
# before, and a crash after it the state after, once recovery has run.

ACCEPT = (
    ("create", "tmp/ID.eml"),
    ("write", "tmp/ID.eml"),
    ("create", "tmp/ID.json"),
    ("write", "tmp/ID.json"),
    ("sync", "tmp/ID.eml"),
    ("sync", "tmp/ID.json"),
    ("link", "tmp/ID.eml", "new/ID.eml"),
    ("rename", "tmp/ID.json", "new/ID.json"),
    ("syncdir", "new"),
    ("commit",),
    ("unlink", "tmp/ID.eml"),
)


def rewrite(state: str) -> tuple[tuple[str, ...], ...]:
    """Replace the sidecar of a message that stays in `state`."""
    return (
        ("create", "tmp/ID.json"),
        ("write", "tmp/ID.json"),
        ("sync", "tmp/ID.json"),
        ("rename", "tmp/ID.json", f"{state}/ID.json"),
        ("syncdir", state),
        ("commit",),
    )


def move(source: str, target: str) -> tuple[tuple[str, ...], ...]:
    """Rewrite the sidecar of a message and move it from `source` to `target`.

    The body is linked, not renamed, so that whatever part of it reaches the disk there is always
    a body; the target is durable before anything leaves the source.
    """
    return (
        ("link", f"{source}/ID.eml", f"{target}/ID.eml"),
        ("create", "tmp/ID.json"),
        ("write", "tmp/ID.json"),
        ("sync", "tmp/ID.json"),
        ("rename", "tmp/ID.json", f"{target}/ID.json"),
        ("syncdir", target),
        ("commit",),
        ("unlink", f"{source}/ID.json"),
        ("unlink", f"{source}/ID.eml"),
        ("syncdir", source),
    )


def remove(state: str) -> tuple[tuple[str, ...], ...]:
    """Remove a message: every recipient was accepted by a relay, or an administrator said so.

    The body waits for the sync, which the messages of a session share: otherwise power loss could
    bring the sidecar back without it.
    """
    return (
        ("unlink", f"{state}/ID.json"),
        ("commit",),
        ("syncdir", state),
        ("unlink", f"{state}/ID.eml"),
    )


TRANSITIONS = {
    "accept": ACCEPT,
    "defer first": move(NEW, CUR),
    "defer again": rewrite(CUR),
    "fail first": move(NEW, UNDELIVERED),
    "fail later": move(CUR, UNDELIVERED),
    "requeue": move(UNDELIVERED, CUR),
    "deliver first": remove(NEW),
    "deliver later": remove(CUR),
    "delete": remove(UNDELIVERED),
}
