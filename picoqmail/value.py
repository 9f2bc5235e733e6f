"""Values: small frozen classes for what runs once a mail.

The sender starts with nearly every mail, and importing attrs would be half of its start. So the
classes on its way are written by hand: `__slots__` names the fields, and `__init__` takes them
under the same names in the same order. `Value` gives such a class equality, a hash and a repr.

A value is frozen: its fields are `Final`, so the type checker refuses an assignment. Nothing
checks that at run time, because a check would cost more than the constructor does. To change a
value, make a copy with `evolve`. Elsewhere in the package, values are attrs' `@frozen` classes.
"""

from __future__ import annotations

from types import MappingProxyType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar, Protocol, TypeVar

    class Slotted(Protocol):
        """A class whose `__slots__` are its fields."""

        __slots__: ClassVar[tuple[str, ...]]

    AnySlotted = TypeVar("AnySlotted", bound=Slotted)

EMPTY: Mapping[str, Any] = MappingProxyType({})
"""The default of a field that is a mapping; it cannot be changed."""


class Value:
    """Two values of one class with equal fields are equal, and hash alike."""

    __slots__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        """Compare the fields."""
        if type(other) is not type(self):
            return NotImplemented
        return asdict(self) == asdict(other)

    def __hash__(self) -> int:
        """Hash the fields."""
        return hash(tuple(asdict(self).values()))

    def __repr__(self) -> str:
        """Show the fields."""
        fields = ", ".join([f"{name}={field!r}" for name, field in asdict(self).items()])
        return f"{type(self).__name__}({fields})"


def asdict(value: Slotted) -> dict[str, Any]:
    """Return the fields of a slotted value by name, in their order."""
    return {name: getattr(value, name) for name in value.__slots__}


def evolve(value: AnySlotted, /, **changes: object) -> AnySlotted:
    """Return a copy of a slotted value with some fields changed.

    Raises AttributeError for a field that the class does not have.
    """
    copy: AnySlotted = object.__new__(type(value))
    for name in value.__slots__:
        setattr(copy, name, getattr(value, name))
    for name, field in changes.items():
        setattr(copy, name, field)
    return copy
