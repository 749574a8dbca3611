from __future__ import annotations

import signal

import psycopg
import pytest

from tests.services import PostgresService


def connect(url: str) -> psycopg.Connection:
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)


def test_a_query_works(postgres_service: PostgresService) -> None:
    with connect(postgres_service.url) as connection:
        assert connection.execute("SELECT 1 + 1").fetchone() == (2,)


def test_a_clone_has_the_tables_and_rows_of_its_template(postgres_service: PostgresService) -> None:
    with connect(postgres_service.create_database("template_a")) as connection:
        connection.execute("CREATE TABLE thing AS SELECT 7 AS n")
        # Still connected here: cloning breaks the connection instead of failing.
        clone = postgres_service.create_database("clone_a", template="template_a")
    with connect(clone) as connection:
        assert connection.execute("SELECT n FROM thing").fetchone() == (7,)
        connection.execute("UPDATE thing SET n = 8")
    with connect(postgres_service.url_of("template_a")) as connection:
        assert connection.execute("SELECT n FROM thing").fetchone() == (7,)
    postgres_service.drop_database("clone_a")
    postgres_service.drop_database("template_a")


def test_a_database_can_be_dropped_while_in_use(postgres_service: PostgresService) -> None:
    with connect(postgres_service.create_database("busy")) as connection:
        postgres_service.drop_database("busy")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_restart_keeps_address_and_data(postgres_service: PostgresService) -> None:
    url = postgres_service.create_database("kept")
    with connect(url) as connection:
        connection.execute("CREATE TABLE thing AS SELECT 1 AS n")
        before = postgres_service.pid
        postgres_service.restart()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert postgres_service.pid != before
    with connect(url) as connection:
        assert connection.execute("SELECT n FROM thing").fetchone() == (1,)
    postgres_service.drop_database("kept")


def test_a_commit_survives_the_sudden_death_of_the_server(postgres_service: PostgresService) -> None:
    url = postgres_service.create_database("killed")
    with connect(url) as connection:
        connection.execute("CREATE TABLE thing AS SELECT 1 AS n")
        postgres_service.kill(signal.SIGKILL)
    with pytest.raises(psycopg.OperationalError):
        connect(url)
    postgres_service.start()
    with connect(url) as connection:
        assert connection.execute("SELECT n FROM thing").fetchone() == (1,)
    postgres_service.drop_database("killed")
