"""What Alembic runs for each command: hands it the connection that ``persistence/migrate.py`` opened.

Our tables live in the application's own database: everything without our prefix is none of our business, and the
version is kept in a table of our own, beside that of the application's own migrations.
"""

from __future__ import annotations

from typing import Any

from alembic import context

from stabilize_celery.persistence.phases import record
from stabilize_celery.persistence.schema import VERSION_TABLE
from stabilize_celery.persistence.tables import PREFIX, metadata


def _is_ours(name: str | None, kind: str, _parents: Any) -> bool:
    return kind != "table" or (name or "").startswith(PREFIX)


def _run() -> None:
    attributes = context.config.attributes
    options: dict[str, Any] = {
        "target_metadata": metadata,
        "version_table": VERSION_TABLE,
        "include_name": _is_ours,
        "compare_server_default": True,
        "on_version_apply": record,
    }
    if context.is_offline_mode():
        context.configure(dialect_name=attributes["dialect_name"], literal_binds=True, **options)
    else:
        context.configure(connection=attributes["connection"], **options)
    with context.begin_transaction():
        context.run_migrations()


_run()
