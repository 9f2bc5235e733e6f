"""Values: slotted classes with a written constructor, which cost the sender's start nothing."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING

import pytest

import picoqmail
from picoqmail.smtp.transaction import Transaction
from picoqmail.spool.claim import Claim
from picoqmail.value import EMPTY, Value, asdict, evolve

if TYPE_CHECKING:
    from typing import Final


class Point(Value):
    """Two fields, one of which has a default."""

    __slots__ = ("x", "y")

    def __init__(self, x: int, y: int = 7) -> None:
        self.x: Final = x
        self.y: Final = y


class Other(Value):
    """The same fields, but another class."""

    __slots__ = ("x", "y")

    def __init__(self, x: int, y: int = 7) -> None:
        self.x: Final = x
        self.y: Final = y


class Thing:
    """Only ever equal to itself."""

    __slots__ = ("_hidden", "name")

    def __init__(self, name: str, hidden: int) -> None:
        self.name: Final = name
        self._hidden: Final = hidden


def test_equal_fields_make_equal_values() -> None:
    """Of one class, and they hash alike, a default or not."""
    assert Point(1) == Point(1, 7)
    assert hash(Point(1)) == hash(Point(1, 7))
    assert Point(1) != Point(2)
    assert Point(1) != Other(1)
    assert {Point(1): "one"}[Point(1, 7)] == "one"


def test_the_fields_are_shown_in_their_order() -> None:
    """By name, as the class has them."""
    assert ["x", "y"] == list(asdict(Point(y=2, x=1)))
    assert "Point(x=1, y=7)" == repr(Point(1))


def test_a_changed_value_is_another() -> None:
    """A copy differs in what was changed; there is no other field."""
    before = Point(1)
    after = evolve(before, y=8)
    assert (Point(1, 7), Point(1, 8)) == (before, after)
    assert Point(3, 8) == evolve(after, x=3)
    with pytest.raises(AttributeError, match="'Point' object has no attribute 'z'"):
        evolve(before, z=1)


def test_a_thing_has_copies_too() -> None:
    """Claims are no values, for each is only itself, but what is known of one changes."""
    one = Thing("a", 1)
    two = evolve(one, name="b")
    assert {"_hidden": 1, "name": "b"} == asdict(two)
    assert one != evolve(one)


def test_a_value_has_no_other_attribute() -> None:
    """A misspelt field is an error, not a new one."""
    with pytest.raises(AttributeError):
        Point(1).__setattr__("z", 1)


def test_the_empty_mapping_is_everybodys() -> None:
    """So nobody can put anything into it."""
    with pytest.raises(TypeError):
        EMPTY["x"] = 1  # type: ignore[index]


def values_of_the_package() -> list[type]:
    """Return all values of picoqmail, and what is copied as they are."""
    for module in pkgutil.walk_packages(picoqmail.__path__, "picoqmail."):
        if ".django" not in module.name and not module.name.endswith("pytest_plugin"):
            importlib.import_module(module.name)
    ours = [cls for cls in Value.__subclasses__() if cls.__module__.startswith("picoqmail.")]
    assert len(ours) > 25
    return [*ours, Claim, Transaction]


@pytest.mark.parametrize("cls", values_of_the_package(), ids=lambda cls: cls.__name__)
def test_the_constructor_takes_the_fields(cls: type) -> None:
    """Under the same names and in the same order, so that the class reads once.

    A claim also has what follows from its marks, behind the fields that are given.
    """
    fields = [name.removeprefix("_") for name in vars(cls)["__slots__"]]
    given = list(inspect.signature(cls).parameters)
    assert fields[: len(given)] == given
    assert ["is_in_hand", "was_in_doubt"] * (cls is Claim) == fields[len(given) :]
    assert "__dict__" not in vars(cls)
