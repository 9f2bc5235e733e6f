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
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any


def run_program(name: str) -> None:
    """Run picoqmail.cli.NAME with the arguments of this process, and end the process.

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
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    posix._exit(status)  # noqa: SLF001 - the documented name of it is os._exit


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
