"""picoqmail: send-only mail for one host.

    import picoqmail
    receipt = picoqmail.enqueue(message, sender="a@example.org", recipients=["b@example.net"])

Only names may live here. Each is fetched from its module when it is first used (PEP 562), so that
`import picoqmail` costs almost nothing, also in the programs that run once a mail.
"""

from __future__ import annotations

import _thread
import posix

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.admin.selection import Entry
    from picoqmail.delivery.deliver import Summary
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
    from picoqmail.library.api import (
        Mail,
        MessageLike,
        Moment,
        Outcome,
        Outcomes,
        Pending,
        Receipt,
        Spool,
        enqueue,
        enqueue_many,
        prepare,
    )


__all__ = [
    "AddressError",
    "AddressTooLongError",
    "ConfigurationError",
    "DamagedMessageError",
    "Entry",
    "EnvelopeError",
    "Home",
    "InputError",
    "KeyReusedError",
    "Mail",
    "MessageError",
    "MessageLike",
    "MessageTooLargeError",
    "MessageTypeError",
    "Moment",
    "NoSuchMessageError",
    "Outcome",
    "Outcomes",
    "Pending",
    "PicoqmailError",
    "Receipt",
    "Spool",
    "SpoolError",
    "Summary",
    "__version__",
    "enqueue",
    "enqueue_many",
    "prepare",
]

# The modules of the names; the errors are all in one.
_MODULES = {
    "Entry": "picoqmail.admin.selection",
    "Home": "picoqmail.home.paths",
    "Summary": "picoqmail.delivery.deliver",
    **dict.fromkeys(
        (
            "Mail",
            "MessageLike",
            "Moment",
            "Outcome",
            "Outcomes",
            "Pending",
            "Receipt",
            "Spool",
            "enqueue",
            "enqueue_many",
            "prepare",
        ),
        "picoqmail.library.api",
    ),
}


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
            import sys

            module = _MODULES.get(name, "picoqmail.errors")
            __import__(module)
            value = getattr(sys.modules[module], name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """The public names, and not the modules that they come from."""
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})
