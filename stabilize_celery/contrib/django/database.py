"""Where the workflows are, from Django's ``DATABASES``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.db import connections
from psycopg.pq import Conninfo
from sqlalchemy import URL

from stabilize_celery.contrib.django.testing import is_test_run, release_test_databases

#: Keywords of libpq that have a place of their own in a URL.
_PLACES = {"user": "username", "password": "password", "port": "port", "dbname": "database"}


def settings_of_django(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that follow from ``DATABASES[django_alias]``; what is ``chosen`` already goes before them."""
    if chosen.get("database_url") is not None:
        return {}
    wrapper = connections[chosen.get("django_alias", "default")]
    url = url_of(wrapper)
    if url is None:
        return {}
    if is_test_run():
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
