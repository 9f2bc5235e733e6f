"""The benchmark suite's own tools: what they say is what happened."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from installation import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

BENCHMARKS = os.path.join(CHECKOUT, "benchmarks")
ENVIRON = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules of the suite, found as its own command finds them."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = ("measuring", "report", "compare", "disk")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


def test_a_program_is_run_as_often_as_asked_and_its_code_told(
    tools: dict[str, ModuleType], tmp_path: Path
) -> None:
    """Three runs, each of which leaves a trace, and takes some time."""
    measuring = tools["measuring"]
    script = f"echo x >>{tmp_path}/trace"
    with measuring.Starter(measuring.Program("x", ("/bin/sh", "-c", script), ENVIRON)) as starter:
        taken = starter.run(3)
    assert 3 == len((tmp_path / "trace").read_text().split())
    assert [0, 0, 0] == [one.status for one in taken]
    assert all(one.wall > 0 and one.rss_mib > 0 for one in taken)


def test_a_program_that_says_no_is_no_result(tools: dict[str, ModuleType]) -> None:
    """A figure of something that failed would be worse than none."""
    measuring = tools["measuring"]
    program = measuring.Program("x", ("/bin/sh", "-c", "exit 7"), ENVIRON)
    with measuring.Starter(program) as starter, pytest.raises(RuntimeError, match="7"):
        starter.run()


def test_several_starters_end_in_any_order(tools: dict[str, ModuleType]) -> None:
    """None of them keeps the pipes of another open."""
    measuring = tools["measuring"]
    program = measuring.Program("x", ("/bin/true",), ENVIRON)
    starters = [measuring.Starter(program) for _ in range(3)]
    for starter in starters:
        starter.begin(2)
    assert [2, 2, 2] == [len(starter.end()) for starter in starters]
    for starter in starters:
        starter.__exit__()


def test_memory_is_the_program_s_own(tools: dict[str, ModuleType], tmp_path: Path) -> None:
    """However large who measures is: 64 MiB here, and the program has a tenth of that."""
    measuring = tools["measuring"]
    ballast = bytearray(os.urandom(64 << 20))
    taken = measuring.run_alone(
        measuring.Program("x", ("/bin/sh", "-c", ":"), ENVIRON), f"{tmp_path}/taken"
    )
    assert len(ballast) == 64 << 20
    assert taken.rss_mib < 32


def test_results_are_written_in_three_forms(tools: dict[str, ModuleType], tmp_path: Path) -> None:
    """JSON as it was, a table with every column, a plot that is XML."""
    rows = [{"who": "picoqmail", "s": 1.5}, {"who": "a <rival>", "s": 3.0, "note": "slow"}]
    section = {"title": "T & T", "rows": rows, "chart": ("who", "s")}
    results = {
        "machine": {"python": "3"},
        "versions": {},
        "missing": {},
        "sections": {"x": section},
    }
    tools["report"].write(str(tmp_path), results)
    assert rows == json.loads((tmp_path / "results.json").read_text())["sections"]["x"]["rows"]
    page = (tmp_path / "results.md").read_text()
    assert "| who | s | note |" in page
    assert "| picoqmail | 1.5 |  |" in page
    plot = ET.fromstring((tmp_path / "x-0.svg").read_text())  # noqa: S314 - our own
    widths = [float(bar.attrib["width"]) for bar in plot.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[1] == pytest.approx(2 * widths[0])


def test_a_spread_is_the_middle_half(tools: dict[str, ModuleType]) -> None:
    """Of five rounds the best and the worst are left out; of two none can be."""
    figure = tools["measuring"].figure
    assert {"s": 3, "s, spread": "2 to 4"} == figure("s", [5, 1, 3, 2, 4])
    assert {"s": 1.5, "s, spread": "1.26 to 1.74"} == figure("s", [1.26, 1.74], 2)
    assert {"s": 1.5, "s, spread": "1.5 to 1.5"} == figure("s", [1.5], 1)


def results(
    rate: str, rates: str, seconds: float, spread: str, **machine: object
) -> dict[str, Any]:
    """Results of one section with a second table."""
    near = {"program": "ours", "mails/s": float(rate), "mails/s, spread": rates, "kind": "x"}
    far = {"program": "ours", "seconds": seconds, "seconds, spread": spread}
    section = {"title": "Near", "rows": [near], "more": [{"title": "Far", "rows": [far]}]}
    facts = {"processor": "P", "processors": 2, "disk": "ext4", **machine}
    return {"machine": facts, "quick": False, "sections": {"drain": section}}


def test_a_figure_that_got_worse_by_more_than_its_spread_is_named(
    tools: dict[str, ModuleType],
) -> None:
    """Fewer mails a second and more seconds are worse; a change within either spread is noise."""
    worse = tools["compare"].worse
    stored = results("1000", "950 to 1050", 0.7, "0.65 to 0.75")
    assert [] == worse(stored, results("901", "900 to 910", 0.79, "0.79 to 0.8"))
    assert [] == worse(stored, results("800", "700 to 1000", 0.9, "0.8 to 1.05"))
    assert [] == worse(stored, results("2000", "1990 to 2010", 0.1, "0.1 to 0.1"))
    assert [
        "Near: ours: mails/s: 1000.0 before, 899.0 now",
        "Far: ours: seconds: 0.7 before, 0.81 now",
    ] == worse(stored, results("899", "890 to 900", 0.81, "0.8 to 0.82"))


def test_only_runs_that_can_be_compared_are(tools: dict[str, ModuleType]) -> None:
    """Not with another disk or a quick run, nor without stored results; a new figure is no loss."""
    worse = tools["compare"].worse
    now = results("1", "1 to 1", 9.0, "9 to 9")
    stored = results("1000", "1000 to 1000", 0.7, "0.7 to 0.7", disk="ext4 without a journal")
    (line,) = worse(stored, now)
    assert "their disk is ext4 without a journal, this is ext4" in line
    (line,) = worse({**now, "quick": True}, now)
    assert "only one of the two runs was quick" in line
    assert [] == worse({}, now)
    assert [] == worse({**now, "sections": {}}, now)


def test_results_can_be_read_again(tools: dict[str, ModuleType], tmp_path: Path) -> None:
    """As a later run does; before the first run there are none."""
    report = tools["report"]
    assert {} == report.read(str(tmp_path))
    now = {**results("1", "1 to 1", 9.0, "9 to 9"), "versions": {}, "missing": {}}
    report.write(str(tmp_path), now)
    assert now == report.read(str(tmp_path))


def mounts() -> str:
    """What is mounted now."""
    with open("/proc/self/mounts", encoding="utf-8") as file:
        return file.read()


def test_the_measured_disk_has_a_journal_and_is_gone_after_a_failure(
    tools: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unmounted and removed, with what was made there, also if the run ends in an error."""
    disk = tools["disk"]
    monkeypatch.delenv("BENCH_SCRATCH", raising=False)
    monkeypatch.setattr(disk, "IMAGE_OCTETS", 64 << 20)
    monkeypatch.setattr(disk.tempfile, "tempdir", str(tmp_path))
    made: list[Any] = []

    def fail() -> None:
        with disk.scratch_directory() as found:
            made.append((found, found.path in mounts()))
            with open(f"{found.path}/file", "w", encoding="utf-8") as file:
                file.write("x")
            raise ValueError("the run failed")

    with pytest.raises(ValueError, match="the run failed"):
        fail()
    ((found, was_mounted),) = made
    if was_mounted:
        assert found.facts.startswith("ext4 with a journal, an image on ")
    else:
        # Where none can be mounted, the facts say so and name the disk that is used.
        assert "(no image of an ext4: " in found.facts
    assert found.path not in mounts()
    assert [] == os.listdir(tmp_path)


