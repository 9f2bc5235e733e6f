"""Bundles: all modules of a program in one compiled file, so that it starts quickly. Not hot.

Making them may live here; start.py uses them. A bundle lies in a __pycache__ directory and is
trusted as what else lies there; it counts by Python's own rule for compiled files: every source in
it still has the size and the time (in seconds) that it had. The programs that run once a mail only
read them: init, cron and the sender make them, where the package belongs to who runs them.
"""

from __future__ import annotations

import posix

from picoqmail import durable
from picoqmail.start import MAGIC, MODULES, fresh_records, path_in_package, path_of_bundle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

# A source younger than that may change once more and keep its time, which is in whole seconds.
SETTLED_SECONDS = 2
_OFFSET_OCTETS = 4


def refresh(package: str, now: float) -> list[str]:
    """Make the bundles that are missing or out of date; returns the programs that got one.

    `package` is the directory of our modules, `now` are Unix seconds. Nothing is done by anybody
    but its owner, or by a set-id program. As with an installer that compiles this is no import:
    PYTHONDONTWRITEBYTECODE is not asked. Nothing that goes wrong is an error: programs start
    without bundles too.
    """
    directory = f"{package}/starting"
    made: list[str] = []
    try:
        owner = posix.stat(directory).st_uid
        if not posix.getuid() == posix.geteuid() == owner:
            return made
        # An editable install has its modules apart, and no use for this.
        posix.stat(f"{package}/cli/__init__.py")
        if durable.make_directory(f"{directory}/__pycache__"):
            # Open to whom the sources are, whatever the umask.
            posix.chmod(f"{directory}/__pycache__", posix.stat(directory).st_mode & 0o777)
        compiled: dict[str, CodeType] = {}
        for program in MODULES:
            path = path_of_bundle(package, program)
            if not _is_good(package, path):
                data = _make(package, program, now, compiled)
                if not data:
                    break
                durable.replace(f"{path}.{posix.getpid()}", path, data)
                # For all who may read the source, as the installer's compiled files are.
                mode = posix.stat(f"{package}/start.py").st_mode
                posix.chmod(path, mode & 0o644)
                made.append(program)
    except OSError:
        # Read-only, full, or modules are missing.
        return made
    return made


def _is_good(package: str, path: str) -> bool:
    """Say whether there is a bundle that start.py would use."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return False
    return data.startswith(MAGIC) and bool(fresh_records(package, data))


def _make(package: str, program: str, now: float, compiled: dict[str, CodeType]) -> bytes:
    """Return the bundle, b"" if a source is too young for it. Raises OSError.

    Behind the magic: where the second part begins, in 4 octets, the least first; then marshalled
    the code of start.py, and a tuple for each module, of name, path, (size, time) and code. A
    record of start.py without code comes first. `compiled` is kept from one bundle to the next.
    """
    import marshal

    records: list[tuple[str, str, tuple[int, int], CodeType | None]] = []
    for name in ("start", "", *MODULES[program]):
        relative = path_in_package(name)
        with open(f"{package}/{relative}", encoding="utf-8") as file:
            found = posix.stat(file.fileno())
            if now < found.st_mtime + SETTLED_SECONDS:
                return b""
            if name not in compiled:
                compiled[name] = _compile(file.read(), file.name)
        what = found.st_size, int(found.st_mtime)
        records.append((name, relative, what, compiled[name] if records else None))
    first = marshal.dumps(compiled["start"])
    offset = len(MAGIC) + _OFFSET_OCTETS + len(first)
    return MAGIC + offset.to_bytes(_OFFSET_OCTETS, "little") + first + marshal.dumps(tuple(records))


def _compile(source: str, path: str) -> CodeType:
    """Compile a module without what the programs do not look at, so that less is to be read.

    Without docstrings and asserts; without imports for the type checker and annotations of
    functions; with the numbers of lines, but not of columns.
    """
    import __future__

    import ast

    class Leaner(ast.NodeTransformer):
        def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
            return None if node.module == "__future__" else node

        def visit_If(self, node: ast.If) -> ast.AST | None:
            is_ours = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if is_ours and not node.orelse else self.generic_visit(node)

        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            node.returns = None
            return self.generic_visit(node)

        def visit_arg(self, node: ast.arg) -> ast.AST:
            node.annotation = None
            return node

    tree = Leaner().visit(ast.parse(source, path))
    flags = __future__.annotations.compiler_flag
    return _with_lines_only(compile(tree, path, "exec", flags, dont_inherit=True, optimize=2))


def _with_lines_only(code: CodeType) -> CodeType:
    """Leave out the columns: a quarter of the file (Objects/locations.md of CPython)."""
    from itertools import groupby

    table = bytearray()
    last = code.co_firstlineno
    for line, instructions in groupby(_lines(code)):
        units = len(list(instructions))
        while units:
            some = min(units, 8)
            units -= some
            if line is None:
                table.append(0x80 | 15 << 3 | some - 1)
            else:
                table.append(0x80 | 13 << 3 | some - 1)
                rest = line - last << 1 if line >= last else last - line << 1 | 1
                last = line
                while rest >= 64:
                    table.append(0x40 | rest & 63)
                    rest >>= 6
                table.append(rest)
    constants = [
        _with_lines_only(one) if type(one) is type(code) else one for one in code.co_consts
    ]
    lean = code.replace(co_linetable=bytes(table), co_consts=tuple(constants))
    # A Python that has another form of the table keeps its own.
    return lean if _lines(lean) == _lines(code) else code


def _lines(code: CodeType) -> list[int | None]:
    """The number of the line of each instruction."""
    return [line for start, end, line in code.co_lines() for _ in range(start, end, 2)]
