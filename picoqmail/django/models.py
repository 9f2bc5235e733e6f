"""A model without a table, and its permissions, so that the admin site can list mail."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class SpooledMessage(models.Model):
    """A message of the spool; it is not in the database."""

    id: models.CharField[str, str] = models.CharField(
        primary_key=True, max_length=255, editable=False
    )

    class Meta:
        """No table; permissions to read (view), to retry, hold and so on (change), to delete."""

        managed = False
        default_permissions = ("view", "change", "delete")
        verbose_name = "spooled message"
        verbose_name_plural = "spooled messages"
        app_label = "picoqmail"

    objects: ClassVar[models.Manager[SpooledMessage]]

    def __str__(self) -> str:
        """Return the name of the message."""
        return str(self.id)