def test_a_disk_that_is_named_is_used(
    tools: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BENCH_SCRATCH: no image, and temporary files go there for as long as it is measured."""
    disk = tools["disk"]
    monkeypatch.setenv("BENCH_SCRATCH", str(tmp_path))
    with disk.scratch_directory() as found, disk.temporary_files_in(found.path):
        assert str(tmp_path) == os.path.dirname(found.path)
        assert found.path not in mounts()
        assert found.facts == f"{disk.description(str(tmp_path))}, as BENCH_SCRATCH says"
        assert found.path == disk.tempfile.gettempdir()
        ran = subprocess.run(["mktemp", "-u"], capture_output=True, text=True, check=True)
        assert found.path == os.path.dirname(ran.stdout)
    assert [] == os.listdir(tmp_path)


def test_a_neighbour_writes_until_its_end(tools: dict[str, ModuleType], tmp_path: Path) -> None:
    """At most 20 MB a second into one file; it is gone afterwards."""
    disk = tools["disk"]
    began = time.monotonic()
    with disk.neighbour(str(tmp_path)):
        (name,) = os.listdir(tmp_path)
        while not os.path.getsize(tmp_path / name) > 1 << 20:
            assert time.monotonic() < began + 60
        seconds = time.monotonic() - began
        piece = 1 << 20
        assert os.path.getsize(tmp_path / name) <= piece + seconds * 20_000_000 + piece
    size = os.path.getsize(tmp_path / name)
    ran = subprocess.run(["pgrep", "-f", name], capture_output=True, text=True, check=False)
    assert "" == ran.stdout
    assert size == os.path.getsize(tmp_path / name)
