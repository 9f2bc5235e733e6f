"""Loading a shared object of the standard library from where it lies. For merged files (setup.py).

Import would ask five finders for it and list a directory, which is a hundredth of a start.
"""

from __future__ import annotations

import sys
from _frozen_importlib import module_from_spec
from _frozen_importlib_external import (
    EXTENSION_SUFFIXES,
    ExtensionFileLoader,
    spec_from_file_location,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def load_extension(name: str) -> None:
    """Do what `import NAME` does, if the module lies where it must; else leave it to that."""
    if name in sys.modules or name in sys.builtin_module_names:
        return
    for directory in sys.path:
        if directory.endswith("/lib-dynload"):
            path = f"{directory}/{name}{EXTENSION_SUFFIXES[0]}"
            loader = ExtensionFileLoader(name, path)
            spec: Any = spec_from_file_location(name, path, loader=loader)
            try:
                module = module_from_spec(spec)
            except ImportError:
                return
            sys.modules[name] = module
            loader.exec_module(module)
            return
