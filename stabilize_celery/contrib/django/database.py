"""Where the workflows are, from Django's ``DATABASES``; the migrations that make the tables there; test databases."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from django.core import mail
from django.db import connections, router
from django.db.backends.base.creation import BaseDatabaseCreation
from django.db.migrations.operations.base import Operation
from psycopg.pq import Conninfo
from sqlalchemy import URL

from stabilize_celery.persistence.database import disconnect
from stabilize_celery.persistence.schema import LOCK, VERSION_TABLE

#: Keywords of libpq that have a place of their own in a URL.
_PLACES = {"user": "username", "password": "password", "port": "port", "dbname": "database"}
_MARK = "stabilize_disconnects"


def settings_of_django(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that follow from ``DATABASES[django_alias]``; what is ``chosen`` already goes before them."""
    if chosen.get("database_url") is not None:
        return {}
    wrapper = connections[chosen.get("django_alias", "default")]
    url = url_of(wrapper)
    if url is None:
        return {}
    if hasattr(mail, "outbox"):
        # Django's test environment is set up, by its own runner or by pytest-django.
        release_test_databases()
    found: dict[str, Any] = {"database_url": url}
    if wrapper.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS"):
        # Django's way to say that a pooler hands connections from transaction to transaction.
        found["database_prepare"] = False
    return found


def url_of(wrapper: Any) -> str | None:
    """The SQLAlchemy URL of a Django database; ``None`` if the engine cannot use it."""
    if wrapper.vendor == "sqlite":
        path = file_of(wrapper)
        return None if path is None else f"sqlite:///{path}"
    if wrapper.vendor == "postgresql":
        return _postgresql_url(wrapper.get_connection_params(), wrapper.settings_dict)
    return None


def file_of(wrapper: Any) -> Path | None:
    """The file of a SQLite database; ``None`` if it is in memory."""
    name = str(wrapper.settings_dict["NAME"])
    if not name or name == ":memory:" or name.startswith("file:"):
        return None
    return Path(name).resolve()


def _postgresql_url(parameters: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    known = {option.keyword.decode() for option in Conninfo.get_defaults()} - {"client_encoding"}
    given = {name: value for name, value in parameters.items() if name in known and value not in (None, "")}
    role = (settings.get("OPTIONS") or {}).get("assume_role")
    if role:
        given["options"] = f"{given.get('options', '')} -c role={role}".strip()
    places: dict[str, Any] = {_PLACES[name]: given.pop(name) for name in _PLACES if name in given}
    if "port" in places:
        places["port"] = int(places["port"])
    host = str(given.get("host", ""))
    if host and not host.startswith("/") and "," not in host:
        places["host"] = str(given.pop("host"))
    query = {name: str(value) for name, value in given.items()}
    url = URL.create("postgresql+psycopg", query=query, **places)
    return url.render_as_string(hide_password=False)


def release_test_databases() -> None:
    """Let engines close their connections before Django drops a test database: it must be free of them then."""
    original: Any = BaseDatabaseCreation.destroy_test_db
    if getattr(original, _MARK, False):
        return

    @wraps(original)
    def destroy_test_db(creation: Any, *args: Any, **kwargs: Any) -> Any:
        disconnect()
        return original(creation, *args, **kwargs)

    setattr(destroy_test_db, _MARK, True)
    BaseDatabaseCreation.destroy_test_db = destroy_test_db


class ApplyRevision(Operation):
    """Bring the tables to a revision, as ``celery -A app stabilize migrate`` does; nothing is done where they are.

    It cannot be undone: that would delete every workflow.
    """

    reversible = False
    reduces_to_sql = True

    def __init__(self, revision: str) -> None:
        self.revision = revision

    def state_forwards(self, app_label: str, state: Any) -> None:
        """The models follow from the operations beside it."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Execute the statements of the revision on Django's connection."""
        from stabilize_celery.persistence.revisions import includes, statements_of

        connection = schema_editor.connection
        if not router.allow_migrate(connection.alias, app_label):
            return
        if connection.vendor == "postgresql":
            schema_editor.execute(LOCK)
        if not schema_editor.collect_sql and includes(_version(connection), self.revision):
            return
        for statement in statements_of(self.revision, connection.vendor):
            schema_editor.execute(statement)

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
