"""The migrations make the very tables the code describes, and are safe to run at any time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

from stabilize_celery.errors import SchemaVersionError, StoreError
from stabilize_celery.persistence import migrate, schema
from stabilize_celery.persistence.database import Database
from stabilize_celery.persistence.tables import PREFIX, metadata
from tests.migration.snapshot import snapshot

DIFFERENT = (
    "persistence/tables.py and persistence/migrations/versions/ describe different tables: "
    "what was changed in one of them has to be changed in the other"
)


@pytest.fixture(params=["postgresql", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without any table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/empty.db"
    return str(request.getfixturevalue("empty_postgres_url"))


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.dispose()


@pytest.fixture
def described(database: Database, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Another database of the same kind, with the tables as the code describes them."""
    if database.is_postgresql:
        opened = Database(request.getfixturevalue("postgres_url"))
    else:
        opened = Database(f"sqlite:///{tmp_path}/described.db")
        schema.create_all(opened)
    yield opened
    opened.dispose()


def our_tables(database: Database) -> set[str]:
    with database.begin() as connection:
        return {name for name in inspect(connection).get_table_names() if name.startswith(PREFIX)}


def execute(database: Database, statement: str) -> None:
    with database.begin() as connection:
        connection.execute(text(statement))


# ---------------------------------------------------------------------------------------------- the same tables


def test_the_migrations_make_the_tables_the_code_describes(database: Database, described: Database) -> None:
    done = migrate.upgrade(database)
    assert (done.before, done.after) == (None, schema.CURRENT)
    assert snapshot(database) == snapshot(described), DIFFERENT
    assert our_tables(database) == {*metadata.tables, schema.VERSION_TABLE}


def test_alembic_finds_nothing_to_change_either(database: Database) -> None:
    migrate.upgrade(database)
    with database.begin() as connection:
        options = {"compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        found = compare_metadata(context, metadata)
    assert [difference for difference in found if not _is_version_table(difference)] == [], DIFFERENT


def _is_version_table(difference: object) -> bool:
    return isinstance(difference, tuple) and getattr(difference[1], "name", "") == schema.VERSION_TABLE


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE stabilize_messages ADD COLUMN more INTEGER",
        "CREATE INDEX more ON stabilize_stages (type)",
        "DROP INDEX ix_stabilize_messages_send_at",
    ],
)
def test_a_difference_does_not_go_unnoticed(database: Database, described: Database, change: str) -> None:
    migrate.upgrade(database)
    execute(database, change)
    assert snapshot(database) != snapshot(described)


def test_tables_that_change_often_leave_room_and_are_vacuumed_early(described: Database) -> None:
    if not described.is_postgresql:
        assert "storage" not in snapshot(described)
        return
    assert snapshot(described)["storage"] == [
        ("stabilize_messages", ["fillfactor=80", "autovacuum_vacuum_scale_factor=0.01"]),
        ("stabilize_stages", ["fillfactor=80"]),
        ("stabilize_workflows", ["fillfactor=80"]),
    ]


def test_the_statements_can_be_run_by_somebody_else(database: Database, described: Database) -> None:
    asked = migrate.upgrade(database, sql=True)
    assert our_tables(database) == set()
    assert asked.sql is not None
    for statement in _statements(asked.sql):
        execute(database, statement)
    assert snapshot(database) == snapshot(described)
    assert migrate.upgrade(database, sql=True).sql == ""


def _statements(script: str) -> list[str]:
    lines = [line for line in script.splitlines() if not line.startswith("--")]
    statements = [statement.strip() for statement in "\n".join(lines).split(";")]
    return [statement for statement in statements if statement not in ("", "BEGIN", "COMMIT")]


def test_the_last_step_is_the_version_the_release_needs() -> None:
    scripts = ScriptDirectory(str(migrate.FOLDER))
    assert scripts.get_heads() == [schema.CURRENT]


# ---------------------------------------------------------------------------------------------- at any time


def test_a_second_upgrade_has_nothing_to_do(database: Database) -> None:
    assert [str(step) for step in migrate.pending(database).steps] == ["0001 The first tables"]
    assert [str(step) for step in migrate.upgrade(database).steps] == ["0001 The first tables"]
    assert migrate.pending(database).steps == ()
    again = migrate.upgrade(database)
    assert (again.before, again.steps) == (schema.CURRENT, ())
    schema.check(database)


def test_tables_made_for_a_quick_start_need_no_migration(described: Database) -> None:
    assert migrate.upgrade(described).steps == ()


def test_processes_that_migrate_at_once_do_it_once(url: str) -> None:
    command = [sys.executable, "-m", "stabilize_celery.cli", "--database-url", url, "migrate"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    ended = [(*process.communicate(timeout=60), process.returncode) for process in processes]
    assert [(code, error) for _, error, code in ended] == [(0, "")] * 3
    assert sum("from no tables to version" in output for output, _, _ in ended) == 1
    assert sum("nothing to do" in output for output, _, _ in ended) == 2


def test_a_step_that_fails_leaves_nothing_behind(database: Database) -> None:
    execute(database, "CREATE TABLE stabilize_dead_letters (theirs INTEGER)")
    with pytest.raises(DBAPIError, match="already exists"):
        migrate.upgrade(database)
    assert our_tables(database) == {"stabilize_dead_letters"}
    execute(database, "DROP TABLE stabilize_dead_letters")
    assert migrate.upgrade(database).steps


def test_what_belongs_to_the_application_is_left_alone(database: Database) -> None:
    execute(database, "CREATE TABLE orders (id INTEGER)")
    execute(database, "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    execute(database, "INSERT INTO alembic_version VALUES ('theirs')")
    migrate.upgrade(database)
    with database.begin() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [
            "theirs"
        ]
        assert inspect(connection).has_table("orders")


# ---------------------------------------------------------------------------------------------- wrong versions


def test_missing_tables_are_refused_with_what_to_run(database: Database) -> None:
    with pytest.raises(
        SchemaVersionError, match=r"are missing in .*run `celery -A <your app> stabilize migrate`"
    ):
        schema.check(database)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("0000", "are of version 0000, this release needs .*stabilize migrate"),
        ("9999", "upgrade stabilize-celery"),
    ],
)
def test_tables_of_another_version_are_refused(described: Database, version: str, message: str) -> None:
    execute(
        described,
        f"UPDATE {schema.VERSION_TABLE} SET version_num = '{version}', compatible_since = '{version}'",
    )
    for refused in (schema.check, schema.create_all):
        with pytest.raises(SchemaVersionError, match=message):
            refused(described)


def test_tables_of_a_newer_release_are_not_touched(described: Database) -> None:
    execute(described, f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999', compatible_since = '0002'")
    before = snapshot(described)
    with pytest.raises(SchemaVersionError, match="version 9999, which this release does not know"):
        migrate.upgrade(described)
    assert snapshot(described) == before


def test_a_database_that_cannot_be_reached(tmp_path: Path) -> None:
    for url in ("postgresql://nobody@127.0.0.1:1/none", f"sqlite:///{tmp_path}/no/such/folder.db"):
        with pytest.raises(StoreError, match="cannot be reached"):
            migrate.upgrade(Database(url))
