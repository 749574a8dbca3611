"""Statements given to libpq itself: what may go wrong on the way leaves nothing for whoever comes next."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from stabilize_celery.persistence import pipeline
from stabilize_celery.persistence.pipeline import Wire
from tests.services import plain_address


@pytest.fixture
def connection(postgres_url):
    url = plain_address(postgres_url)
    with psycopg.connect(url) as made:
        made.execute("CREATE TABLE things (id int PRIMARY KEY, said text)")
        made.commit()
        yield made


@pytest.fixture(params=[True, False], ids=["prepared", "not-prepared"])
def line(connection, request):
    return Wire(connection, prepares=request.param)


INSERT = "INSERT INTO things VALUES ($1::int, $2::text)"
READ = "SELECT id, said FROM things WHERE id >= $1::int ORDER BY id"


def prepared(connection):
    return connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()[0]


def test_rows_come_as_psycopg_would_give_them(connection, line):
    line.run(INSERT, [(1, "one"), (2, None), (3, "ünï \U0001f600 '\"\\")])
    found = line.run(READ, [(2,)]).fetchall()
    assert found == [(2, None), (3, "ünï \U0001f600 '\"\\")]
    assert found == connection.execute("SELECT id, said FROM things WHERE id >= 2 ORDER BY id").fetchall()
    values = (
        "SELECT $1::int, $2::bool, $3::json, now() > '2020-01-01', $4::timestamptz = now() - interval '0 s'"
    )
    assert line.run(values, [(2**31 - 1, False, '{"a": [1]}', None)]).fetchall() == [
        (2**31 - 1, False, {"a": [1]}, True, None)
    ]


def test_a_transaction_begins_as_with_psycopg_and_ends_with_it(connection, line):
    line.run(INSERT, [(1, "rolled back")])
    assert connection.info.transaction_status is TransactionStatus.INTRANS
    connection.rollback()
    line.run(INSERT, [(1, "kept")])
    connection.execute("INSERT INTO things VALUES (2, 'by a cursor, in the same transaction')")
    with line.batch(commit=True):
        line.run(INSERT, [(3, "with the commit")])
    assert connection.info.transaction_status is TransactionStatus.IDLE
    connection.rollback()
    assert [row[0] for row in line.run(READ, [(0,)]).fetchall()] == [1, 2, 3]


@pytest.mark.parametrize("level", list(psycopg.IsolationLevel))
def test_the_isolation_is_that_of_the_connection(connection, line, level):
    connection.isolation_level = level
    assert line.run("SHOW transaction_isolation", [()]).fetchall() == [
        (level.name.lower().replace("_", " "),)
    ]


def test_without_a_transaction_each_statement_is_one(connection, line):
    line.begins = False
    line.run(INSERT, [(1, "one")])
    assert connection.info.transaction_status is TransactionStatus.IDLE
    connection.rollback()
    connection.autocommit, line.begins = True, True
    line.run(INSERT, [(2, "two")])
    assert [row[0] for row in line.run(READ, [(0,)]).fetchall()] == [1, 2]


def test_the_first_failure_is_raised_and_the_rest_is_not_done(connection, line):
    def thrice():
        with line.batch(commit=True):
            line.run(INSERT, [(1, "one")])
            line.run(INSERT, [(1, "again")])
            line.run("SELECT 1 / 0", [()])

    for _ in range(2):
        with pytest.raises(psycopg.errors.UniqueViolation):
            thrice()
        assert connection.info.transaction_status is TransactionStatus.INERROR
        connection.rollback()
        assert line.run(READ, [(0,)]).fetchall() == []


def test_a_value_that_cannot_be_sent_costs_nothing(connection, line):
    def send_both():
        with line.batch():
            line.run(INSERT, [(1, "one")])
            line.run(INSERT, [(2, "no \x00 in text")])

    with pytest.raises(psycopg.DataError, match="NUL"):
        send_both()
    assert not connection.closed
    assert line.run(READ, [(0,)]).fetchall() == []


def test_a_batch_that_is_given_up_sends_nothing(line):
    def give_up():
        with line.batch(commit=True):
            line.run(INSERT, [(1, "one")])
            raise LookupError("something else")

    with pytest.raises(LookupError):
        give_up()
    assert line.run(READ, [(0,)]).fetchall() == []


def test_what_is_asked_for_within_a_batch_is_sent_then(line):
    with line.batch(commit=True):
        line.run(INSERT, [(1, "one")])
        asked = line.run(READ, [(0,)])
        line.run(INSERT, [(2, "two")])
        assert asked.fetchall() == [(1, "one")]
        line.run(INSERT, [(3, "three")])
    assert len(line.run(READ, [(0,)]).fetchall()) == 3


def test_more_than_both_sides_can_hold_flows(line):
    """Neither side stops reading because it cannot write."""
    answer = "SELECT repeat($1::text, 1000)"
    with line.batch():
        replies = [line.run(answer, [("x" * 100,)]) for _ in range(400)]
        line.run(INSERT, [(number, "y" * 50_000) for number in range(400)])
    assert all(len(reply.fetchall()[0][0]) == 100_000 for reply in replies)
    assert len(line.run(READ, [(0,)]).fetchall()) == 400


def test_statements_are_prepared_once_and_not_without_end(connection, monkeypatch):
    monkeypatch.setattr(pipeline, "MOST_PREPARED", 3)
    line = Wire(connection, prepares=True)
    for _ in range(3):
        for number in range(5):
            assert line.run(f"SELECT {number}", [()]).fetchall() == [(number,)]
    assert prepared(connection) == 3
    connection.rollback()
    assert Wire(connection, prepares=False).run("SELECT 1", [()]).fetchall() == [(1,)]
    assert prepared(connection) == 3


def test_half_an_exchange_costs_the_connection(connection, line, monkeypatch):
    """An exception that comes from outside, in the middle: what still arrives is not taken for another's answer."""
    line.run(READ, [(0,)])

    def interrupted(_replies):
        raise KeyboardInterrupt

    monkeypatch.setattr(line, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        line.run(READ, [(0,)])
    assert connection.closed
    monkeypatch.undo()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        line.run(READ, [(0,)])


def test_a_connection_that_is_lost_while_it_waits(connection, line, postgres_url):
    line.run(READ, [(0,)])
    pid = connection.info.backend_pid
    url = plain_address(postgres_url)
    with psycopg.connect(url, autocommit=True) as other, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(line.run, "SELECT pg_sleep(600)", [()])
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
        while not other.execute(asleep, (pid,)).fetchone()[0]:
            pass
        other.execute("SELECT pg_terminate_backend(%s)", (pid,))
        with pytest.raises(psycopg.OperationalError):
            waiting.result(60)
    assert connection.closed
