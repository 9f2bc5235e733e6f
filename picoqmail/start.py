"""How the installed programs begin and end: modules found quickly, no farewell. Builtins only.

Python's import asks the file system eleven times for each module, and its finders are written in
Python: a dozen small modules cost a third of a bare interpreter's start. `preload` loads those
that a program is known to need from the files that the installer compiled, by Python's own rule
(a compiled file counts if it names the time and size of its source). What it cannot load so is
left to the import statements, which then do it the ordinary way.
"""

from __future__ import annotations

import posix
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER, SourceFileLoader
from marshal import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

_ACCEPTANCE = (
    "errors",
    "layout",
    "home",
    "control",
    "limits",
    "envelope",
    "dates",
    "durable",
    "sidecar",
    "accept",
    "launch",
)
_INJECTION = ("flags", "handover", "header", "tokens", "rewrite", "inject", "cli", "cli.inject")
_RETRYING = ("errors", "layout", "home", "control", "launch", "scan", "retention", "sender", "cli")
# What each program imports on its usual way, each module behind those that it imports itself. A
# test compares this with what they do import.
MODULES = {
    "queue": (*_ACCEPTANCE, "cli", "cli.queue"),
    "inject": (*_ACCEPTANCE, *_INJECTION),
    "sendmail": (*_ACCEPTANCE, *_INJECTION, "sendmail", "cli.sendmail"),
    "send": (*_RETRYING, "cli.send"),
    "cron": (*_RETRYING, "cli.send", "cron_lock", "cli.cron"),
}
_BLOCK_OCTETS = 65536
_LOWEST_32_BITS = 0xFFFFFFFF


def run(program: str) -> None:
    """Run picoqmail.cli.PROGRAM with the arguments of this process, and end it.

    Nothing is torn down: files are closed and flushed by then, and the kernel does the rest in a
    tenth of the time.
    """
    sys.meta_path.append(_Elsewhere)
    preload(__file__.rpartition("/")[0], MODULES[program])
    module: Any = __import__(f"picoqmail.cli.{program}", fromlist=["main"])
    status: int = module.main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    posix._exit(status)  # noqa: SLF001 - the documented name of it is os._exit


class _Elsewhere:
    """The last finder: what does not lie beside us, such as a shared dependency, needs site."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Let site add its directories, once, and ask the other finders again."""
        if path is not None or name.startswith("_"):
            return None
        sys.meta_path.remove(cls)
        beside = [directory for directory in sys.path if directory.endswith("-packages")]
        import site

        site.main()
        for directory in set(beside).difference(site.getsitepackages()):
            site.addsitedir(directory)
        for finder in sys.meta_path:
            if spec := finder.find_spec(name, path, target):
                return spec
        return None


def preload(package: str, names: Sequence[str]) -> None:
    """Load modules of ours that lie in the directory `package` and were compiled."""
    compiled = f"/__pycache__/{{}}.{sys.implementation.cache_tag}.pyc"
    for name in names:
        base, _, last = f"{package}/{name.replace('.', '/')}".rpartition("/")
        if name == "cli":
            base, last = f"{base}/{last}", "__init__"
        source = f"{base}/{last}.py"
        code = _code(source, base + compiled.format(last))
        if code is not None:
            _enter(name, source, code)


def _code(source: str, compiled: str) -> Any:  # noqa: ANN401 - a code object
    """The code of a source file whose compiled file is up to date, else None."""
    try:
        found = posix.stat(source)
        descriptor = posix.open(compiled, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = posix.read(descriptor, _BLOCK_OCTETS)
    finally:
        posix.close(descriptor)
    # PEP 552: the magic number, flags (0: checked by time and size), and these two.
    wanted = (0, int(found.st_mtime) & _LOWEST_32_BITS, found.st_size & _LOWEST_32_BITS)
    header = MAGIC_NUMBER + b"".join([number.to_bytes(4, "little") for number in wanted])
    if len(data) == _BLOCK_OCTETS or not data.startswith(header):
        return None
    return loads(memoryview(data)[len(header) :])  # noqa: S302 - as trusted as the code itself


def _enter(name: str, source: str, code: Any) -> None:  # noqa: ANN401
    """Make the module as import would."""
    full_name = f"picoqmail.{name}"
    is_package = source.endswith("/__init__.py")
    loader = SourceFileLoader(full_name, source)
    spec = ModuleSpec(full_name, loader, origin=source, is_package=is_package)
    module = type(sys)(full_name)
    parent, _, last = full_name.rpartition(".")
    given: dict[str, Any] = module.__dict__
    given.update(__spec__=spec, __loader__=loader, __file__=source, __package__=parent)
    if is_package:
        given.update(__package__=full_name, __path__=[source.rpartition("/")[0]])
    sys.modules[full_name] = module
    try:
        exec(code, given)  # noqa: S102 - this is what an import does
    except BaseException:
        del sys.modules[full_name]
        raise
    setattr(sys.modules[parent], last, module)
