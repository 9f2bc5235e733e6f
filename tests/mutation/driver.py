"""Mutation testing: which small mistakes in the modules that carry the promise no test notices.

Each mutant is tried with the tests that concern its module (tables.py). What is known is kept in a
file, so that an interrupted run goes on where it was, and a changed module is tried anew. Survivors
must be explained in survivors.toml; an explanation of what does not survive any more is an error.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import hashlib
import json
import os
import queue
import random
import signal
import sys
import tempfile
import threading
import tomllib
from typing import TYPE_CHECKING, Any

from attrs import asdict, define, field, frozen

import installation
from mutation import scores
from mutation.ground import Ground, wheel_of_checkout
from mutation.mutants import mutants_of
from mutation.tables import MODULES, QUICK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mutation.mutants import Mutant

_HERE = os.path.dirname(os.path.abspath(__file__))
EXPLAINED = f"{_HERE}/survivors.toml"
RESULTS = os.path.join(installation.CHECKOUT, ".mutation")
KILLED, TIMED_OUT, SURVIVED = "killed", "timed out", "survived"
_QUICK_SAMPLE = 40
_MOST_BASELINE_SECONDS = 1800.0
_PRIOR_KILLERS = 6


@frozen
class Result:
    """What became of a mutant; `by` is the test that noticed it."""

    module: str
    mutant: str
    source: str
    tests: str
    result: str
    by: str
    took: float

    def counts(self, source: str, tests: str) -> bool:
        """Say whether it is still known: a survivor may be killed by a new test."""
        return self.source == source and (self.result == KILLED or self.tests == tests)


@frozen
class Reach:
    """How tests reach a module: their seconds, and the lines of the module that each runs.

    Those of `starting` start other processes, which may run any line.
    """

    seconds: dict[str, float]
    lines: dict[str, frozenset[int]]
    starting: frozenset[str] = frozenset()

    def choose(self, mutant: Mutant, killers: Sequence[str], most: float) -> list[str]:
        """Return the tests for a mutant, the likeliest first; together at most `most` seconds.

        One takes part even if it takes longer. What cannot notice the mutant is left out.
        """
        own = range(mutant.first, mutant.last + 1)
        runs = {test for test, lines in self.lines.items() if test and not lines.isdisjoint(own)}
        if not self.lines.get("", frozenset()).isdisjoint(own):
            # Run by the import; so whatever uses the module may notice it.
            runs |= {test for test in self.lines if test}

        def rank(test: str) -> tuple[bool, bool, float]:
            return test not in killers, test not in runs, self.seconds[test]

        chosen: list[str] = []
        spent = 0.0
        for test in sorted((runs | self.starting) & set(self.seconds), key=rank):
            spent += self.seconds[test]
            if chosen and spent > most:
                break
            chosen.append(test)
        return chosen


@define
class Knowledge:
    """The results so far, in a file to which each is appended."""

    path: str
    found: dict[tuple[str, str], Result] = field(factory=dict)

    @classmethod
    def load(cls, directory: str) -> Knowledge:
        """Read what earlier runs found; the end of a line that was cut counts as nothing."""
        os.makedirs(directory, exist_ok=True)
        known = cls(f"{directory}/results")
        if os.path.exists(known.path):
            with open(known.path, encoding="utf-8") as file:
                for line in file:
                    try:
                        result = Result(**json.loads(line))
                    except ValueError:
                        continue
                    known.found[result.module, result.mutant] = result
        return known

    def add(self, result: Result) -> None:
        """Note a result."""
        self.found[result.module, result.mutant] = result
        line = asdict(result)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def explained() -> dict[tuple[str, str], str]:
    """Return the reasons for survivors, by module and mutant."""
    with open(EXPLAINED, "rb") as file:
        groups = tomllib.load(file)["survivors"]
    return {(one["module"], name): one["reason"] for one in groups for name in one["mutants"]}


def source_of(module: str) -> str:
    """Return the text of a module of the checkout."""
    path = os.path.join(installation.CHECKOUT, "picoqmail", f"{module}.py")
    with open(path, encoding="utf-8") as file:
        return file.read()


def digest_of_tests(files: Sequence[str]) -> str:
    """Return what changes when a test or the rig does."""
    tests = os.path.join(installation.CHECKOUT, "tests")
    digest = hashlib.sha256()
    for where in ("rig", "vectors", *sorted({os.path.dirname(one) for one in files})):
        for name in sorted(os.listdir(f"{tests}/{where}")):
            path = f"{tests}/{where}/{name}"
            if os.path.isfile(path) and not name.startswith("test_"):
                with open(path, "rb") as file:
                    digest.update(file.read())
    for name in (*files, "conftest.py", "trial.py", "temporary_home.py"):
        with open(f"{tests}/{name}", "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:16]


@define
class Trial:
    """One run of the driver: several grounds, each with a thread of its own."""

    known: Knowledge
    most: float
    reaches: dict[str, Reach] = field(factory=dict)
    killers: dict[str, list[str]] = field(factory=dict)
    _lock: threading.Lock = field(factory=threading.Lock)
    _done: int = 0
    _all: int = 0

    def unknown(self, work: Sequence[tuple[str, Mutant]]) -> list[tuple[str, Mutant]]:
        """Return the mutants of which nothing is known that still counts."""
        digests = {module: digest_of_tests(MODULES[module]) for module, _ in work}
        sources = {module: _short_digest(source_of(module)) for module in digests}
        found = []
        for module, mutant in work:
            before = self.known.found.get((module, mutant.name))
            if before is None or not before.counts(sources[module], digests[module]):
                found.append((module, mutant))
        return found

    def try_all(self, grounds: Sequence[Ground], work: Sequence[tuple[str, Mutant]]) -> None:
        """Try mutants, module by module."""
        digests = {module: digest_of_tests(MODULES[module]) for module, _ in work}
        sources = {module: _short_digest(source_of(module)) for module in digests}
        todo: queue.SimpleQueue[tuple[str, Mutant]] = queue.SimpleQueue()
        for mutant in work:
            todo.put(mutant)
        self._all = len(work)

        def take(ground: Ground) -> None:
            with contextlib.suppress(queue.Empty):
                while True:
                    module, mutant = todo.get_nowait()
                    result, by, took = self._try(ground, module, mutant)
                    found = (sources[module], digests[module], result, by, round(took, 2))
                    self._note(Result(module, mutant.name, *found))

        with concurrent.futures.ThreadPoolExecutor(len(grounds)) as threads:
            try:
                for one in [threads.submit(take, ground) for ground in grounds]:
                    one.result()
            except BaseException:
                with contextlib.suppress(queue.Empty):
                    while True:
                        todo.get_nowait()
                for ground in grounds:
                    ground.worker.terminate()
                raise

    def _note(self, result: Result) -> None:
        with self._lock:
            recent = self.killers.setdefault(result.module, [])
            if result.by in self.reaches[result.module].seconds:
                others = [one for one in recent if one != result.by]
                recent[:] = [result.by, *others][:_PRIOR_KILLERS]
            self.known.add(result)
            self._done += 1
            say(
                f"{self._done}/{self._all} {result.result} ({result.took:.1f} s) "
                f"{result.module} {result.mutant}"
            )

    def _try(self, ground: Ground, module: str, mutant: Mutant) -> tuple[str, str, float]:
        files = MODULES[module]
        with self._lock:
            if module not in self.reaches:
                self.reaches[module] = self._reach(ground, module)
            reach = self.reaches[module]
            killers = tuple(self.killers.get(module, ()))
        if ground.collected != tuple(files):
            ground.collect(files, _MOST_BASELINE_SECONDS, run=False)
        tests = reach.choose(mutant, killers, self.most)
        if not tests:
            return SURVIVED, "", 0.0
        run = ground.try_mutant(module, mutant.text, tests, reach.seconds)
        if not run.ended:
            return TIMED_OUT, "", run.took
        return (KILLED if run.failed else SURVIVED), run.failed, run.took

    def _reach(self, ground: Ground, module: str) -> Reach:
        """Find out which tests run which lines of a module, without a mistake."""
        files = MODULES[module]
        every = "".join(map(source_of, MODULES))
        name = _short_digest(f"{_short_digest(every)} {digest_of_tests(files)} {files}")
        path = f"{os.path.dirname(self.known.path)}/reach-{name}"
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
        else:
            found = self._trace(ground, files)
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                json.dump(found, file)
            os.rename(f"{path}.new", path)
        lines = {test: frozenset(one) for test, one in found["lines"].get(module, {}).items()}
        return Reach(found["seconds"], lines, frozenset(found["starting"]))

    def _trace(self, ground: Ground, files: Sequence[str]) -> dict[str, Any]:
        """Run tests as they will be run, and once more to see their lines, which takes longer."""
        plain = ground.collect(files, _MOST_BASELINE_SECONDS, run=True)
        traced = ground.trace(files, list(MODULES), _MOST_BASELINE_SECONDS)
        seconds = {test: one for test, one in plain.seconds.items() if test not in plain.broken}
        if not plain.ended or not traced.ended or not seconds:
            raise RuntimeError(f"the tests do not run: {ground.output()[-2000:]}")
        for test in sorted(plain.broken):
            say(f"left out, for it fails without a mistake: {test}")
        return {"seconds": seconds, "lines": traced.lines, "starting": traced.starting}


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def say(text: str) -> None:
    """Say how it goes."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complaints(
    results: Mapping[tuple[str, str], Result],
    reasons: Mapping[tuple[str, str], str],
    existing: Mapping[str, frozenset[str]],
) -> list[str]:
    """Return the survivors without a reason, and the reasons without a survivor.

    `existing` are the names of all mutants of the modules that were looked at.
    """
    found = []
    for (module, name), result in results.items():
        if result.result == SURVIVED and (module, name) not in reasons:
            found.append(f"survived, and is not explained: {module} {name}")
        elif result.result == KILLED and (module, name) in reasons:
            found.append(f"explained as a survivor, and killed by {result.by}: {module} {name}")
    for module, name in reasons:
        if module in existing and name not in existing[module]:
            found.append(f"explained, and there is no such mutant: {module} {name}")
    return found


