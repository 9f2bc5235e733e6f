"""What the admin site needs to list mail: a model without a table, and its permissions."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class SpooledMessage(models.Model):
    """A message of the spool; the database knows nothing of it."""

    id: models.CharField[str, str] = models.CharField(
        primary_key=True, max_length=255, editable=False
    )

    class Meta:
        """No table; who may look (view), retry, hold and the like (change), and delete."""

        managed = False
        default_permissions = ("view", "change", "delete")
        verbose_name = "spooled message"
        verbose_name_plural = "spooled messages"
        app_label = "picoqmail"

    objects: ClassVar[models.Manager[SpooledMessage]]

    def __str__(self) -> str:
        """The name of the message."""
        return str(self.id)
