"""A mistake in a module that is in memory already: the code of its functions is exchanged.

So a module and its tests need not be imported again for each mutant. Of what a module runs while it
is imported, plain constants and the defaults of functions are exchanged, too. Anything else is
beyond this: such a mutant needs a process that imports the mutated file.
"""

from __future__ import annotations

import gc
import sys
from types import CodeType, FunctionType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_OPTIMIZED = 1  # CO_OPTIMIZED of inspect: the code is that of a function.


def functions_of(path: str) -> list[FunctionType]:
    """Return the functions in memory that come from this file."""
    return [
        one
        for one in gc.get_objects()
        if type(one) is FunctionType and one.__code__.co_filename == path
    ]


def swap(functions: list[FunctionType], path: str, before: str, after: str) -> bool:
    """Give a module in memory the code of another text; False if that does not do.

    `before` is the text that its functions come from. If it does not do, nothing is exchanged.
    """
    by_code: dict[CodeType, list[FunctionType]] = {}
    for one in functions:
        by_code.setdefault(one.__code__, []).append(one)
    exchanges: list[tuple[FunctionType, CodeType]] = []
    pairs = [(compile(before, path, "exec"), compile(after, path, "exec"))]
    imported = False
    while pairs:
        old, new = pairs.pop()
        inner = list(_inner(old)), list(_inner(new))
        own = by_code.get(old, ()) if old.co_flags & _OPTIMIZED else ()
        if own:
            if not _is_same(old, new, deeply=True):
                exchanges += [(one, new) for one in own]
        elif _is_same(old, new):
            pairs += zip(*inner, strict=True)
        else:
            imported = True
    if imported:
        return not exchanges and _swap_values(functions, path, before, after)
    if any(one.__code__.co_freevars != new.co_freevars for one, new in exchanges):
        return False
    for one, new in exchanges:
        one.__code__ = new
    return True


def _swap_values(functions: list[FunctionType], path: str, before: str, after: str) -> bool:
    """Exchange the constants and the defaults that differ; False if there are none."""
    if not functions:
        return False
    told = functions[0].__globals__
    spaces: list[dict[str, object]] = []
    for text in (before, after):
        space = {"__name__": told["__name__"], "__file__": path, "__package__": told["__package__"]}
        try:
            exec(compile(text, path, "exec"), space)  # noqa: S102 - a module of ours, with a mistake
        except Exception:  # noqa: BLE001 - whatever the mistake leads to
            return False
        spaces.append(space)
    old, new = spaces
    constants = [name for name, value in old.items() if _is_plain(value) and value != new.get(name)]
    for name in constants:
        value = old[name]
        for module in list(sys.modules.values()):
            there = getattr(module, "__dict__", {})
            kind = str(there.get("__name__", "")).partition(".")[0]
            if (
                kind == "picoqmail"
                and type(there.get(name)) is type(value)
                and there[name] == value
            ):
                there[name] = new[name]
    has_defaults = _swap_defaults(functions, old, new)
    return bool(constants) or has_defaults


def _swap_defaults(
    functions: list[FunctionType], old: dict[str, object], new: dict[str, object]
) -> bool:
    done = False
    olds, news = ({one.__qualname__: one for one in _defined(space)} for space in (old, new))
    for one in functions:
        before, after = olds.get(one.__qualname__), news.get(one.__qualname__)
        if before is None or after is None:
            continue
        for name in ("__defaults__", "__kwdefaults__"):
            if repr(getattr(before, name)) != repr(getattr(after, name)):
                setattr(one, name, getattr(after, name))
                done = True
    return done


def _defined(space: dict[str, object]) -> Iterator[FunctionType]:
    """Yield the functions of a module's names, and of its classes."""
    for value in space.values():
        if isinstance(value, type) and value.__module__ == space["__name__"]:
            for one in vars(value).values():
                inner = getattr(one, "__func__", one)
                if type(inner) is FunctionType:
                    yield inner
        elif type(value) is FunctionType and value.__module__ == space["__name__"]:
            yield value


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, frozenset)):
        return all(map(_is_plain, value))
    return type(value) in (int, float, str, bytes, bool)


def _inner(code: CodeType) -> Iterator[CodeType]:
    return (one for one in code.co_consts if isinstance(one, CodeType))


def _is_same(old: CodeType, new: CodeType, *, deeply: bool = False) -> bool:
    """Compare what two codes do, wherever their lines are; `deeply` with what is defined in them.

    Otherwise only the number of what is defined in them counts.
    """

    def said(code: CodeType) -> object:
        constants = [
            "code" if isinstance(one, CodeType) else (type(one), repr(one))
            for one in code.co_consts
        ]
        names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
        return code.co_code, constants, names, code.co_flags, code.co_exceptiontable

    if said(old) != said(new):
        return False
    if not deeply:
        return True
    pairs = zip(_inner(old), _inner(new), strict=True)
    return all(_is_same(one, other, deeply=True) for one, other in pairs)
