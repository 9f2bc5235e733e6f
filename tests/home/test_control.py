"""Control files and minivars: which text a setting has, and where a wrong one stands."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.errors import ConfigurationError
from picoqmail.home.control import Control, ControlValue, number_of, own_host_name
from picoqmail.home.minivars import parse_minivars

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def control(tmp_path: Path) -> Control:
    """An empty control directory."""
    return Control(str(tmp_path))


def write(control: Control, name: str, data: str | bytes) -> str:
    """Write a control file; returns its path."""
    path = os.path.join(control.directory, name)
    with open(path, "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())
    return path


def lines(value: ControlValue | None) -> list[tuple[str, int]]:
    """The lines of a value that must be there."""
    assert value is not None
    return value.lines


def test_a_file_gives_its_lines_with_their_numbers(control: Control) -> None:
    """As qmail reads it: comments, blank lines and trailing blanks do not count."""
    path = write(control, "relayip", "# first\n\none \t\n  two\n#three\nfour\0\r\n")
    value = control.read("relayip")
    assert [("one", 3), ("  two", 4), ("four", 6)] == lines(value)
    assert value is not None
    assert ("one", f"{path}:3", f"{path}:6") == (value.text, value.where(), value.where(2))


def test_what_is_nowhere_is_none(control: Control) -> None:
    """A setting that nobody made is None, an empty file an empty value."""
    assert None is control.read("relayip")
    write(control, "relayip", "")
    assert [] == lines(control.read("relayip"))


def test_the_file_of_its_own_wins_over_minivars(control: Control) -> None:
    """The file minivars gives the settings that have no file."""
    path = write(control, "minivars", "ME=one.test\nRELAYIP='127.0.0.1'\n")
    write(control, "me", "two.test\n")
    assert [("two.test", 1)] == lines(control.read("me"))
    value = control.read("relayip")
    assert [("127.0.0.1", 2)] == lines(value)
    assert value is not None
    assert f"{path}:2" == value.where()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=b", "b"),
        ("A=", ""),
        ("A=''", ""),
        ("  A=b  # said", "b"),
        ("export A=b\n", "b"),
        ("A=b\r\n", "b"),
        ("A='b c'\"d\"e", "b cde"),
        ('A="b \\" c"', 'b " c'),
        ("A='b\\'", "b\\"),
        ("A=b\\ c", "b c"),
        ("A=b#c", "b#c"),
        ("A='$HOME'", "$HOME"),
        ("A=b\\\nc", "bc"),
        ("A=one\nA=two", "two"),
    ],
)
def test_minivars_is_read_as_a_shell_would(control: Control, text: str, expected: str) -> None:
    """Quotes, backslashes and comments mean what they mean to sh, and nothing is executed."""
    write(control, "minivars", text)
    value = control.read("a")
    assert value is not None
    assert expected == value.text


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=40))
def test_what_shlex_quotes_is_what_is_read(text: str) -> None:
    """Any value can be written, by the quoting that every shell script uses."""
    (pairs,) = parse_minivars("minivars", f"A={shlex.quote(text)}\n").values()
    assert text.rstrip(" \t\f\v") == ControlValue("minivars", pairs).text


@pytest.mark.parametrize(
    "text", ["b", "'b c'", "b\\ c", '"b \\" c"', "'it'\\''s'", "b#c", '"b\\c"']
)
def test_sh_reads_the_same(control: Control, text: str) -> None:
    """The shell itself, asked about the same assignment, has the same value."""
    path = write(control, "minivars", f"A={text}\n")
    script = ". " + shlex.quote(path) + '; printf %s "$A"'
    said = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True).stdout
    value = control.read("a")
    assert value is not None
    assert said.decode() == value.text


def test_a_value_over_several_lines_is_several_lines(control: Control) -> None:
    """A setting with a list stands in quotes; each line keeps its own number."""
    write(control, "minivars", "B=x\nRELAYIP='one\ntwo\n'\nC=y\n")
    assert [("one", 2), ("two", 3)] == lines(control.read("relayip"))
    assert [("y", 5)] == lines(control.read("c"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("A=b\nno assignment\n", 2),
        ("A=b\n\n# c\nA='never closed\n\n", 4),
        ("A=b c", 1),
        ("A=$HOME", 1),
        ('A="`id`"', 1),
        ("a=b", 1),
        ("=b", 1),
        ("A =b", 1),
    ],
)
def test_what_is_no_assignment_names_its_line(control: Control, text: str, line: int) -> None:
    """Nothing is guessed: file, line and what is allowed are told."""
    path = write(control, "minivars", text)
    with pytest.raises(ConfigurationError) as caught:
        control.read("zzz")
    assert f"{path}:{line}" == caught.value.where


def test_what_cannot_be_read_is_told(control: Control) -> None:
    """A directory, or bytes that are no UTF-8, with the line."""
    os.mkdir(os.path.join(control.directory, "me"))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        control.read("me")
    path = write(control, "relayip", b"one\ntw\xff\n")
    with pytest.raises(ConfigurationError) as caught:
        control.read("relayip")
    assert f"{path}:2" == caught.value.where


@pytest.mark.parametrize("text", ["-1", "1.5", "1_000", "x", "\u0663", "101", "9" * 5000])
def test_what_is_no_whole_number_is_told(text: str) -> None:
    """Signs, blanks, other digits and absurd lengths are configuration errors."""
    with pytest.raises(ConfigurationError):
        number_of(ControlValue("databytes", [(text, 1)]), 0, "databytes", 100)


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b", "a\x01b", "<a>", "a@b", "a" * 256, "a(b)", 'a"b', "a;b"]
)
def test_a_host_name_must_fit_into_a_header_and_a_file_name(control: Control, name: str) -> None:
    """`me` is part of every ID and Received line: what would break them is refused."""
    write(control, "me", name + "\n")
    with pytest.raises(ConfigurationError, match=r"me"):
        own_host_name(control)


def test_without_me_the_remedy_is_told(control: Control) -> None:
    """The first thing that a new home lacks."""
    with pytest.raises(ConfigurationError, match="picoqmail init --me NAME"):
        own_host_name(control)
    write(control, "minivars", "ME=me.test")
    assert "me.test" == own_host_name(Control(control.directory))


def test_long_minivars_take_no_longer_for_each_line() -> None:
    """A file of 100,000 lines is read in one pass."""
    text = "".join(f"NAME{number}='a\nb'\n" for number in range(50_000))
    began = time.process_time()
    found = parse_minivars("minivars", text)
    assert time.process_time() - began < 5  # Seconds; counting from the start takes minutes.
    assert [("a", 99_999), ("b", 100_000)] == found["NAME49999"]
