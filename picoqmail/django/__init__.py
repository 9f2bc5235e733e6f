"""Django's mail goes into the spool: `EMAIL_BACKEND = "picoqmail.django.EmailBackend"`.

As an app (`INSTALLED_APPS = [..., "picoqmail.django"]`) it also has system checks, the commands
`picoqmail_status` and `picoqmail_retry`, and a page of the admin site.

Only the name of the backend may live here: Django imports this before its apps are ready.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from picoqmail.django.backend import EmailBackend

__all__ = ["EmailBackend"]


def __getattr__(name: str) -> object:
    """Fetch the backend when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'picoqmail.django' has no attribute {name!r}")
    from picoqmail.django import backend

    return backend.EmailBackend
