"""The version of the tables: making them, checking it, and moving to a newer one."""

from __future__ import annotations

from sqlalchemy import Connection, inspect, text

from stabilize_celery.errors import SchemaVersionError
from stabilize_celery.persistence.database import Database, missing_tables
from stabilize_celery.persistence.tables import PREFIX, STORAGE, metadata

#: The Alembic revision this release needs.
CURRENT = "0001"
VERSION_TABLE = PREFIX + "schema_version"
#: What :func:`lock` executes on PostgreSQL.
LOCK = "SELECT pg_advisory_xact_lock(7305810225)"


def create_all(database: Database) -> None:
    """Make the tables of this release in an empty database; one that has them is only checked.

    Raises:
        SchemaVersionError: the tables are of another version.
    """
    with database.begin() as connection:
        lock(connection)
        version = read_version(connection)
        if version is None:
            metadata.create_all(connection)
            _set_storage(connection)
            connection.execute(
                text(
                    f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL, "
                    f"CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY (version_num))"
                )
            )
            connection.execute(text(f"INSERT INTO {VERSION_TABLE} VALUES (:version)"), {"version": CURRENT})
        else:
            _compare(database, version)


def lock(connection: Connection) -> None:
    """Until the transaction ends nobody else makes or changes the tables: two processes may start at once."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(LOCK))


def _set_storage(connection: Connection) -> None:
    if connection.dialect.name != "postgresql":
        return
    for table, parameters in STORAGE.items():
        listed = ", ".join(f"{name} = {value}" for name, value in parameters.items())
        connection.execute(text(f"ALTER TABLE {table} SET ({listed})"))


def create_tables(url: str) -> None:
    """Make the tables in the database at ``url``."""
    database = Database(url)
    try:
        create_all(database)
    finally:
        database.dispose()


def check(database: Database) -> None:
    """Refuse tables that are missing or of another version.

    Raises:
        SchemaVersionError: saying what to run.
    """
    with database.begin() as connection:
        version = read_version(connection)
    if version is None:
        raise missing_tables(database.name)
    _compare(database, version)


def read_version(connection: Connection) -> str | None:
    """The version of the tables; ``None`` if there are none."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    result: str | None = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    return result


def _compare(database: Database, version: str) -> None:
    if version < CURRENT:
        raise SchemaVersionError(
            f"the tables in {database.name} are of version {version}, this release needs {CURRENT}: run "
            "`celery -A <your app> stabilize migrate` before starting workers"
        )
    if version > CURRENT:
        raise SchemaVersionError(
            f"the tables in {database.name} are of version {version}, this release knows {CURRENT}: "
            "upgrade stabilize-celery"
        )
