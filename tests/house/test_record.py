"""Records: frozen values that cost the sender's start nothing."""

from __future__ import annotations

import pytest

from picoqmail.record import EMPTY, Record, asdict, evolve


class Point(Record):
    """Two fields, one of which has a default."""

    x: int
    y: int = 7


class Other(Record):
    """The same fields, but another class."""

    x: int
    y: int = 7


class Thing(Record, eq=False):
    """Only ever equal to itself."""

    name: str


def test_fields_come_by_position_by_name_or_by_default() -> None:
    """As the class has them, in its order."""
    assert (1, 7) == (Point(1).x, Point(1).y)
    assert Point(1, 2) == Point(y=2, x=1) == Point(1, y=2)
    assert {"x": 1, "y": 7} == asdict(Point(1))
    assert "Point(x=1, y=7)" == repr(Point(1))


@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), ((), {"y": 1}), ((1, 2, 3), {}), ((1,), {"z": 1}), ((1,), {"x": 1})],
)
def test_what_does_not_fit_is_refused(values: tuple[int, ...], named: dict[str, int]) -> None:
    """Missing, too many, unknown, or given twice."""
    with pytest.raises(TypeError, match="Point has the fields x, y"):
        Point(*values, **named)


def test_equal_fields_make_equal_values() -> None:
    """Of one class, and they hash alike, a default or not."""
    assert Point(1) == Point(1, 7)
    assert hash(Point(1)) == hash(Point(1, 7))
    assert Point(1) != Point(2)
    assert Point(1) != Other(1)
    assert {Point(1): "one"}[Point(1, 7)] == "one"


def test_without_eq_each_is_itself() -> None:
    """Claims and transactions are things, not values."""
    one = Thing("a")
    assert one == one  # noqa: PLR0124 - that is the point
    assert one != Thing("a")
    assert 2 == len({one, Thing("a")})


def test_a_record_cannot_be_changed() -> None:
    """Neither set nor deleted; what came from it is another."""
    before = Point(1)
    with pytest.raises(AttributeError, match="Point is frozen"):
        before.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="Point is frozen"):
        del before.x
    after = evolve(before, y=8)
    assert (Point(1, 7), Point(1, 8)) == (before, after)
    assert Point(3, 8) == evolve(after, x=3)
    with pytest.raises(TypeError, match="Point has the fields x, y"):
        evolve(before, z=1)


def test_the_empty_mapping_is_everybodys() -> None:
    """So nobody can put anything into it."""
    with pytest.raises(TypeError):
        EMPTY["x"] = 1  # type: ignore[index]
