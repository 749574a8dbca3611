"""Bringing a database's tables to the version of this release."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from stabilize_celery.errors import SchemaVersionError
from stabilize_celery.persistence import schema
from stabilize_celery.persistence.database import Database

FOLDER = Path(__file__).parent / "migrations"


@dataclass(frozen=True)
class Migration:
    """What was done, or with ``sql`` what is to be done."""

    #: Version of the tables before; ``None`` if there were none.
    before: str | None
    after: str
    #: Number and title of each step, in order.
    steps: tuple[str, ...]
    #: The statements, when they were asked for.
    sql: str | None = None


def upgrade(database: Database, sql: bool = False) -> Migration:
    """Bring the tables to the version this release needs: all steps in one transaction, or none.

    Two that run at once do it one after the other, so the second finds nothing to do.

    Args:
        database: which one.
        sql: change nothing, only return the statements for somebody else to run.

    Raises:
        SchemaVersionError: the tables are of a newer release.
        StoreError: the database cannot be reached.
    """
    with database.begin() as connection:
        schema.lock(connection)
        before = schema.read_version(connection)
        steps = _steps(database, before)
        if sql:
            return Migration(before, schema.CURRENT, steps, _script(database, before) if steps else "")
        if steps:
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, schema.CURRENT)
    return Migration(before, schema.CURRENT, steps)


def pending(database: Database) -> Migration:
    """What :func:`upgrade` would do; nothing is changed.

    Raises:
        SchemaVersionError: the tables are of a newer release.
        StoreError: the database cannot be reached.
    """
    with database.begin() as connection:
        before = schema.read_version(connection)
    return Migration(before, schema.CURRENT, _steps(database, before))


def _steps(database: Database, before: str | None) -> tuple[str, ...]:
    scripts = ScriptDirectory.from_config(_config())
    known = {script.revision: script for script in scripts.walk_revisions()}
    if before is not None and before not in known:
        raise SchemaVersionError(
            f"the tables in {database.name} are of version {before}, which this release does not know (it needs "
            f"{schema.CURRENT}): upgrade stabilize-celery"
        )
    way = list(scripts.iterate_revisions(schema.CURRENT, before or "base"))
    return tuple(f"{script.revision} {(script.doc or '').rstrip('.')}" for script in reversed(way))


def _script(database: Database, before: str | None) -> str:
    buffer = io.StringIO()
    config = _config(buffer)
    config.attributes["dialect_name"] = database.url.get_backend_name()
    command.upgrade(config, f"{before or 'base'}:{schema.CURRENT}", sql=True)
    return buffer.getvalue()


def _config(buffer: io.StringIO | None = None) -> Config:
    config = Config() if buffer is None else Config(output_buffer=buffer)
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config
