"""How the installed programs begin and end: modules found quickly, no farewell. Builtins only.

Python's import asks the file system eleven times for each module, and its finders are written in
Python: a dozen small modules cost a third of a bare interpreter's start. So the launchers read all
modules of their program from one file, its bundle (bundle.py), this one among them, without asking
the import system for anything. Where there is no bundle, or a source was changed since, `preload`
loads the modules from the files that the installer compiled, by Python's own rule (a compiled file
counts if it names the time and size of its source). What it cannot load so is left to the import
statements, which then do it the ordinary way.
"""

from __future__ import annotations

import _imp
import posix
import sys
import time
from _frozen_importlib import ModuleSpec, module_from_spec
from _frozen_importlib_external import (
    MAGIC_NUMBER,
    ExtensionFileLoader,
    SourceFileLoader,
    spec_from_file_location,
)
from marshal import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

_ACCEPTANCE = (
    "home",
    "message",
    "spool",
    "submission",
    "errors",
    "layout",
    "home.paths",
    "home.control",
    "home.limits",
    "message.envelope",
    "message.dates",
    "durable",
    "spool.sidecar",
    "spool.incoming",
    "spool.locks",
    "spool.relay_down",
    "submission.start_sender",
)
_INJECTION = (
    "submission.flags",
    "submission.handover",
    "message.header",
    "message.tokens",
    "message.completion",
    "submission.inject",
    "cli",
    "cli.inject",
)
_RETRYING = (
    "home",
    "spool",
    "submission",
    "delivery",
    "errors",
    "layout",
    "home.paths",
    "home.control",
    "durable",
    "spool.locks",
    "spool.relay_down",
    "submission.start_sender",
    "spool.scan",
    "spool.retention",
    "delivery.sender",
    "cli",
)
# What the sending programs import besides, once there is something to send.
DELIVERY = "delivery"
_DELIVERY = (
    "log",
    "message",
    "relay",
    "value",
    "relay.breaker",
    "spool.counters",
    "delivery.processes",
    "log.privacy",
    "smtp",
    "smtp.relay_address",
    "home.values",
    "message.tokens",
    "message.completion",
    "message.rewriting",
    "home.secret",
    "home.settings",
    "spool.sidecar",
    "spool.sidecar_reading",
    "spool.message",
    "delivery.report_state",
    "smtp.address",
    "delivery.report",
    "delivery.policy",
    "delivery.routing",
    "smtp.transaction",
    "delivery.deliver",
    "log.logger",
    "relay.lane",
    "relay.tls_plan",
    "relay.lookup",
    "smtp.capabilities",
    "smtp.reply",
    "smtp.wire",
    "smtp.transaction_run",
    "smtp.conversation",
    "relay.transport",
    "relay.connection",
    "relay.throttle",
    "relay.failover",
    "relay.engine",
    "relay.rate_limit",
    "delivery.lanes",
    "spool.store",
    "delivery.run",
)
# What each program imports on its usual way, each module behind those that it imports itself. A
# test compares this with what they do import.
MODULES = {
    "queue": (*_ACCEPTANCE, "cli", "cli.queue"),
    "inject": (*_ACCEPTANCE, *_INJECTION),
    "sendmail": (*_ACCEPTANCE, *_INJECTION, "submission.sendmail", "cli.sendmail"),
    "send": (*_RETRYING, "cli.send"),
    "cron": (*_RETRYING, "cli.send", "cli.cron"),
    DELIVERY: _DELIVERY,
}
_PACKAGES = (
    "",
    "cli",
    "smtp",
    "message",
    "log",
    "home",
    "spool",
    "submission",
    "relay",
    "delivery",
)
# These look after the bundles; nobody waits for them.
_MAKERS = ("send", "cron")
# What a bundle begins with; to Python it is no compiled file. The launchers have this line too. A
# new form of bundles, or of what `run` is given, needs a new number: old bundles outlive upgrades.
MAGIC = MAGIC_NUMBER + b"picoqmail 1\n"
_FIRST_PART = len(MAGIC) + 4
# What is raised where a bundle was cut, as by a copy onto a full disk: it does not count.
_DAMAGED = (EOFError, TypeError, ValueError)
# Shared objects in most Pythons, and each program needs them.
_EXTENSIONS = ("fcntl", "zlib")
_BLOCK_OCTETS = 65536
_LOWEST_32_BITS = 0xFFFFFFFF


