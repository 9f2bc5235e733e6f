"""Records: frozen values with named fields, for what the sender needs each time it starts.

The sender is started with nearly every mail, and attrs was half of its start: 25 ms to import it,
and half a millisecond for each class, which is compiled anew every time. A record compiles nothing.
Elsewhere classes are attrs'; type checkers see no difference.
"""

from __future__ import annotations

from types import MappingProxyType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar, TypeVar, dataclass_transform

    SomeRecord = TypeVar("SomeRecord", bound="Record")
else:

    def dataclass_transform(**_: object) -> object:
        """Do nothing: it is there for type checkers."""
        return lambda cls: cls


EMPTY: Mapping[str, Any] = MappingProxyType({})
"""The default of a field that is a mapping."""


@dataclass_transform(frozen_default=True)
class Record:
    """Its fields are what the class annotates, in that order; what it gives them is their default.

    Given by position or name; a missing or unknown one is a TypeError. Two of one class with equal
    fields are equal, and hash alike; with `eq=False` each is only itself.
    """

    _fields: ClassVar[tuple[str, ...]] = ()
    _names: ClassVar[frozenset[str]] = frozenset()
    _required: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, *, eq: bool = True) -> None:
        """Note the fields, once a class."""
        cls._fields = tuple(cls.__annotations__)
        cls._names = frozenset(cls._fields)
        cls._required = cls._names.difference(vars(cls))
        if not eq:
            cls.__eq__ = object.__eq__  # type: ignore[method-assign]
            cls.__hash__ = object.__hash__  # type: ignore[method-assign]

    def __init__(self, *values: object, **named: object) -> None:
        """Take the fields."""
        own = self.__dict__
        own.update(zip(self._fields, values), **named)  # noqa: B905 - see below
        # Too many values, or one given twice, make fewer fields than there were arguments.
        if (
            len(own) != len(values) + len(named)
            or not named.keys() <= self._names
            or not (len(own) == len(self._fields) or self._required <= own.keys())
        ):
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(self._fields)}")

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: a record is frozen."""
        raise AttributeError(f"{name} cannot be set: {type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> None:
        """Refuse: a record is frozen."""
        raise AttributeError(f"{name} cannot be deleted: {type(self).__name__} is frozen")

    def _values(self) -> tuple[object, ...]:
        """What makes it equal to another."""
        return tuple([getattr(self, name) for name in self._fields])

    def __eq__(self, other: object) -> bool:
        """Compare the fields."""
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        """Hash the fields."""
        return hash(self._values())

    def __repr__(self) -> str:
        """Show the fields."""
        shown = zip(self._fields, self._values())  # noqa: B905 - one may show less
        return f"{type(self).__name__}({', '.join([f'{name}={one!r}' for name, one in shown])})"


def evolve(record: SomeRecord, **changes: object) -> SomeRecord:
    """Return a copy with some fields changed. Raises TypeError for one that there is not."""
    copy = object.__new__(type(record))
    copy.__dict__.update(record.__dict__, **changes)
    if not changes.keys() <= record._names:  # noqa: SLF001 - of this module
        raise TypeError(f"{type(record).__name__} has the fields {', '.join(record._fields)}")
    return copy


def asdict(record: Record) -> dict[str, Any]:
    """The fields by name."""
    return {name: getattr(record, name) for name in record._fields}
