"""Mutants of a module: its text with one small mistake. Pure.

A mutant has a name that stays the same when other lines of the module change: the function it is
in, the line as it was, and the line as it is. So what is known of a mutant can be written down.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMPARED: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
_COMPUTED: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "+"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
_NOT_RUN = frozenset({"__repr__", "__slots__", "TYPE_CHECKING"})
_LINE_LIMIT = 110


@frozen
class Mutant:
    """One mistake: `text` is the module with it; `first` to `last` are its statement's lines."""

    name: str
    text: str
    first: int
    last: int


@frozen
class _Edit:
    """A piece of the source, as positions in it, and what replaces it."""

    start: int
    end: int
    new: str
    function: str
    lines: tuple[int, int]


def mutants_of(source: str) -> list[Mutant]:
    """Return the mutants of a module, in the order of its lines."""
    tree = ast.parse(source)
    maker = _Maker(source)
    edits = sorted(set(maker.edits(tree, "")), key=lambda one: (one.start, one.end, one.new))
    found, names = [], Counter[str]()
    for edit in edits:
        text = source[: edit.start] + edit.new + source[edit.end :]
        name = _name_of(source, text, edit)
        names[name] += 1
        number = f" ({names[name]})" if names[name] > 1 else ""
        found.append(Mutant(name + number, text, *edit.lines))
    return found


def _name_of(source: str, text: str, edit: _Edit) -> str:
    """Return the function, and the lines before and after."""
    begin = source.rfind("\n", 0, edit.start) + 1
    old_end = source.find("\n", edit.end)
    old = source[begin:old_end]
    new = text[begin : old_end + len(text) - len(source)]
    return f"{edit.function or 'module'}: {_short(old)} => {_short(new)}"


def _short(lines: str) -> str:
    return re.sub(r"\s+", " ", lines).strip()[:_LINE_LIMIT]


class _Maker:
    """Finds the edits of one module."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._octets = [line.encode() for line in source.splitlines(keepends=True)]
        self._lines = (1, 1)
        """Those of the statement in hand, without what is nested in it."""
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def _place(self, line: int, column: int) -> int:
        """Return the position of what ast gives as line and octet."""
        return self._starts[line - 1] + len(self._octets[line - 1][:column].decode())

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self._place(node.lineno, node.col_offset),
            self._place(node.end_lineno, node.end_col_offset),
        )

    def _replace(self, node: ast.expr | ast.stmt, new: str, function: str) -> _Edit:
        return _Edit(*self._span(node), new, function, self._lines)

    def _text(self, node: ast.expr | ast.stmt) -> str:
        start, end = self._span(node)
        return self._source[start:end]

    def edits(self, node: ast.AST, function: str) -> Iterator[_Edit]:
        """Yield the edits below a node."""
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            if node.name in _NOT_RUN:
                return
            function = f"{function}.{node.name}" if function else node.name
            self._lines = node.lineno, node.body[0].lineno - 1
        elif isinstance(node, ast.stmt):
            body = getattr(node, "body", None) or getattr(node, "cases", None)
            self._lines = node.lineno, body[0].lineno - 1 if body else node.end_lineno or 0
            yield from self._statement(node, function)
        elif isinstance(node, ast.pattern):
            return
        elif isinstance(node, ast.expr):
            yield from self._expression(node, function)
        for child in _children(node):
            lines = self._lines
            yield from self.edits(child, function)
            self._lines = lines

    def _statement(self, node: ast.stmt, function: str) -> Iterator[_Edit]:
        if isinstance(node, (ast.Expr, ast.Raise, ast.AugAssign, ast.Delete)):
            if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
                yield self._replace(node, "pass", function)
        elif isinstance(node, ast.Assign):
            if isinstance(node.targets[0], (ast.Attribute, ast.Subscript)):
                yield self._replace(node, "pass", function)
        elif isinstance(node, ast.Return):
            if node.value is None:
                yield self._replace(node, "pass", function)
            elif not (
                isinstance(node.value, ast.Constant) and node.value.value in {None, True, False}
            ):
                yield self._replace(node.value, "None", function)
        elif isinstance(node, ast.Continue):
            yield self._replace(node, "break", function)
        elif isinstance(node, ast.Break):
            yield self._replace(node, "continue", function)
        elif isinstance(node, (ast.If, ast.While)):
            yield from self._condition(node.test, function)

    def _condition(self, test: ast.expr, function: str) -> Iterator[_Edit]:
        if not isinstance(test, (ast.Compare, ast.UnaryOp)) and not _is_type_checking(test):
            yield self._replace(test, f"not ({self._text(test)})", function)

    def _expression(self, node: ast.expr, function: str) -> Iterator[_Edit]:
        if isinstance(node, ast.Compare):
            yield from self._comparison(node, function)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield self._replace(node, f"({self._text(node.operand)})", function)
        elif isinstance(node, ast.IfExp):
            yield from self._condition(node.test, function)
        elif isinstance(node, ast.BoolOp):
            yield from self._boolean(node, function)
        elif isinstance(node, ast.BinOp) and type(node.op) in _COMPUTED:
            old, new = _COMPUTED[type(node.op)]
            start, end = self._span(node.left)[1], self._span(node.right)[0]
            between = self._source[start:end]
            yield _Edit(start, end, between.replace(old, new, 1), function, self._lines)
        elif isinstance(node, ast.Constant):
            yield from self._constant(node, function)
        elif isinstance(node, ast.Name) and node.id in _NAMES:
            yield self._replace(node, _NAMES[node.id], function)

    def _comparison(self, node: ast.Compare, function: str) -> Iterator[_Edit]:
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            start, end = self._span(left)[1], self._span(right)[0]
            between = self._source[start:end]
            # Brackets that belong to an operand may stand there, too.
            new = re.sub(
                r"not\s+in|is\s+not|in|is|[<>=!]+", _COMPARED[type(operator)], between, count=1
            )
            yield _Edit(start, end, new, function, self._lines)
            left = right

    def _boolean(self, node: ast.BoolOp, function: str) -> Iterator[_Edit]:
        words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            start, end = self._span(left)[1], self._span(right)[0]
            between = self._source[start:end]
            new = re.sub(rf"\b{words[0]}\b", words[1], between)
            yield _Edit(start, end, new, function, self._lines)

    def _constant(self, node: ast.Constant, function: str) -> Iterator[_Edit]:
        value = node.value
        if isinstance(value, bool):
            yield self._replace(node, str(not value), function)
        elif isinstance(value, (int, float)):
            text = self._text(node)
            yield self._replace(node, f"({text} + 1)", function)
            if value > 1 and not text.startswith("0o"):
                yield self._replace(node, f"({text} - 1)", function)


def _is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what of a node is run: no annotations, no decorators, no imports for type checkers."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, ast.If) and _is_type_checking(one.test):
                continue
            if isinstance(one, (ast.JoinedStr, ast.Assert)):
                continue  # The text of messages, and what only says what is known.
            if isinstance(one, ast.Assign) and _target_name(one) in _NOT_RUN:
                continue
            if isinstance(one, ast.AST):
                yield one


def _target_name(node: ast.Assign) -> str:
    target = node.targets[0]
    return target.id if isinstance(target, ast.Name) else ""
