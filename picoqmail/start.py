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
    # The launcher disabled the collector: what was loaded stays, and searching it takes time.
    gc.freeze()
    gc.enable()
    sys.meta_path.append(_Elsewhere)
    module: Any = __import__(f"picoqmail.cli.{name}", fromlist=["main"])
    status: int = module.main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    posix._exit(status)  # noqa: SLF001 - the documented name of it is os._exit


class _Elsewhere:
    """The last finder: a module that is not beside ours, as a shared dependency, needs site."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Let site add its directories, once, then ask the other finders again."""
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
