"""``manage.py migrate`` makes the tables that ``celery -A app stabilize migrate`` makes, and nothing is made twice."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from django.apps import apps
from django.core.management import call_command
from django.db import connections
from django.db.migrations.exceptions import IrreversibleError
from django.db.migrations.loader import MigrationLoader

from stabilize_celery.contrib.django.database import ApplyRevision
from stabilize_celery.errors import SchemaVersionError
from stabilize_celery.persistence import migrate, schema, tables
from stabilize_celery.persistence.database import Database
from tests.contrib.django.conftest import point
from tests.migration import snapshot as snapshots


@pytest.fixture(params=["postgresql", "sqlite"])
def alias(request: pytest.FixtureRequest, ready: None, tmp_path: Path) -> Iterator[str]:
    """A Django database without any table."""
    name = "default" if request.param == "postgresql" else "lite"
    if request.param == "sqlite":
        connections[name].settings_dict["NAME"] = tmp_path / "empty.db"
    else:
        point(name, request.getfixturevalue("empty_postgres_url"))
    yield name
    connections[name].close()


@pytest.fixture
def database(alias: str) -> Iterator[Database]:
    """The same database, as the engine reaches it."""
    from stabilize_celery.contrib.django.database import url_of

    opened = Database(str(url_of(connections[alias])))
    yield opened
    opened.dispose()


@pytest.fixture
def described(database: Database, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Another one, migrated by the engine's own command."""
    url = f"sqlite:///{tmp_path}/described.db"
    if database.is_postgresql:
        url = request.getfixturevalue("postgres_url")
    opened = Database(url)
    migrate.upgrade(opened)
    yield opened
    opened.dispose()


def snapshot(database: Database) -> dict[str, Any]:
    """Our tables without those of Django."""
    theirs = ("django_migrations", "sqlite_sequence")
    return {
        kind: [entry for entry in found if not any(name in str(entry) for name in theirs)]
        for kind, found in snapshots.snapshot(database).items()
    }


def migrate_with_django(alias: str, *target: str) -> str:
    told = StringIO()
    call_command("migrate", "stabilize", *target, database=alias, stdout=told)
    return told.getvalue()


def test_it_makes_the_same_tables(alias: str, database: Database, described: Database) -> None:
    assert "0001" in migrate_with_django(alias)
    assert snapshot(database) == snapshot(described)
    schema.check(database)


def test_tables_that_are_there_are_left_alone(alias: str, database: Database, described: Database) -> None:
    migrate.upgrade(database)
    migrate_with_django(alias)
    assert snapshot(database) == snapshot(described)
    assert migrate.pending(database).steps == ()


def test_tables_of_a_newer_release_are_left_alone(alias: str, database: Database) -> None:
    migrate.upgrade(database)
    with database.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999', compatible_since = '9999'"
        )
    with pytest.raises(SchemaVersionError, match=r"9999.*upgrade stabilize-celery"):
        migrate_with_django(alias)


def test_it_cannot_be_undone(alias: str, database: Database) -> None:
    migrate_with_django(alias)
    with pytest.raises(IrreversibleError):
        migrate_with_django(alias, "zero")
    schema.check(database)


def test_the_statements_can_be_looked_at(alias: str) -> None:
    told = StringIO()
    call_command("sqlmigrate", "stabilize", "0001", database=alias, stdout=told)
    assert "CREATE TABLE stabilize_workflows" in told.getvalue()
    assert f"INSERT INTO {schema.VERSION_TABLE}" in told.getvalue()


def test_databases_that_a_router_leaves_out_are_left_alone(
    alias: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Router:
        def allow_migrate(self, db: str, app_label: str, **_: Any) -> bool:
            return app_label != "stabilize"

    monkeypatch.setattr("django.db.router.routers", [Router()])
    migrate_with_django(alias)
    with database.begin() as connection:
        assert schema.read(connection) is None


def test_every_revision_has_a_migration_and_the_models_are_known(django_url: str) -> None:
    """A new revision needs a file in contrib/django/migrations that applies it; 0001 shows how."""
    loader = MigrationLoader(None)
    found = [
        operation.revision
        for key in sorted(key for key in loader.disk_migrations if key[0] == "stabilize")
        for operation in loader.disk_migrations[key].operations
        if isinstance(operation, ApplyRevision)
    ]
    scripts = ScriptDirectory.from_config(migrate._config())
    assert found == [script.revision for script in reversed(list(scripts.walk_revisions()))]
    call_command("makemigrations", "stabilize", check=True, dry_run=True, verbosity=0)


def test_the_models_have_columns_that_exist(ready: None) -> None:
    for model in apps.get_app_config("stabilize").get_models():
        table = tables.metadata.tables[model._meta.db_table]
        for field in model._meta.concrete_fields:
            column = table.c[field.column]
            assert column.nullable == field.null or field.is_relation, f"{table}.{column}"
            assert column.primary_key == field.primary_key
        assert {field.column for field in model._meta.concrete_fields} == set(table.c.keys())
