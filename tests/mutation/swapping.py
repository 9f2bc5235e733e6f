"""A mistake in functions that are in memory already: their code is exchanged.

So a module and its tests need not be imported again for each mutant. What a module runs while it is
imported (constants, defaults, the bodies of classes) is beyond this: such a mutant needs a process
that imports the mutated file.
"""

from __future__ import annotations

import gc
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
    """Give functions of a module the code of another text; False if that does not do.

    `before` is the text that they come from. If it does not do, nothing is exchanged.
    """
    by_code: dict[CodeType, list[FunctionType]] = {}
    for one in functions:
        by_code.setdefault(one.__code__, []).append(one)
    exchanges: list[tuple[FunctionType, CodeType]] = []
    pairs = [(compile(before, path, "exec"), compile(after, path, "exec"))]
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
            return False
    if any(one.__code__.co_freevars != new.co_freevars for one, new in exchanges):
        return False
    for one, new in exchanges:
        one.__code__ = new
    return True


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
