"""picoqmail: send-only mail for one host.

    import picoqmail
    receipt = picoqmail.enqueue(message, sender="a@example.org", recipients=["b@example.net"])

Only names may live here. Each is fetched from its module when it is first used (PEP 562), so that
`import picoqmail` costs almost nothing, also in the programs that run once a mail.
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


# Held during late imports and across fork(). Otherwise a child forked while another thread imports
# would wait for that import for ever: the thread that would finish it is not in the child. The lock
# is made of builtins, because they cost nothing to import.
_import_lock = _thread.RLock()
posix.register_at_fork(
    before=_import_lock.acquire,
    after_in_parent=_import_lock.release,
    after_in_child=_import_lock.release,
)

if not TYPE_CHECKING:
    # Type checkers use the names above, so that they report a misspelt one.

    def __getattr__(name: str) -> object:
        """Fetch a public name from its module, once."""
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
