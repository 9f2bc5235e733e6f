"""picoqmail: send-only mail for one host.

    import picoqmail
    receipt = picoqmail.enqueue(message, sender="a@example.org", recipients=["b@example.net"])

Nothing may live here but names: each is fetched from its module when it is first used (PEP 562),
so that `import picoqmail` costs nothing, here and in the programs that run once a mail.
"""

from __future__ import annotations

import _thread
import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.errors import (
        AddressError,
        AddressTooLongError,
        ConfigurationError,
        DamagedMessageError,
        EnvelopeError,
        InputError,
        KeyReusedError,
        MessageError,
        MessageTooLargeError,
        MessageTypeError,
        NoSuchMessageError,
        PicoqmailError,
        SpoolError,
    )
    from picoqmail.home.paths import Home
    from picoqmail.library.api import Mail, Pending, Receipt, Spool, enqueue, enqueue_many, prepare

    __version__: str

__all__ = [
    "AddressError",
    "AddressTooLongError",
    "ConfigurationError",
    "DamagedMessageError",
    "EnvelopeError",
    "Home",
    "InputError",
    "KeyReusedError",
    "Mail",
    "MessageError",
    "MessageTooLargeError",
    "MessageTypeError",
    "NoSuchMessageError",
    "Pending",
    "PicoqmailError",
    "Receipt",
    "Spool",
    "SpoolError",
    "__version__",
    "enqueue",
    "enqueue_many",
    "prepare",
]

_API = ("Mail", "Pending", "Receipt", "Spool", "enqueue", "enqueue_many", "prepare")


# Held while a module is imported in the middle of a call, and by who forks: a child that another
# thread forked in the middle of an import would wait for its end for ever, because the thread that
# would finish it is not in the child. Of builtins, which cost nothing.
_import_lock = _thread.RLock()
posix.register_at_fork(
    before=_import_lock.acquire,
    after_in_parent=_import_lock.release,
    after_in_child=_import_lock.release,
)

if not TYPE_CHECKING:
    # Type checkers have the names above, and are to say so if one is misspelt.

    def __getattr__(name: str) -> object:
        """Fetch a public name from the module that has it, once."""
        if name not in __all__:
            raise AttributeError(f"module 'picoqmail' has no attribute {name!r}")
        with _import_lock:
            if name in _API:
                from picoqmail.library import api

                value = getattr(api, name)
            elif name == "Home":
                from picoqmail.home import paths

                value = paths.Home
            elif name == "__version__":
                from picoqmail import _version

                value = _version.VERSION
            else:
                from picoqmail import errors

                value = getattr(errors, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
