"""The version of the tables: making them, checking it, and moving to a newer one."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, inspect, text

from stabilize_celery.errors import SchemaVersionError
from stabilize_celery.persistence.database import Database, missing_tables
from stabilize_celery.persistence.tables import PREFIX, STORAGE, metadata

#: The newest Alembic revision this release knows; new tables are of it.
CURRENT = "0001"
#: The oldest one its workers can work on: the last of phase *expand*.
NEEDED = "0001"
#: What tables of the newest revision say of older releases: the oldest revision whose workers may run on them.
COMPATIBLE_SINCE = "0001"
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
        version = read(connection)
        if version is None:
            metadata.create_all(connection)
            _set_storage(connection)
            _create_version_table(connection)
        else:
            _compare(database, version)


def _create_version_table(connection: Connection) -> None:
    connection.execute(
        text(
            f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL, "
            "compatible_since VARCHAR(32) DEFAULT '0001' NOT NULL, "
            f"CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY (version_num))"
        )
    )
    connection.execute(
        text(f"INSERT INTO {VERSION_TABLE} VALUES (:version, :since)"),
        {"version": CURRENT, "since": COMPATIBLE_SINCE},
    )


def lock(connection: Connection) -> None:
    """Until the transaction ends no other process makes or changes the tables: two processes may start at once."""
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
    """Refuse tables on which workers of this release must not run.

    Raises:
        SchemaVersionError: saying what to run.
    """
    with database.begin() as connection:
        version = read(connection)
    if version is None:
        raise missing_tables(database.name)
    _compare(database, version)


@dataclass(frozen=True)
class Version:
    """What a database says of its tables."""

    #: The last revision that was applied.
    revision: str
    #: The oldest revision whose workers may run; written by the migration, which may be newer than the reader.
    compatible_since: str

    @property
    def is_newer_but_usable(self) -> bool:
        """Whether revisions unknown to this release were applied, none of which is in the way of its workers."""
        return self.compatible_since <= CURRENT < self.revision


def read(connection: Connection) -> Version | None:
    """The version of the tables; ``None`` if there are none."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    row = connection.execute(text(f"SELECT version_num, compatible_since FROM {VERSION_TABLE}")).one_or_none()
    return None if row is None else Version(*row)


def _compare(database: Database, version: Version) -> None:
    if version.revision < NEEDED:
        raise SchemaVersionError(
            f"the tables in {database.name} are of version {version.revision}, this release needs {NEEDED}: run "
            "`celery -A <your app> stabilize migrate --before-deploy` before starting its workers"
        )
    if version.revision > CURRENT and not version.is_newer_but_usable:
        raise SchemaVersionError(
            f"the tables in {database.name} are of version {version.revision}, which is for releases that know "
            f"version {version.compatible_since} or later; this one knows {CURRENT}: upgrade stabilize-celery"
        )
