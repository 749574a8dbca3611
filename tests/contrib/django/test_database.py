"""Where the workflows are, as Django's settings say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection, connections, transaction
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery.contrib.django.database import url_of
from stabilize_celery.settings import Settings
from tests.contrib.django.conftest import point


def load(**values: Any) -> Settings:
    return Settings.load({f"stabilize_{name}": value for name, value in values.items()}, {})


def test_the_default_database_is_taken_if_nothing_else_is_said(django_url: str) -> None:
    assert load().database_url == django_url
    assert load().database_prepare


def test_an_alias_can_be_named(django_url: str, postgres_url: str) -> None:
    point("other", postgres_url)
    assert load(django_alias="other").database_url == postgres_url


def test_what_is_said_goes_before_what_follows(django_url: str) -> None:
    assert load(database_url="sqlite:///own.db").database_url == "sqlite:///own.db"
    environment = {"STABILIZE_DATABASE_URL": "sqlite:///environment.db"}
    assert Settings.load({}, environment).database_url == "sqlite:///environment.db"


def test_a_pooler_is_not_asked_to_prepare_statements(
    django_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)
    assert not load().database_prepare
    assert load(database_prepare=True).database_prepare


def test_embedded_engines_are_none_of_djangos_business(django_url: str) -> None:
    with Stabilize.embedded() as stabilize:
        assert stabilize.settings.database_url == "sqlite://"
        with transaction.atomic():
            run = stabilize.start(Workflow.create("shop", "own", [StageExecution.single("a", "noop")]))
            assert run.status.name == "NOT_STARTED"


def test_without_the_app_nothing_changes() -> None:
    assert load().database_url is None


def test_the_options_of_a_connection_are_kept(django_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"connect_timeout": 7, "options": "-c search_path=public -c statement_timeout=12345"}
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    monkeypatch.setitem(connection.settings_dict, "PASSWORD", "p@ss:w/ord ü%")
    url = str(url_of(connection))
    assert make_url(url).password == "p@ss:w/ord ü%"
    engine = create_engine(url)
    with engine.connect() as opened:
        assert opened.exec_driver_sql("SHOW statement_timeout").scalar() == "12345ms"
    engine.dispose()


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"dbname": "shop", "host": "/run/postgresql"}, {"host": None, "query": {"host": "/run/postgresql"}}),
        ({"dbname": "shop", "host": "a,b"}, {"host": None, "query": {"host": "a,b"}}),
        ({"dbname": "shop"}, {"host": None, "database": "shop", "query": {}}),
        ({"service": "shop"}, {"database": None, "query": {"service": "shop"}}),
        (
            {"dbname": "shop", "host": "db", "port": "5433", "sslmode": "require", "cursor_factory": object},
            {"host": "db", "port": 5433, "query": {"sslmode": "require"}},
        ),
    ],
)
def test_addresses_of_every_kind(parameters: dict[str, Any], expected: dict[str, Any]) -> None:
    wrapper = SimpleNamespace(
        vendor="postgresql", settings_dict={}, get_connection_params=lambda: dict(parameters)
    )
    url = make_url(str(url_of(wrapper)))
    assert {name: getattr(url, name) for name in expected} == expected


def test_a_role_is_assumed_as_django_does() -> None:
    wrapper = SimpleNamespace(
        vendor="postgresql",
        settings_dict={"OPTIONS": {"assume_role": "shop"}},
        get_connection_params=lambda: {"dbname": "shop"},
    )
    assert make_url(str(url_of(wrapper))).query["options"] == "-c role=shop"


def test_sqlite_files_and_nothing_else(ready: None, tmp_path: Path) -> None:
    connections["lite"].settings_dict["NAME"] = tmp_path / "lite.db"
    assert url_of(connections["lite"]) == f"sqlite:///{tmp_path}/lite.db"
    for name in (":memory:", "file:memorydb_default?mode=memory&cache=shared"):
        connections["lite"].settings_dict["NAME"] = name
        assert url_of(connections["lite"]) is None
    assert url_of(SimpleNamespace(vendor="mysql")) is None