def main(argv: Sequence[str]) -> int:
    """Try mutants; return 1 if a survivor is not explained, or an explanation is not true."""
    parser = argparse.ArgumentParser(prog="python tests/mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="as spool/claim; default: all")
    parser.add_argument("--quick", action="store_true", help="a small sample of quick modules")
    parser.add_argument("--sample", type=int, default=0, help="so many mutants of each module")
    parser.add_argument("--seed", type=int, default=1, help="for the sample")
    parser.add_argument("--most", type=float, default=20.0, help="seconds of tests for a mutant")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (%(default)s)")
    parser.add_argument("--only", default="", help="mutants whose name has this text")
    parser.add_argument("--results", default=RESULTS, help="where results are kept (%(default)s)")
    parser.add_argument("--page", action="store_true", help="write the scores into docs/proof.md")
    options = parser.parse_args(argv)
    unknown = [one for one in options.modules if one not in MODULES]
    if unknown:
        parser.error(f"no tests are known for {', '.join(unknown)}: see tests/mutation/tables.py")
    modules = options.modules or list(QUICK if options.quick else MODULES)
    mutants = {module: mutants_of(source_of(module)) for module in modules}
    chance = random.Random(options.seed)  # noqa: S311 - a seeded choice
    work = []
    for module in modules:
        chosen = [one for one in mutants[module] if options.only in one.name]
        if options.sample and len(chosen) > options.sample:
            chosen = chance.sample(chosen, options.sample)
        work += [(module, one) for one in chosen]
    if options.quick:
        work = chance.sample(work, min(len(work), _QUICK_SAMPLE))
    # So that the installation does not stay behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    known = Knowledge.load(options.results)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    trial = Trial(known, options.most)
    if todo := trial.unknown(work):
        with contextlib.ExitStack() as stack:
            temporary = tempfile.TemporaryDirectory(prefix="picoqmail-mutants-", dir=memory)
            root = stack.enter_context(temporary)
            wheel = wheel_of_checkout(options.results)
            grounds = []
            for number in range(options.jobs):
                os.mkdir(f"{root}/{number}")
                grounds.append(stack.enter_context(Ground.prepared(f"{root}/{number}", wheel)))
            trial.try_all(grounds, todo)
    tried = {(module, one.name): known.found[module, one.name] for module, one in work}
    names = {module: frozenset(one.name for one in mutants[module]) for module in modules}
    reasons = explained()
    found = complaints(tried, reasons, names)
    table = scores.scores_of(
        [(module, one.result, (module, name) in reasons) for (module, name), one in tried.items()]
    )
    for line in scores.lines_of(table):
        say(line)
    if options.page:
        whole = not (options.sample or options.only or options.quick)
        scores.save(table, modules if whole else ())
    for one in found:
        say(one)
    return 1 if found else 0
