"""The build: each program merged into one file. What is installed, and all else: setup.cfg.

Python's import asks the file system a dozen times for each module, which would be a third of the
time of a program that runs once a mail. So the build merges the modules that a program imports
into one file, as SQLite does with its amalgamation: `picoqmail/merged/picoqmail_PROGRAM.py`. The
modules are the source of truth; an editable install has no such files, and uses the modules.

The modules in a merged file share one namespace: the build refuses a name with two meanings. At
its end the file registers itself under the name of each module. So whatever imports
`picoqmail.errors` later gets the same classes; none exists twice in a process.

Python executes a compiled file whatever the disk made of it. So beside each merged file the build
puts its code with a checksum, for the Python that builds: `picoqmail_PROGRAM.code`. The launchers
execute that if it is whole, and else what the installer compiled.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib.util
import marshal
import os
import shutil
import symtable

from setuptools import setup
from setuptools.command.build_py import build_py

# Each program is these modules and what they import at once, not inside functions.
PROGRAMS = {
    "queue": ("picoqmail.cli.start", "picoqmail.cli.queue"),
    "inject": ("picoqmail.cli.start", "picoqmail.cli.inject"),
    "sendmail": ("picoqmail.cli.start", "picoqmail.cli.sendmail"),
    "send": ("picoqmail.cli.start", "picoqmail.cli.send", "picoqmail.delivery.run"),
    "cron": ("picoqmail.cli.start", "picoqmail.cli.cron"),
}
# What a program that accepted mail loads after its fork, when it becomes the sender. Left out are
# the modules that each of these programs has already; they must be the same for all of them.
SENDER = ("picoqmail.cli.send", "picoqmail.delivery.run", "picoqmail.submission.process_title")
FORKING = ("queue", "inject", "sendmail")
# Shared objects of the standard library, which merged files load by `start.load_extension`.
EXTENSIONS = ("_json", "_socket", "fcntl", "math", "select", "zlib")


class MergeError(Exception):
    """A module cannot be merged, or two of them cannot share one namespace."""


def merge(root: str, modules: tuple[str, ...]) -> str:
    """Return one file with these modules of the package in `root`. Raises MergeError."""
    return _merged(root, modules).text()


def merge_all(root: str) -> dict[str, str]:
    """Return all merged files of the package in `root`, by name. Raises MergeError.

    Those that meet in one process know what they were built from, and a file for the sender does
    not load where others are.
    """
    programs = {name: _merged(root, modules) for name, modules in PROGRAMS.items()}
    wanted = _merged(root, SENDER).modules
    shared = {frozenset(wanted & programs[name].modules) for name in FORKING}
    if len(shared) > 1:
        odd = ", ".join(sorted(frozenset.union(*shared) - frozenset.intersection(*shared)))
        raise MergeError(f"{odd}: not in all of {FORKING}, and needed by the sender")
    (present,) = shared
    texts = {name: merger.text() for name, merger in programs.items()}
    sender = _merged(root, SENDER, present).text()
    build = hashlib.sha256("".join([*texts.values(), sender]).encode()).hexdigest()[:16]
    for name in FORKING:
        if texts[name].count(_NO_BUILD) != 1:
            raise MergeError(f"{name}: {_NO_BUILD.strip()} is not there once")
        texts[name] = texts[name].replace(_NO_BUILD, f"\nBUILD = {build!r}\n")
    check = f"from {_START_SENDER} import BUILD\nif BUILD != {build!r}:\n    raise ImportError\n"
    texts["sender"] = sender.replace("import sys\n", f"import sys\n{check}", 1)
    return texts


def _merged(root: str, modules: tuple[str, ...], present: frozenset[str] = frozenset()) -> _Merger:
    merger = _Merger(root, present)
    for module in modules:
        merger.add(module)
    return merger


_START = "picoqmail.cli.start"
_START_SENDER = "picoqmail.submission.start_sender"
_NO_BUILD = "\nBUILD = ''\n"


class _Merger:
    """Puts modules one behind the other, each behind those that it imports."""

    def __init__(self, root: str, present: frozenset[str]) -> None:
        """`present` are modules that the process has already, in another merged file."""
        self._root = root
        self._present = present
        self._texts: dict[str, str] = {}
        # What each name of the common namespace means, and the module that brought it.
        self._meanings = {"sys": ("import sys", "every merged file")}

    @property
    def modules(self) -> set[str]:
        """The names of all that was merged."""
        return set(self._texts)

    def text(self) -> str:
        names = "".join([f"    {module!r},\n" for module in self._texts])
        parts = "\n".join([f"# {module}\n{text}" for module, text in self._texts.items()])
        return (
            "# Made by setup.py from the modules named at the end. Changes belong there.\n"
            f"import sys\n\n{parts}\n"
            f"sys.modules.update(dict.fromkeys((\n{names}), sys.modules[__name__]))\n"
        )

    def add(self, module: str) -> None:
        """Merge a module, unless that was done."""
        if module in self._texts or module in self._present:
            return
        path = self._path(module)
        if not os.path.exists(path):
            raise MergeError(f"{module} is no module; only modules can be merged, not packages")
        with open(path, encoding="utf-8") as file:
            tree = _Leaner().visit(ast.parse(file.read(), path))
        for statement in tree.body:
            if isinstance(statement, ast.ImportFrom) and statement.module.startswith("picoqmail"):
                for alias in statement.names:
                    self.add(self._source(statement, alias))
        lines, own = [], []
        for statement in tree.body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                lines += [self._import(statement, alias, module) for alias in statement.names]
            else:
                own.append(ast.unparse(statement))
                lines.append(own[-1])
        names = ast.unparse(_NoComprehensions().visit(ast.parse("\n".join(own))))
        for symbol in symtable.symtable(names, path, "exec").get_symbols():
            if symbol.is_assigned():
                self._define(symbol.get_name(), f"defined by {module}", module)
        self._texts[module] = "".join([f"{line}\n" for line in lines if line])

    def _source(self, statement: ast.ImportFrom, alias: ast.alias) -> str:
        """Return the module that an import of ours needs: the name may be one, or be in one."""
        inner = f"{statement.module}.{alias.name}"
        return inner if os.path.exists(self._path(inner)) else str(statement.module)

    def _import(self, statement: ast.Import | ast.ImportFrom, alias: ast.alias, module: str) -> str:
        """Return what is left of a module's import of one name: nothing, if it is here already."""
        bound = alias.asname or alias.name
        if isinstance(statement, ast.Import):
            line = ast.unparse(ast.Import([alias]))
        elif not str(statement.module).startswith("picoqmail"):
            line = ast.unparse(ast.ImportFrom(statement.module, [alias], 0))
        elif (source := self._source(statement, alias)) != statement.module:
            place = repr(source) if source in self._present else "__name__"
            line = f"{bound} = sys.modules[{place}]"
        elif source in self._present:
            line = ast.unparse(ast.ImportFrom(source, [alias], 0))
        elif bound == alias.name:
            return ""
        else:
            line = f"{bound} = {alias.name}"
        if not self._define(bound, line, module):
            return ""
        source = alias.name if isinstance(statement, ast.Import) else statement.module
        if source in EXTENSIONS:
            start = "" if _START in self._texts else f"sys.modules[{_START!r}]."
            line = f"{start}load_extension({source!r})\n{line}"
        return line

    def _define(self, name: str, meaning: str, module: str) -> bool:
        """Note what a name means; False if that is known. Raises MergeError if it differs."""
        if hasattr(builtins, name):
            raise MergeError(f"{module}: {name} is Python's own; another name is needed")
        known, first = self._meanings.setdefault(name, (meaning, module))
        if known != meaning:
            raise MergeError(
                f"{module}: {name} is {meaning!r} here and {known!r} in {first}, and both become"
                " part of one file; another name is needed"
            )
        return first == module

    def _path(self, module: str) -> str:
        return f"{os.path.join(self._root, *module.split('.'))}.py"


