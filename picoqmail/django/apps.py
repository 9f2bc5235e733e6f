"""The app, which provides the checks, the commands and the page of the admin site."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks


class PicoqmailConfig(AppConfig):
    """`INSTALLED_APPS = [..., "picoqmail.django"]`."""

    name = "picoqmail.django"
    label = "picoqmail"
    verbose_name = "Picoqmail"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the checks."""
        from picoqmail.django.checks import check_home

        checks.register(check_home)