def run(program: str, bundle: bytes = b"") -> None:
    """Run picoqmail.cli.PROGRAM with the arguments of this process, and end it.

    Returns only if there is a `bundle`, the one that this very code came from, and it is out of
    date. Nothing is torn down: files are closed and flushed by then, and the kernel does the rest
    in a tenth of the time.
    """
    package = __file__.rpartition("/")[0]
    if bundle:
        if not _enter_bundle(package, bundle):
            return
    else:
        sys.meta_path.append(_Elsewhere)
        preload(package, MODULES[program])
        if program in _MAKERS and posix.access(f"{package}/starting", posix.W_OK):
            making: Any = __import__("picoqmail.bundle", fromlist=["refresh"])
            making.refresh(package, time.time())
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


def path_of_bundle(package: str, program: str) -> str:
    """Where the bundle of a program is; the launchers say the same."""
    return f"{package}/starting/__pycache__/{program}.{sys.implementation.cache_tag}.pyc"


def path_in_package(name: str) -> str:
    """The source of one of our modules, "" being the package itself."""
    return (
        f"{name}/__init__.py".lstrip("/") if name in _PACKAGES else f"{name.replace('.', '/')}.py"
    )


def fresh_records(package: str, bundle: bytes) -> tuple[Any, ...]:
    """The records of a bundle, each name, path, (size, time) and code.

    None where it is damaged, or a source is not as it was when the bundle was made.
    """
    end = int.from_bytes(bundle[len(MAGIC) : _FIRST_PART], "little")
    try:
        records: tuple[Any, ...] = loads(memoryview(bundle)[end:])  # noqa: S302 - as trusted as the code itself
        for _, relative, what, _ in records:
            found = posix.stat(f"{package}/{relative}")
            # By index they are whole numbers: size and seconds.
            if (found[6], found[8]) != what:
                return ()
    except (OSError, *_DAMAGED):
        return ()
    return records


def enter_delivery() -> None:
    """Load the modules of DELIVERY at once, if their bundle is there and up to date.

    What is not loaded so is left to the import statements.
    """
    package = __file__.rpartition("/")[0]
    try:
        with open(path_of_bundle(package, DELIVERY), "rb") as file:
            bundle = file.read()
    except OSError:
        return
    if not bundle.startswith(MAGIC):
        return
    _enter_all(package, fresh_records(package, bundle))


def _enter_bundle(package: str, bundle: bytes) -> bool:
    """Load the modules of a bundle; False, and nothing was done, if it is out of date."""
    collector: Any = _builtin("gc")
    # Everything that is made now stays: to look for garbage among it would cost a tenth of this.
    collector.disable()
    records = fresh_records(package, bundle)
    if records:
        sys.meta_path.append(_Elsewhere)
        for name in _EXTENSIONS:
            _load_extension(name)
        _enter_all(package, records)
        collector.freeze()
    collector.enable()
    return bool(records)


def _enter_all(package: str, records: tuple[Any, ...]) -> None:
    """Make the modules of a bundle, but for those that an application, or we, have already."""
    for name, relative, _, code in records:
        if code is not None and f"picoqmail.{name}".rstrip(".") not in sys.modules:
            _enter(name, f"{package}/{relative}", code)


def _builtin(name: str) -> ModuleType:
    """A builtin module, as import would make it, in a third of the time."""
    module = _imp.create_builtin(ModuleSpec(name, None))
    _imp.exec_builtin(module)
    return module


def _load_extension(name: str) -> None:
    """Load a module of the standard library from where it must be; else leave it to import."""
    if name in sys.builtin_module_names:
        return
    for directory in sys.path:
        if directory.endswith("/lib-dynload"):
            path = f"{directory}/{name}{_imp.extension_suffixes()[0]}"
            spec: Any = spec_from_file_location(name, path, loader=ExtensionFileLoader(name, path))
            try:
                module = module_from_spec(spec)
            except ImportError:
                return
            sys.modules[name] = module
            spec.loader.exec_module(module)
            return


def preload(package: str, names: Sequence[str]) -> None:
    """Load modules of ours that lie in the directory `package` and were compiled."""
    tag = sys.implementation.cache_tag
    for name in names:
        source = f"{package}/{path_in_package(name)}"
        base, _, last = source.removesuffix(".py").rpartition("/")
        code = _code(source, f"{base}/__pycache__/{last}.{tag}.pyc")
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
    full_name = f"picoqmail.{name}" if name else "picoqmail"
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
    if parent:
        setattr(sys.modules[parent], last, module)
