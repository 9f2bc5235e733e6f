"""Reading JSON by the scanner of the json module alone, where that module was never imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ast import literal_eval

import pytest

import picoqmail
from picoqmail.spool.json_reading import read_json

WRONG = (
    *("", " ", "{", '{"', '{"a', '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', "{1:2}", "{}}"),
    *(
        "[",
        "[1",
        "[1,",
        "[1,]",
        "[1 2]",
        "]",
        "[1]x",
        "1 2",
        "trues",
        "nul",
        "-",
        "+1",
        "01",
        "1.",
        "x",
    ),
    *('"', '"a', '"\\', '"\\x"', '"\\u12"', '"\n"', "\0", "\ufeff{}"),
    *("NaN", "Infinity", "-Infinity", "1e999", "[-1e999]", "9" * 5000),
)
RIGHT = (
    *(
        "{}",
        " [ ] ",
        "null",
        "true",
        "-0.5e3",
        "12",
        '"\\u00e9\\ud83d\\ude00"',
        '{"a": [1, {"b": null}]}',
    ),
    '\r\n\t{"a": "b", "a": "c"}\n',
)

# Prints one line for each text: its value as JSON, or the class of the error.
ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
from picoqmail.spool.json_reading import read_json
found = []
for text in eval(sys.argv[2]):
    try:
        found.append(repr(read_json(text)))
    except ValueError:
        found.append("ValueError")
    except RecursionError:
        found.append("RecursionError")
assert "json" not in sys.modules or sys.version_info >= (3, 12)
print(ascii(found))
"""


def alone(texts: tuple[str, ...]) -> list[str]:
    """What becomes of these texts in a process that has imported no json."""
    packages = os.path.dirname(os.path.dirname(picoqmail.__file__))
    command = [sys.executable, "-I", "-S", "-c", ALONE, packages, ascii(texts)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (0, "") == (ran.returncode, ran.stderr)
    found: list[str] = literal_eval(ran.stdout)
    return found


def test_what_is_no_json_is_a_value_error_without_json_too() -> None:
    """Whatever a disk, a crash or a hand has made of a file: no other error comes of it."""
    assert ["ValueError"] * len(WRONG) == alone(WRONG)


def test_what_is_nested_too_deeply() -> None:
    """As json has it."""
    assert ["RecursionError"] == alone(("[" * 50_000,))


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    """Also where json was imported, whose errors have more words."""
    with pytest.raises(ValueError, match=r"."):
        read_json(text)


def test_values_are_those_of_json() -> None:
    """The same in either process."""
    expected = [json.loads(text) for text in RIGHT]
    assert expected == [read_json(text) for text in RIGHT]
    assert [repr(one) for one in expected] == alone(RIGHT)
