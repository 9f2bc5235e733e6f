"""Journeys of messages through a directory store, replayed: each step on the disk, each answer.

`tests/vectors/journeys.txt` has them. A journey has what is done (lines without a blank before),
and behind each of these what came of it: the steps on the disk in their order, the answer or the
error, and at the end what lies in the spool. `python tests/store/journeys.py` writes the file anew;
read the difference.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import posix
import re
import sys
import tempfile
from ast import literal_eval
from zlib import crc32

from attrs import define, field

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from typing import TYPE_CHECKING, Any

from picoqmail import durable, layout
from picoqmail.home.limits import Limits
from picoqmail.layout import (
    BODY,
    DIRECTORIES,
    DROP,
    IDEMPOTENCY,
    IN_DOUBT_BIT,
    IN_HAND_BIT,
    NEW,
    SIDECAR,
    SUSPECT_BIT,
)
from picoqmail.spool import keys
from picoqmail.spool.claim import RunDiedError
from picoqmail.spool.incoming import Incoming, publish
from picoqmail.spool.keys import KeyRecord
from picoqmail.spool.scan import Sight
from picoqmail.store.directory import DirectoryStore
from picoqmail.value import evolve
from scripts import read_scripts, write_scripts
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PATH = os.path.join(os.path.dirname(os.path.dirname(__file__)), "vectors", "journeys.txt")
NOW = 1_700_000_000
YEAR = 365 * 86400
MARKS = {"doubt": IN_DOUBT_BIT, "hand": IN_HAND_BIT, "suspect": SUSPECT_BIT}
STEPS = (
    "create", "create_written", "begin_writing", "write_all", "link", "rename", "unlink",
    "unlink_if_there", "sync", "sync_directory", "replace", "make_directory", "open_append",
)  # fmt: skip


def journeys() -> dict[str, list[str]]:
    """Return the lines of each journey by its name."""
    return read_scripts(PATH)


def keywords(words: list[str]) -> dict[str, Any]:
    """Return what `a=1 b='c'` says."""
    pairs = (word.partition("=") for word in words if "=" in word)
    return {key: literal_eval(value.replace("~", " ")) for key, _, value in pairs}


def shown_blocks(blocks: Iterable[bytes]) -> tuple[list[int], bytes]:
    """Return the sizes of blocks, and how they begin."""
    all_blocks = list(blocks)
    return [len(one) for one in all_blocks], b"".join(all_blocks)[:9]


@define
class Journey:
    """One journey, and what came out so far."""

    home: TemporaryHome
    said: list[str] = field(factory=list)
    now: float = NOW
    claims: dict[str, Any] = field(factory=dict)
    incoming: dict[str, Incoming] = field(factory=dict)
    keys: dict[str, KeyRecord] = field(factory=dict)
    locks: list[int] = field(factory=list)
    store: DirectoryStore = field(init=False)
    is_watching: bool = False

    def __attrs_post_init__(self) -> None:
        """Open the store."""
        self.anew()

    def anew(self) -> None:
        """Open the store once more, as another process has it."""
        self.store = DirectoryStore(
            self.home.spool,
            clock=lambda: self.now,
            on_damage=lambda one: self.said.append(f"  ! damaged {one.id}: {one.reason}"),
            on_copy=lambda path: self.said.append(f"  ! copy {self.short(path)}"),
        )

    def short(self, text: object) -> str:
        """Return a text without the place of the spool, and without what is chance in an ID."""
        shown = str(text).replace(f"{self.home.spool}/", "").replace(self.home.spool, "SPOOL")
        for name, one in self.incoming.items():
            shown = shown.replace(one.id, f"ID-{name}")
        return re.sub(r"\b\d{10}\.M\w+\.me\.test", "ID", shown)

    def path(self, name: str) -> str:
        """Return the path of a file of the spool."""
        return f"{self.home.spool}/{name}"

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Note each step on the disk; it is made all the same."""

        def noting(module: Any, name: str) -> Callable[..., Any]:
            made: Callable[..., Any] = getattr(module, name)

            def note(*arguments: Any, **options: Any) -> Any:
                # The times of a file that durable makes are a part of making it.
                is_part = module is posix and name == "utime" and isinstance(arguments[0], int)
                if self.is_watching and not is_part:
                    paths = [self.short(one) for one in arguments if isinstance(one, str)]
                    more = [f"{one:o}" for one in arguments[1:] if name == "fchmod"]
                    self.said.append(" ".join(["  .", name, *paths, *more]))
                return made(*arguments, **options)

            return note

        patched = [(durable, name) for name in STEPS]
        # A module calls one or the other.
        patched += [(module, name) for module in (os, posix) for name in ("fchmod", "utime")]
        before = [(module, name, getattr(module, name)) for module, name in patched]
        # So that IDs are as long each time, and come in the order in which they were made.
        before.append((layout, "_sequence", layout._sequence))
        layout._sequence = itertools.count()
        for module, name in patched:
            setattr(module, name, noting(module, name))
        try:
            yield
        finally:
            for module, name, made in before:
                setattr(module, name, made)

    def line(self, line: str) -> None:
        """Do what a line says."""
        self.said.append(line)
        what, *words = line.split()
        if (setting := getattr(self, f"set_{what.replace('-', '_')}", None)) is not None:
            setting(*words)
            return
        self.is_watching = True
        begun = len(self.said)
        try:
            if what.startswith("mail-"):
                found = self.accept(what[5:], words)
            elif what.startswith("key-"):
                found = self.use_key(what[4:], words[0], keywords(words))
            else:
                found = self.act(what, words)
        except Exception as exc:  # noqa: BLE001 - it is what is shown
            if isinstance(exc, RunDiedError):
                text = f"{exc}; is_news={exc.is_news} is_again={exc.is_again}"
            else:
                text = self.short(exc)
            self.said.append(f"  = {type(exc).__name__}: {text}")
        else:
            self.said.append(f"  = {self.short(found)}")
        finally:
            self.is_watching = False
        # In which order several directories are synced is nobody's business.
        runs = itertools.groupby(
            self.said[begun:], lambda one: one.startswith("  . sync_directory")
        )
        self.said[begun:] = [
            one for is_sync, run in runs for one in (sorted(run) if is_sync else run)
        ]

    # --- What others have done ---

    def set_mail(self, name: str, *words: str) -> None:
        """Accept a message; `recipients=`, `size=`, `state=` and keys of the sidecar."""
        told = keywords(list(words))
        state = told.pop("state", NEW)
        body = told.pop("body", b"Subject: x\n\nbody\n") * told.pop("times", 1)
        recipients = told.pop("to", ["b@d"])
        incoming = Incoming(
            self.home.spool, Limits("me.test"), program="t", uid=1000, pid=7, now_ns=NOW * 10**9
        )
        # Without our own line, whose ID is another one each time.
        incoming._first_line, incoming.size = b"", 0
        incoming.write(body)
        message_id = incoming.commit("s@d", recipients)
        os.rename(self.path(f"{NEW}/{message_id}{BODY}"), self.path(f"{state}/{name}{BODY}"))
        os.rename(self.path(f"{NEW}/{message_id}{SIDECAR}"), self.path(f"{NEW}/{name}{SIDECAR}"))
        self.home.edit(name, id=name, **told)
        if state != NEW:
            sidecar = self.path(f"{NEW}/{name}{SIDECAR}")
            os.rename(sidecar, self.path(f"{state}/{name}{SIDECAR}"))

    def set_later(self, seconds: str) -> None:
        """Let time pass."""
        self.now += int(seconds)

    def set_move(self, old: str, new: str) -> None:
        """Rename a file."""
        os.rename(self.path(old), self.path(new))

    def set_copy(self, old: str, new: str, *words: str) -> None:
        """Copy a file; `cut=`, `add=`, and keys of a sidecar."""
        told = keywords(list(words))
        with open(self.path(old), "rb") as file:
            data = file.read()
        data = data[: told.pop("cut", None)] + told.pop("add", b"")
        with open(self.path(new), "wb") as file:
            file.write(data)
        os.chmod(self.path(new), 0o600)
        os.utime(self.path(new), (NOW, NOW))
        for key, value in told.items():
            text = data.decode().replace(f'"{key}": 0', f'"{key}": {value}')
            with open(self.path(new), "w", encoding="utf-8") as file:
                file.write(text)
            os.utime(self.path(new), (NOW, NOW))

    def set_link(self, old: str, new: str) -> None:
        """Give a file a second name."""
        os.link(self.path(old), self.path(new))

    def set_symlink(self, old: str, new: str) -> None:
        """Make a symbolic link."""
        os.symlink(old, self.path(new))

    def set_unlink(self, name: str) -> None:
        """Remove a file."""
        os.unlink(self.path(name))

    def set_dir(self, name: str) -> None:
        """Make a directory."""
        os.makedirs(self.path(name))

    def set_rmdir(self, name: str) -> None:
        """Remove a directory."""
        os.rmdir(self.path(name))

    def set_touch(self, name: str, seconds: str) -> None:
        """Give a file a time."""
        os.utime(self.path(name), (NOW + int(seconds), NOW + int(seconds)))

    def set_marks(self, name: str, *marks: str) -> None:
        """Mark a body."""
        os.chmod(self.path(name), 0o600 | sum(MARKS[one] for one in marks))

    def set_lock(self, name: str) -> None:
        """Lock a file as another process does."""
        self.locks.append(os.open(self.path(name), os.O_RDONLY))
        fcntl.flock(self.locks[-1], fcntl.LOCK_EX)

    def set_unlock(self) -> None:
        """Let go what was locked last."""
        os.close(self.locks.pop())

    def set_anew(self) -> None:
        """Forget what is known."""
        self.anew()

    # --- What the store does ---

    def act(self, what: str, words: list[str]) -> object:
        """Call a verb of the store; return what there is to be shown."""
        told = keywords(words)
        name = words[0] if words and "=" not in words[0] else ""
        store, claim = self.store, self.claims.get(name)
        if what == "claim":
            claim = store.claim(name, **told)
            if claim is not None:
                self.claims[name] = claim
            return claim and self.shown(claim)
        if claim is not None and what not in ("body", "check", "destroy", "put_off"):
            return self.with_claim(what, claim, told)
        if what == "body":
            return shown_blocks(store.body(name))
        if what == "check":
            store.check_body(store.read(name)[1])
            return None
        plain = [int(one) if one.isdigit() else one for one in words if "=" not in one]
        found = getattr(store, what)(*plain, **told)
        if isinstance(found, Sight):
            return found.due
        return list(found) if what == "walk" else found

    def accept(self, what: str, words: list[str]) -> object:
        """Do a step of an acceptance."""
        name, told = words[0], keywords(words)
        if what == "begin":
            limits = {one: told.pop(one) for one in ("databytes", "minfree") if one in told}
            more = {"program": "t", "uid": 1000, "pid": 7, "now_ns": NOW * 10**9, **told}
            one = Incoming(self.home.spool, Limits("me.test", **limits), **more)
            self.incoming[name] = one
            assert 1.5e9 < int(one.id.split(".")[0])
        elif what == "publish":
            publish([self.incoming[one] for one in words])
        else:
            one = self.incoming[name]
            if what == "commit":
                with_key = one.commit("s@d", told.pop("to", ["b@d"]), told.pop("extra", None))
                assert with_key == one.id
            elif what in ("prepare", "start"):
                step = one.prepare if what == "prepare" else one.begin
                step("s@d", told.pop("to", ["b@d"]), told.pop("extra", None), **told)
            elif what == "write":
                one.write(told["data"] * told.get("times", 1))
            elif what == "leave":
                with one:
                    pass
            else:
                getattr(one, what)(**told)
        one = self.incoming[name]
        return f"{one.size} octets committed={one.committed} sidecar={one._sidecar >= 0}"

    def use_key(self, what: str, key: str, told: dict[str, Any]) -> object:
        """Do something with an idempotency key."""
        if what == "open":
            self.keys[key] = KeyRecord(self.home.spool, key, **told)
            return "locked"
        if what == "sweep":
            return keys.sweep(self.home.spool, self.now)
        record = self.keys[key]
        if what == "find":
            return record.find(self.now)
        if what == "check":
            record.check(told["found"], told["fingerprint"])
        elif what == "intend":
            options = {"synced": told.pop("synced")} if "synced" in told else {}
            record.intend(told, **options)
        else:
            getattr(record, what)()
        return None

    def with_claim(self, what: str, claim: Any, told: dict[str, Any]) -> object:
        """Do something with a message that is claimed."""
        store, name = self.store, claim.message.id
        if what in ("record", "change"):
            return self.rewrite(what, claim, told)
        if what == "note":
            self.claims[name] = store.note_progress(claim, told.pop("results"), **told)
            return self.shown(self.claims[name])
        if what == "counted":
            self.claims[name] = claim.doubt_counted()
            return self.shown(self.claims[name])
        if what == "blocks":
            return shown_blocks(claim.blocks())
        if what in ("mark_in_doubt", "clear_doubt", "release", "has_survived"):
            getattr(claim, what)(**told)
            return sorted(one for one, bit in MARKS.items() if claim._marks & bit)
        return getattr(store, what)(claim)

    def rewrite(self, what: str, claim: Any, told: dict[str, Any]) -> str:
        """Record a message; `state=`, `result=`, and what changes in it."""
        if what == "change":
            self.store.change(claim, "changed", "by hand", **told)
            return "changed"
        state, result = told.pop("state"), told.pop("result", "")
        message = evolve(claim.message, revision=claim.message.revision + 1, **told)
        self.claims[message.id] = found = self.store.record(claim, message, state, result)
        return self.shown(found)

    def shown(self, claim: Any) -> str:
        """Return what is true of a claim."""
        names = ("has_progress", "is_in_hand", "was_in_doubt", "eight_bit", "is_marked")
        flags = [one for one in names if getattr(claim, one)]
        states = [one.state for one in claim.message.recipients]
        revision = f"revision {claim.message.revision}"
        lines = f"{claim.size} octets {claim.newlines} lines"
        return " ".join([claim.state, revision, lines, *states, *flags])

    def accepted(self, path: str) -> list[str]:
        """Return what the sidecar of a message says that this journey has accepted."""
        stem = os.path.basename(path).removesuffix(SIDECAR)
        if stem not in [one.id for one in self.incoming.values()]:
            return []
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        with open(
            self.home.path(os.path.basename(os.path.dirname(path)), stem, BODY), "rb"
        ) as body:
            record["crc32"] = record["crc32"] == crc32(body.read())
        return [f"    | {self.short(json.dumps(record))}"]

    def spool(self) -> list[str]:
        """Return what is in the spool."""
        lines: list[str] = []
        inodes: dict[int, int] = {}
        for state in (*DIRECTORIES, DROP, IDEMPOTENCY):
            for path, _, names in sorted(os.walk(self.path(state))):
                for name in sorted(names):
                    status = os.lstat(f"{path}/{name}")
                    inode = inodes.setdefault(status.st_ino, len(inodes))
                    bits = [one for one, bit in MARKS.items() if status.st_mode & bit]
                    has_time = name.endswith(SIDECAR) or state == IDEMPOTENCY
                    seconds = status.st_mtime - NOW
                    hint = (
                        "" if not has_time else f"{seconds:+.9g}" if abs(seconds) < YEAR else "now"
                    )
                    text = [self.short(f"{path}/{name}"), f"file {inode}", hint, *bits]
                    lines.append("  " + " ".join(filter(None, text)))
                    if name.endswith(SIDECAR):
                        lines += self.accepted(f"{path}/{name}")
                    if name.endswith(".result"):
                        with open(f"{path}/{name}", encoding="utf-8") as file:
                            lines += [f"    | {one}".rstrip() for one in file.read().splitlines()]
        return lines


def replayed(lines: list[str]) -> list[str]:
    """Replay a journey; return its lines as they come out."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as root:
        journey = Journey(TemporaryHome(f"{root}/home").make())
        with journey.watched():
            for line in lines:
                if not line.startswith(" "):
                    journey.line(line)
        for lock in journey.locks:
            os.close(lock)
        closed = 0
        held = (*journey.claims.values(), *journey.incoming.values(), *journey.keys.values())
        for claim in held:
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(f"/proc/self/fd/{claim._descriptor}").startswith(root):
                    os.close(claim._descriptor)
                    closed += 1
        return [*journey.said, *journey.spool(), f"  {closed} descriptors were open"]


def main() -> None:
    """Write the file anew."""
    write_scripts(PATH, {name: replayed(lines) for name, lines in journeys().items()})


if __name__ == "__main__":
    main()