class _NoComprehensions(ast.NodeTransformer):
    """Leaves out comprehensions: their names are their own, but Python 3.12 and later list them."""

    def _nothing(self, node: ast.expr) -> ast.expr:
        del node
        return ast.Constant(None)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _nothing  # noqa: N815


class _Leaner(ast.NodeTransformer):
    """Leaves out what a program does not look at: docstrings, annotations, types' imports."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module == "__future__" else node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        is_typing = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return node.orelse if is_typing else node

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        first = node.targets[0]
        is_idle = isinstance(first, ast.Name) and first.id in ("TYPE_CHECKING", "__all__")
        return None if is_idle else self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if not node.value:
            return None
        return self.generic_visit(ast.Assign([node.target], node.value, lineno=node.lineno))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._filled(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._filled(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def _filled(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node


def checked_code(text: str, path: str) -> bytes:
    """Return the code of a merged file behind its checksum of 8 octets, as `load` has it.

    The checksum is SipHash under a key of this version of Python, because another one would not
    understand the code; importlib takes it for sources (PEP 552). `path` is for tracebacks.
    """
    code = marshal.dumps(compile(text, path, "exec", dont_inherit=True, optimize=0))
    return importlib.util.source_hash(code) + code


class BuildModules(build_py):
    """Copies the modules, and puts the merged files beside them."""

    def run(self) -> None:
        """Build; but an editable install uses the modules as they are."""
        if not self.editable_mode:
            # A checkout that was built before has the modules of that day there.
            shutil.rmtree(os.path.join(self.build_lib, "picoqmail"), ignore_errors=True)
        super().run()
        if self.editable_mode:
            return
        directory = os.path.join(self.build_lib, "picoqmail", "merged")
        os.makedirs(directory, exist_ok=True)
        for program, text in merge_all(self.build_lib).items():
            name = f"picoqmail_{program}"
            with open(os.path.join(directory, f"{name}.py"), "w", encoding="utf-8") as file:
                file.write(text)
            with open(os.path.join(directory, f"{name}.code"), "wb") as file:
                file.write(checked_code(text, f"picoqmail/merged/{name}.py"))


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildModules})
