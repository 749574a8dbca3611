"""What migrations of Django do to make and change the tables: the same as ``celery -A app stabilize migrate``."""

from __future__ import annotations

from typing import Any

from django.db import router
from django.db.migrations.operations.base import Operation

from stabilize_celery.persistence.revisions import includes, statements_of
from stabilize_celery.persistence.schema import LOCK, VERSION_TABLE


class ApplyRevision(Operation):
    """Bring the tables to a revision; nothing is done where they are that far already.

    It cannot be undone: that would delete every workflow.
    """

    reversible = False
    reduces_to_sql = True

    def __init__(self, revision: str) -> None:
        self.revision = revision

    def state_forwards(self, app_label: str, state: Any) -> None:
        """The models are told by the operations beside it."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Execute the statements of the revision on Django's connection."""
        connection = schema_editor.connection
        if not router.allow_migrate(connection.alias, app_label):
            return
        if connection.vendor == "postgresql":
            schema_editor.execute(LOCK)
        if not schema_editor.collect_sql and includes(_version(connection), self.revision):
            return
        for statement in statements_of(self.revision, connection.vendor):
            schema_editor.execute(statement)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Never called, because it is not reversible."""
        raise NotImplementedError

    def describe(self) -> str:
        """What ``manage.py migrate`` says of it."""
        return f"Bring the tables of stabilize_celery to revision {self.revision}"


def _version(connection: Any) -> str | None:
    with connection.cursor() as cursor:
        if VERSION_TABLE not in connection.introspection.table_names(cursor):
            return None
        cursor.execute(f"SELECT version_num FROM {VERSION_TABLE}")
        row = cursor.fetchone()
    return None if row is None else str(row[0])
