"""What is kept of a run between parts, so that an interruption costs one part; and the machine.

The rule of this module: a part that passed is known by a file of its own. It counts again only for
the same sources, seed and size.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import re
import subprocess
import sys

from attrs import asdict, define, field, frozen

import picoqmail
import picoqmail.cli
from proof.device import FILE_SYSTEMS, mkfs_version

_HERE = os.path.dirname(os.path.abspath(__file__))
CHECKOUT = os.path.dirname(os.path.dirname(_HERE))
_PROGRAMS = ("queue", "sendmail", "inject", "send", "cron")


@define
class Result:
    """What one part found: its row of the table, its breaches, and when and how it ran.

    `load` are the load averages of one minute at its begin and end. `sources` is the hash of
    everything that was run, `commit` that of the checkout.
    """

    kind: str
    name: str
    row: list[str]
    breaches: list[str]
    seconds: float
    load: list[float]
    begun: str
    commit: str
    sources: str
    size: str

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.breaches


@frozen
class State:
    """A directory of results; none is kept without a directory."""

    directory: str = ""
    _known: dict[tuple[str, str], Result] = field(factory=dict)

    def read(self, kind: str, name: str) -> Result | None:
        """Return what a part found when it last ran, None if it never did."""
        if not self.directory:
            return self._known.get((kind, name))
        try:
            with open(self._path(kind, name), encoding="utf-8") as file:
                return Result(**json.load(file))
        except FileNotFoundError:
            return None

    def write(self, result: Result) -> None:
        """Keep what a part found, whole or not at all."""
        self._known[result.kind, result.name] = result
        if not self.directory:
            return
        os.makedirs(self.directory, exist_ok=True)
        path = self._path(result.kind, result.name)
        with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as file:
            json.dump(asdict(result), file, indent=1)
        os.replace(f"{path}.{os.getpid()}", path)

    def _path(self, kind: str, name: str) -> str:
        words = re.sub(r"[^a-z0-9]+", "-", f"{kind} {name}".lower()).strip("-")
        return f"{self.directory}/{words}.json"


def sources() -> str:
    """Return the hash of the installed package, its programs, and the trials."""
    found = []
    for module in (picoqmail, picoqmail.cli):
        directory = os.path.dirname(module.__file__ or "")
        found += glob.glob(f"{directory}/**/*.py", recursive=True)
    bin_ = os.path.dirname(sys.executable)
    found += [f"{bin_}/picoqmail-{name}" for name in _PROGRAMS]
    tests = os.path.dirname(_HERE)
    trials = [f"{tests}/temporary_home.py", *glob.glob(f"{tests}/rig/*.py")]
    found += trials + [
        one for one in glob.glob(f"{_HERE}/*.py") if not os.path.basename(one).startswith("test_")
    ]
    digest = hashlib.sha256()
    for path in sorted(set(found), key=lambda one: one.rpartition("/")[2] + one):
        with open(path, "rb") as file:
            digest.update(hashlib.sha256(file.read()).digest())
    return digest.hexdigest()[:12]


def commit() -> str:
    """Return the commit of the checkout, with a + if files differ from it; ? without git."""
    try:
        head = _said("git", "-C", CHECKOUT, "rev-parse", "--short=10", "HEAD")
        changed = _said("git", "-C", CHECKOUT, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "?"
    return head + ("+" if changed else "")


def machine() -> list[str]:
    """Return the facts that times depend on, each a sentence."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = re.search(r"^model name\s*: (.*)$", file.read(), re.MULTILINE)
    octets = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    strace = _said("strace", "-V").split("\n")[0].rpartition(" ")[2]
    tools = [one for system in FILE_SYSTEMS if (one := mkfs_version(system))]
    processors = f"{os.cpu_count()} processors ({model[1] if model else 'unknown'})"
    versions = f"Python {platform.python_version()}, strace {strace}"
    return [
        f"Machine: {processors}, {octets / (1 << 30):.1f} GiB of memory.",
        f"{platform.system()} {platform.release()}, {', '.join([versions, *tools])}.",
    ]


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
