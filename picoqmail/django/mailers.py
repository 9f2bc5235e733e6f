"""The mailers of a Django project whose backend is ours, and their spools."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core import mail
from django.utils.module_loading import import_string

from picoqmail.django.backend import EmailBackend
from picoqmail.django.options import USING, open_spool, option
from picoqmail.errors import ConfigurationError

if TYPE_CHECKING:
    from picoqmail.library.api import Spool


def mailers() -> dict[str, dict[str, Any]]:
    """Return the OPTIONS of each entry of MAILERS whose backend is ours, by alias.

    Without MAILERS, or if Django does not know MAILERS: an entry `default` without options, if
    EMAIL_BACKEND is ours.
    """
    configured = getattr(settings, "MAILERS", None)
    if configured is None or not hasattr(mail, "mailers"):
        return {"default": {}} if _is_ours(_old_backend()) else {}
    return {
        alias: entry.get("OPTIONS", {})
        for alias, entry in configured.items()
        if _is_ours(entry.get("BACKEND", ""))
    }


def databases() -> set[str]:
    """Return the aliases of the databases that mail is put into."""
    ours = {entry.get("using") for entry in mailers().values()}
    return {alias for alias in (*ours, option(USING)) if alias}


def _old_backend() -> str:
    with warnings.catch_warnings():
        # Django 6.1 has already warned of the setting when it was set.
        warnings.simplefilter("ignore")
        return str(getattr(settings, "EMAIL_BACKEND", ""))


def _is_ours(path: str) -> bool:
    try:
        backend = import_string(path)
    except ImportError:
        # Django reports this itself when it sends.
        return False
    return isinstance(backend, type) and issubclass(backend, EmailBackend)


def spool_of_mailer(alias: str = "") -> Spool:
    """Return the spool of a mailer of ours; without an alias, that of `default` or the first one.

    If no mailer is ours, return the spool that the settings name. Raises ConfigurationError for an
    unknown alias.
    """
    known = mailers()
    if alias and alias not in known:
        raise ConfigurationError(
            "MAILERS", f"{alias!r} is not a mailer of picoqmail", f"there are: {', '.join(known)}"
        )
    alias = alias or ("default" if "default" in known else min(known, default=""))
    return open_spool(known.get(alias, {}).get("home"))
