"""The benchmark suite's own tools: what they say is what happened."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import TYPE_CHECKING
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
    names = ("measuring", "report")
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
