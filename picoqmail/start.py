"""How the installed programs begin and end. Builtins only.

The launchers call `run_program`, of a merged file (setup.py) or, without one, of this module.
"""

from __future__ import annotations

import gc
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


def run_program(name: str) -> None:
    """Run picoqmail.cli.NAME with the arguments of this process, and end the process.

    The interpreter is not torn down. All files are closed and flushed by then, and the kernel does
    the rest in a tenth of the time.
    """
    # What the launcher gave us comes first: Python's -c, the fallback, and where it lies.
    del sys.argv[:3]
    # Merged files are not beside the package but in it, apart, and nothing else is.
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
