"""How the installed programs begin and end. Builtins only.

The launchers call `run_program`: that of a merged file (setup.py), or of this module if there is
none. `picoqmail-queue`, `-inject` and `-sendmail` start once a mail, so each microsecond counts.
"""

from __future__ import annotations

import gc
import posix
import sys
from _frozen_importlib import ModuleSpec, module_from_spec
from _frozen_importlib_external import EXTENSION_SUFFIXES, ExtensionFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any


def run_program(name: str, load: Callable[[str], Any] | None = None) -> None:
    """Run picoqmail.cli.NAME with the arguments of this process, and end the process.

    `load` is that of the launcher: it runs a merged file of this name, and returns its module.

    The interpreter is not torn down. All files are closed and flushed by then, and the kernel does
    the rest in a tenth of the time.
    """
    # Before the program's own name: Python's -c, and two words of the launcher.
    del sys.argv[:3]
    # Where merged files are there is nothing else; later imports find the package itself.
    sys.path[:] = [place.removesuffix("/picoqmail/merged") for place in sys.path]
    # The launcher disabled the collector: what was loaded stays, and searching it takes time.
    gc.freeze()
    gc.enable()
    sys.meta_path.append(sys.modules[__name__])
    module: Any = __import__(f"picoqmail.cli.{name}", fromlist=["main"])
    status: int = module.main(sys.argv[1:])
    if status < 0:
        # BECOME_SENDER, which is no exit code.
        status = _send(load)
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    posix._exit(status)  # noqa: SLF001 - the documented name of it is os._exit


def _send(load: Callable[[str], Any] | None) -> int:
    """Do what picoqmail-send does, in the forked child of a program that accepted mail.

    Return its exit code. The sender that was installed beside this program is started instead if
    its modules cannot be loaded, or are of another version: an upgrade may have come meanwhile.
    """
    # This module is the first of a merged file, and imports nothing of ours at its start.
    from picoqmail.submission.start_sender import LOCK_DESCRIPTOR, LOCK_OPTION, sender_command

    main = _load_sender(load) if load else None
    if main is None:
        command = [*sender_command(), LOCK_OPTION]
        posix.set_inheritable(LOCK_DESCRIPTOR, True)  # noqa: FBT003 - it takes no keywords
        posix.execve(command[0], command, posix.environ)
    from picoqmail.submission.process_title import show_as

    sys.argv[:] = ["picoqmail-send", LOCK_OPTION]
    show_as([word.encode() for word in sys.argv], posix.environ)
    return main([LOCK_OPTION])


def _load_sender(load: Callable[[str], Any]) -> Callable[[list[str]], int] | None:
    """Return `main` of picoqmail-send from its merged file, with the modules that are here already.

    None if that file is not there or damaged, or was not built together with ours.
    """
    gc.disable()
    try:
        load("picoqmail_sender")
        # The last line of the file registers it, so a file that was cut has no such module.
        main: Callable[[list[str]], int] = sys.modules["picoqmail.cli.send"].main
    except Exception:  # noqa: BLE001 - whatever is wrong with it, the installed program knows better
        return None
    finally:
        gc.freeze()
        gc.enable()
    return main


def find_spec(
    name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
) -> ModuleSpec | None:
    """Let site add its directories, once, then ask the other finders again.

    This module is the last finder: what does not lie beside ours, as a shared dependency, needs
    site. It is no class, because making a class takes 14 microseconds of each start.
    """
    if path is not None or name.startswith("_"):
        return None
    sys.meta_path.remove(sys.modules[__name__])
    beside = [directory for directory in sys.path if directory.endswith("-packages")]
    import site

    site.main()
    for directory in set(beside).difference(site.getsitepackages()):
        site.addsitedir(directory)
    for finder in sys.meta_path:
        if spec := finder.find_spec(name, path, target):
            return spec
    return None


def load_extension(name: str) -> None:
    """Load a shared object of the standard library from where it must lie; for merged files.

    An import would ask five finders and list a directory, which is a hundredth of a start. If the
    module does not lie there, nothing is done, and an import finds it.
    """
    if name in sys.modules or name in sys.builtin_module_names:
        return
    for directory in sys.path:
        if directory.endswith("/lib-dynload"):
            path = f"{directory}/{name}{EXTENSION_SUFFIXES[0]}"
            loader = ExtensionFileLoader(name, path)
            spec = ModuleSpec(name, loader, origin=path)
            spec.has_location = True
            try:
                module = module_from_spec(spec)
            except ImportError:
                return
            sys.modules[name] = module
            loader.exec_module(module)
            return
