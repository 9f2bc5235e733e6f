"""The tables of messages, and the model without a table that lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from django.db import migrations, models

from picoqmail.django.schema import ApplyNumbered

if TYPE_CHECKING:
    from django.db.migrations.operations.base import Operation


class Migration(migrations.Migration):
    """Where `PICOQMAIL_USING` names no database, this makes no table."""

    initial = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar[list[Operation]] = [
        migrations.CreateModel(
            name="SpooledMessage",
            fields=[
                (
                    "id",
                    models.CharField(
                        primary_key=True, max_length=255, editable=False, serialize=False
                    ),
                )
            ],
            options={
                "verbose_name": "spooled message",
                "verbose_name_plural": "spooled messages",
                "managed": False,
                "default_permissions": ("view", "change", "delete"),
            },
        ),
        ApplyNumbered(1),
    ]
