"""The numbered SQL files of picoqmail as operations of Django's migrations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.migrations.operations.base import Operation

from picoqmail.django.mailers import databases
from picoqmail.django.options import open_spool
from picoqmail.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.db.backends.base.schema import BaseDatabaseSchemaEditor


class ApplyNumbered(Operation):
    """Apply the SQL file of a number in a database that mail is put into, and in no other one.

    What `picoqmail migrate` has applied already is not applied again, and the other way round. To
    go back removes nothing, because there may be mail.
    """

    reversible = True

    def __init__(self, number: int) -> None:
        self.number = number

    def state_forwards(self, app_label: str, state: object) -> None:
        """Change no model: the tables have none."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: object,
        to_state: object,
    ) -> None:
        """Apply it, in the transaction of Django's migration. Raises ConfigurationError."""
        del app_label, from_state, to_state
        connection = schema_editor.connection
        if connection.alias not in databases():
            return
        if connection.vendor != "postgresql":
            raise ConfigurationError(
                f"DATABASES[{connection.alias!r}]",
                f"is {connection.vendor}, and mail within a transaction needs PostgreSQL",
                "name another database in PICOQMAIL_USING",
            )
        from picoqmail.library.transaction import schema_of
        from picoqmail.postgresql import migration

        schema = schema_of(open_spool().home)
        if schema_editor.collect_sql:  # manage.py sqlmigrate
            schema_editor.execute(migration.statements(self.number, schema), None)
            return
        with connection.cursor() as cursor:

            def run(text: str, values: Any = None) -> Sequence[Sequence[Any]]:  # noqa: ANN401 - as the driver
                cursor.execute(text, values)
                return cursor.fetchall() if cursor.description else ()

            migration.apply(run, self.number, schema)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: object,
        to_state: object,
    ) -> None:
        """Leave the tables as they are."""

    def describe(self) -> str:
        """Say what it does, for `migrate --plan`."""
        return f"Apply picoqmail's SQL file number {self.number}, where PICOQMAIL_USING says so"
