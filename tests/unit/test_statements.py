"""Statements given to the driver as text do what SQLAlchemy would do with them."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime

import pytest
from sqlalchemy import bindparam, insert, select
from sqlalchemy.exc import IntegrityError, OperationalError

from stabilize_celery import StageExecution, Workflow
from stabilize_celery.errors import SchemaVersionError, StoreError, WorkflowStateError
from stabilize_celery.models.ids import new_id
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.persistence.pipeline import Wire, answer_of, batch, insert_rows, row_of, rows_of, write
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import history, messages, slots, workflows
from tests.watch import watching

PARTS = ("a", 'quote " and % and \\', "ünï", "\U0001f600", "")
read_history = select(*history.c).where(history.c.workflow_id == bindparam("wf")).order_by(history.c.step)
read_kept = select(slots.c.pipeline_config_id).where(slots.c.keep_waiting, slots.c.max_concurrent > 2)
read_slot = select(slots.c.pipeline_config_id).where(slots.c.pipeline_config_id == bindparam("config"))
forget = slots.delete().where(slots.c.pipeline_config_id == bindparam("config"))


@pytest.fixture(params=["sqlite", "postgres"])
def store(request):
    url = "sqlite://" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    made = WorkflowStore(url, create_tables=True)
    yield made
    made.close()


def workflow_row():
    row = dict.fromkeys(column.name for column in workflows.c)
    return row | {
        "id": new_id(),
        "type": "PIPELINE",
        "application": "tests",
        "name": "x",
        "status": WorkflowStatus.RUNNING,
        "context": {},
        "trigger": {},
        "created_at": datetime.now(UTC),
        "is_canceled": False,
        "is_limit_concurrent": False,
        "max_concurrent_executions": 0,
        "keep_waiting_pipelines": False,
        "origin": "",
        "live_branches": 0,
        "has_halted": False,
        "holds_slot": False,
    }


def history_row(workflow_id, step):
    return {
        "id": new_id(),
        "workflow_id": workflow_id,
        "stage_id": None,
        "task_id": None,
        "generation": 0,
        "step": step,
        "event": "stage",
        "from_status": None,
        "to_status": WorkflowStatus.SUCCEEDED,
        "reason": PARTS[step % len(PARTS)],
        "actor": None,
        "worker": "w",
        "details": {"text": PARTS, "deep": {"n": [1, 2.5, None, True]}} if step % 2 else None,
        "at": datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
    }


@pytest.mark.parametrize("how_many", [1, 2, 8, 20])
def test_what_is_written_is_read_back_by_both(store, how_many):
    with store.database.begin() as connection:
        row = workflow_row() | {"type": next(iter(workflows.c["type"].type.enum))}
        connection.execute(insert(workflows), row)
        written = [history_row(row["id"], step) for step in range(how_many)]
        insert_rows(connection, history, written)
        read = rows_of(connection, read_history, {"wf": row["id"]})
        by_sqlalchemy = [dict(r._mapping) for r in connection.execute(read_history, {"wf": row["id"]})]
    expected = [
        {**r, "details": r["details"] and {**r["details"], "text": list(PARTS)}, "reason": r["reason"]}
        for r in written
    ]
    assert read == by_sqlalchemy == expected
    assert all(r["at"].tzinfo is UTC for r in read)


def test_values_inside_a_statement_are_bound_and_no_row_is_none(store):
    rows = [
        {"pipeline_config_id": name, "max_concurrent": n, "keep_waiting": keep, "set_by": None}
        for name, n, keep in (("one", 3, True), ("two", 2, True), ("three", None, True), ("four", 9, False))
    ]
    with store.database.begin() as connection:
        assert row_of(connection, read_kept, {}) is None
        insert_rows(connection, slots, rows)
        insert_rows(connection, slots, [])
        assert rows_of(connection, read_kept, {}) == [{"pipeline_config_id": "one"}]
        write(connection, forget, [{"config": "one"}, {"config": "two"}])
        assert connection.execute(select(slots)).all() == [
            ("three", None, True, None),
            ("four", 9, False, None),
        ]


def test_errors_are_those_of_sqlalchemy_without_the_values(store):
    row = {"pipeline_config_id": "one", "max_concurrent": 1, "keep_waiting": True, "set_by": "a-value"}
    with store.database.begin() as connection:
        insert_rows(connection, slots, [row])
        with pytest.raises(IntegrityError) as caught:
            insert_rows(connection, slots, [row])
        connection.rollback()
    assert "INSERT INTO stabilize_slots" in str(caught.value)
    assert "a-value" not in str(caught.value)


@pytest.mark.parametrize("commit", [False, True])
def test_errors_in_a_batch_are_those_of_sqlalchemy(store, commit):
    row = {"pipeline_config_id": "one", "max_concurrent": 1, "keep_waiting": True, "set_by": None}

    def twice():
        with store.database.begin() as connection, batch(connection, commit=commit):
            insert_rows(connection, slots, [row])
            insert_rows(connection, slots, [row])

    with pytest.raises(IntegrityError):
        twice()
    with store.database.begin() as connection:
        assert rows_of(connection, select(slots), {}) == []


def test_answers_of_a_batch_come_in_order(store):
    rows = [
        {"pipeline_config_id": name, "max_concurrent": 5, "keep_waiting": True, "set_by": None}
        for name in ("one", "two")
    ]
    with store.database.begin() as connection:
        insert_rows(connection, slots, rows)
        with batch(connection):
            first = answer_of(connection, read_slot, {"config": "one"})
            write(connection, forget, [{"config": "two"}])
            second = answer_of(connection, read_slot, {"config": "two"})
            assert first.rows() == [{"pipeline_config_id": "one"}]
            assert second.rows() == []


def test_a_missing_parameter_is_an_error_here(store):
    with pytest.raises(KeyError, match="wf"), store.database.begin() as connection:
        rows_of(connection, read_history, {})


def use_a_watched_store(store, **options):
    seen = []
    with (
        watching(store.database.engine, lambda _, sql, given: seen.append((sql, given)), **options),
        store.database.begin() as connection,
    ):
        with batch(connection, commit=True):
            answer_of(connection, read_history, {"wf": "x"})
            write(connection, forget, [{"config": "one"}, {"config": "two"}])
        connection.execute(read_kept)
    return [each for each in seen if not each[0].startswith("BEGIN")]


def test_a_watcher_sees_every_statement(store):
    read, deleted, by_sqlalchemy = use_a_watched_store(store)
    assert "stabilize_history" in read[0]
    assert len(read[1]) == 1
    assert "DELETE" in deleted[0]
    assert len(deleted[1]) == 2
    assert "keep_waiting" in by_sqlalchemy[0]
    with store.database.begin() as connection:
        rows_of(connection, read_history, {"wf": "x"})  # Not watched any more.


def test_a_watcher_may_see_them_one_by_one(store, monkeypatch):
    sent = []
    monkeypatch.setattr(
        Wire, "send", lambda wire, send=Wire.send: (sent.append(len(wire._waiting)), send(wire))
    )
    assert len(use_a_watched_store(store, one_by_one=True)) == 4
    assert set(sent) <= {1}


@pytest.mark.parametrize("batched", [False, True])
def test_a_watcher_that_raises_takes_the_place_of_the_statement(store, batched):
    def refuse(_connection, sql, _parameters):
        if "DELETE" in sql:
            raise KeyboardInterrupt

    rows = [{"pipeline_config_id": "one", "max_concurrent": 5, "keep_waiting": True, "set_by": None}]

    def use():
        with store.database.begin() as connection, batch(connection) if batched else nullcontext():
            insert_rows(connection, slots, rows)
            write(connection, forget, [{"config": "one"}])

    with watching(store.database.engine, refuse), pytest.raises(KeyboardInterrupt):
        use()
    with store.database.begin() as connection:
        assert rows_of(connection, read_kept, {}) == []


def test_a_lost_connection_is_given_up(postgres_url):
    store = WorkflowStore(postgres_url, create_tables=True)

    def lose_it():
        with store.database.begin() as connection:
            with store.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
                mine = connection.connection.driver_connection.info.backend_pid
                other.exec_driver_sql(f"SELECT pg_terminate_backend({mine}, 5000)")
            rows_of(connection, read_history, {"wf": "x"})

    with pytest.raises(StoreError, match="cannot be reached"):
        lose_it()
    with store.database.begin() as connection:
        assert rows_of(connection, read_history, {"wf": "x"}) == []
    store.close()


@pytest.mark.parametrize("where", ["statement", "batch", "answer"])
def test_an_interruption_stays_one_and_costs_only_the_connection(postgres_url, monkeypatch, where):
    """It comes from outside, while PostgreSQL answers: a signal, or a task that is told to stop."""
    store = WorkflowStore(postgres_url, create_tables=True)

    def interrupted(_line, _replies):
        raise KeyboardInterrupt

    def use():
        with store.database.begin() as connection:
            rows_of(connection, read_history, {"wf": "x"})
            monkeypatch.setattr(Wire, "_receive", interrupted)
            if where == "statement":
                write(connection, forget, [{"config": "one"}])
            elif where == "batch":
                with batch(connection, commit=True):
                    write(connection, forget, [{"config": "one"}])
            else:
                with batch(connection):
                    answer_of(connection, read_slot, {"config": "one"}).rows()

    with pytest.raises(KeyboardInterrupt):
        use()
    monkeypatch.undo()
    with store.database.begin() as connection:
        assert rows_of(connection, read_history, {"wf": "x"}) == []
    store.close()


def test_a_missing_table_is_still_explained(store):
    with store.database.begin() as connection:
        connection.exec_driver_sql(f"DROP TABLE {messages.name}")
    with pytest.raises(SchemaVersionError, match="stabilize migrate"):
        store.next_due()


def test_operational_errors_keep_their_kind():
    store = WorkflowStore("sqlite://", create_tables=True)
    with store.database.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {slots.name} RENAME COLUMN keep_waiting TO kept")
        with pytest.raises(OperationalError, match="keep_waiting"):
            rows_of(connection, select(slots.c.keep_waiting), {})
    store.close()


def test_a_workflow_that_somebody_else_stores_in_between_is_named(postgres_url, monkeypatch):
    store, other = WorkflowStore(postgres_url, create_tables=True), WorkflowStore(postgres_url)
    workflow = Workflow.create("tests", "twice", [StageExecution.single("a", "noop")])
    insert_workflows = store.insert_workflows

    def late(connection, many):
        other.store(workflow)
        insert_workflows(connection, many)

    monkeypatch.setattr(store, "insert_workflows", late)
    with pytest.raises(WorkflowStateError, match=workflow.id):
        store.store(workflow)
    store.close()
    other.close()
