"""Bugs planted into a copy of the package: the trials must find each of them.

A plant replaces one text of the package by another. If the text does not exist any more, the plant
is stale and raises an error; it is never skipped.
"""

from __future__ import annotations

import compileall
import glob
import os
import shutil
from typing import TYPE_CHECKING

from attrs import frozen

import picoqmail
import picoqmail.cli
from proof.world import Programs

if TYPE_CHECKING:
    from collections.abc import Sequence


@frozen
class Plant:
    """One bug: `bad` replaces `good` in the package.

    `good` must occur exactly once in the whole package. No plant names a module, because modules
    may move. `found_by` is the sweep that must find the bug. `scenario` is the run that shows it,
    or the file system for a race of idle runs.
    """

    name: str
    good: str
    bad: str
    found_by: str
    scenario: str


PLANTS: Sequence[Plant] = (
    Plant(
        "no fsync of the message file",
        "    def _sync_body(self) -> None:\n"
        "        try:\n            durable.sync(self._descriptor)\n",
        "    def _sync_body(self) -> None:\n        try:\n            pass\n",
        "power",
        "queue",
    ),
    Plant(
        "no fsync of the sidecar",
        "                    durable.sync(self._sidecar)\n",
        "                    pass\n",
        "power",
        "queue",
    ),
    Plant(
        "no syncfs before a group's renames",
        "        try:\n            together.sync()\n",
        "        try:\n            pass\n",
        "power",
        "enqueue_many",
    ),
    Plant(
        "no fsync of the directory",
        "            try:\n                durable.sync_directory(directory)\n",
        "            try:\n                pass\n",
        "power",
        "queue",
    ),
    Plant(
        "the sidecar before the body",
        "            self._link_body(target)\n",
        "            durable.rename(self._path(TMP, SIDECAR), self._path(self._state, SIDECAR))\n"
        "            self._link_body(target)\n"
        "            return\n",
        "kill",
        "queue",
    ),
    Plant(
        "the old place given up before the new one is there",
        "            if state != claim.state:\n"
        "                self._files.carry_body(message_id, state)\n",
        "            if state != claim.state:\n"
        "                durable.unlink(self._files.join(claim.state, message_id + SIDECAR))\n"
        "                self._files.carry_body(message_id, state)\n"
        "                durable.create_whole("
        "self._files.join(claim.state, message_id + SIDECAR), b'')\n",
        "kill",
        "send, some refused",
    ),
    Plant(
        "the source unlinked before the target is durable",
        "            durable.sync_directory(self._files.join(state))\n"
        "            if state != claim.state:\n",
        "            if state != claim.state:\n",
        "power",
        "send, some refused",
    ),
    Plant(
        "the body renamed where it must be linked",
        "    try:\n        durable.link(source, target)\n",
        "    try:\n        durable.rename(source, target)\n",
        "power",
        "send, some refused",
    ),
    Plant(
        "a sidecar rewritten in place",
        "    try:\n        create_whole(scratch, data, modified)\n    except FileExistsError:\n",
        "    try:\n"
        "        how = posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC\n"
        "        descriptor = posix.open(path, how, 0o600)\n"
        "        write_all(descriptor, data)\n"
        "        posix.fsync(descriptor)\n"
        "        posix.close(descriptor)\n"
        "        return\n"
        "    except FileExistsError:\n",
        "kill",
        "cron",
    ),
    Plant(
        "removals that are never made durable",
        "        self._files.make_durable()\n",
        "        pass\n",
        "power",
        "send",
    ),
    Plant(
        "no mark before the end of the data",
        "            work.claim.mark_in_doubt()\n",
        "            pass\n",
        "kill",
        "send",
    ),
    Plant(
        "a hold that is not recorded",
        '        self.spool.change(claim, "held", "held by an administrator", held=True)\n',
        "        pass\n",
        "power",
        "hold",
    ),
    Plant(
        "deletions that are never made durable",
        '        """Make removals durable: the end of a series of verbs."""\n'
        "        self.spool.flush()\n",
        '        """Make removals durable: the end of a series of verbs."""\n',
        "power",
        "delete",
    ),
    Plant(
        "a failure that is kept for the digest, and not synced",
        "            ledger.make_durable()\n",
        "            pass\n",
        "power",
        "send, too many failures to report",
    ),
    Plant(
        "a digest's list removed before the digest is there",
        "            incoming.commit("
        "sender, [overdue.address], {report_state.REPORT_OF: subject})\n"
        "        limit.finish(overdue.name)\n",
        "            limit.finish(overdue.name)\n"
        "            incoming.commit("
        "sender, [overdue.address], {report_state.REPORT_OF: subject})\n",
        "kill",
        "cron, a digest is due",
    ),
    Plant(
        "the older of two sidecars believed",
        "        best = max(found, key=lambda state: revisions[state])\n",
        "        best = min(found, key=lambda state: revisions[state])\n",
        "kill",
        "check --repair, after a crash",
    ),
    Plant(
        "an idle look noted although the directory changed just now",
        "    is_settled = before.changed_ns <= (now - STEP_SECONDS) * 1e9\n",
        "    is_settled = True\n",
        "idle",
        "ramfs",
    ),
)


def plant(bug: Plant, directory: str, *, compiled: bool = True) -> Programs:
    """Copy the package into `directory`, plant the bug, and return the programs of the copy.

    `compiled`: all of it is compiled now, for trials that count calls. Raises LookupError if the
    text that the bug replaces does not occur exactly once.
    """
    package = os.path.dirname(picoqmail.__file__ or "")
    cli = os.path.dirname(picoqmail.cli.__file__ or "")
    # The bug is run from the modules, not from the files that a build merges of them.
    skip = shutil.ignore_patterns("__pycache__", "merged")
    shutil.copytree(package, f"{directory}/picoqmail", ignore=skip)
    if not os.path.exists(f"{directory}/picoqmail/cli"):
        shutil.copytree(cli, f"{directory}/picoqmail/cli", ignore=skip)
    found = []
    for path in glob.glob(f"{directory}/picoqmail/**/*.py", recursive=True):
        with open(path, encoding="utf-8") as file:
            text = file.read()
        found += [(path, text)] * text.count(bug.good)
    if len(found) != 1:
        raise LookupError(
            f"the plant '{bug.name}' is stale: the package holds its text {len(found)} times; "
            "bring tests/proof/planted.py up to date"
        )
    ((path, text),) = found
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace(bug.good, bug.bad))
    # Compiled now, because a run that compiles makes other calls than a later run.
    done = compileall.compile_dir(directory, quiet=2) if compiled else _compiles(path)
    if not done:
        raise SyntaxError(f"the plant '{bug.name}' does not compile")
    return Programs(directory)


def _compiles(path: str) -> bool:
    """Compile the module that was changed: a bug that is no Python would be found by any trial."""
    return bool(compileall.compile_file(path, quiet=2))
