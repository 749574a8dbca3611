"""A start within Django's transaction is a part of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, connections, transaction
from django.test import Client, TestCase
from sqlalchemy import create_engine, select

from stabilize_celery import Stabilize, StageExecution, Trigger, Workflow, WorkflowRun
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.errors import (
    ConfigurationError,
    SchemaVersionError,
    WorkflowNotFoundError,
    WorkflowStateError,
)
from stabilize_celery.persistence import tables
from stabilize_celery.persistence.store import WorkflowStore
from tests.conformance.harness import flow, stage
from tests.contrib.django.app import urls
from tests.contrib.django.app.models import Order
from tests.contrib.django.conftest import point

Start = Callable[[Stabilize, Workflow], WorkflowRun]


class OwnError(Exception):
    """The caller's own."""


@pytest.fixture(params=["plain", "alias", "connection"])
def start(request: pytest.FixtureRequest) -> Start:
    """The ways to start within Django's transaction."""
    options: dict[str, Any] = {"plain": {}, "alias": {"connection": "default"}}
    if request.param == "connection":
        return lambda stabilize, workflow: stabilize.start(workflow, connection=connection)
    return lambda stabilize, workflow: stabilize.start(workflow, **options[request.param])


def order() -> Workflow:
    return flow(stage("a"), stage("b", after=["a"]))


def is_known(run: WorkflowRun) -> bool:
    try:
        return run.status is not None
    except WorkflowNotFoundError:
        return False


def count(stabilize: Stabilize) -> tuple[int, int]:
    """How many workflows and messages others see."""
    return len(stabilize.find()), stabilize.store.count_messages()


# ---------------------------------------------------------------------- commit and rollback


def test_a_commit_starts_it_together_with_the_order(stabilize: Stabilize, start: Start) -> None:
    with transaction.atomic():
        Order.objects.create(item="lamp")
        run = start(stabilize, order())
        assert not is_known(run)
        assert not stabilize.publisher.ready
    assert count(stabilize) == (1, 1)
    assert len(stabilize.publisher.ready) == 1

    stabilize.processor.drain(30)

    assert run.status is S.SUCCEEDED
    assert Order.objects.count() == 1


def test_a_rollback_leaves_nothing_behind(stabilize: Stabilize, start: Start) -> None:
    def fail() -> None:
        with transaction.atomic():
            Order.objects.create(item="lamp")
            start(stabilize, order())
            raise OwnError

    with pytest.raises(OwnError):
        fail()

    assert Order.objects.count() == 0
    assert count(stabilize) == (0, 0)
    assert not stabilize.publisher.ready


def test_a_savepoint_that_is_rolled_back_takes_its_start_along(stabilize: Stabilize, start: Start) -> None:
    def fail() -> None:
        with transaction.atomic():
            lost.append(start(stabilize, order()))
            raise OwnError

    lost: list[WorkflowRun] = []
    with transaction.atomic():
        with pytest.raises(OwnError):
            fail()
        with transaction.atomic():
            kept = start(stabilize, order())
        assert not stabilize.publisher.ready

    assert is_known(kept)
    assert not is_known(lost[0])
    assert len(stabilize.publisher.ready) == 1
    stabilize.processor.drain(30)
    assert kept.status is S.SUCCEEDED


def test_a_commit_that_fails_starts_nothing(stabilize: Stabilize, start: Start) -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE late (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")

    def fail() -> None:
        with transaction.atomic():
            start(stabilize, order())
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO late VALUES (1), (1)")

    with pytest.raises(IntegrityError):
        fail()
    assert count(stabilize) == (0, 0)
    assert not stabilize.publisher.ready


def test_without_a_transaction_it_starts_at_once(stabilize: Stabilize, start: Start) -> None:
    run = start(stabilize, order())
    assert is_known(run)
    assert len(stabilize.publisher.ready) == 1


def test_many_join_too(stabilize: Stabilize) -> None:
    with transaction.atomic():
        runs = stabilize.start_many([order() for _ in range(3)])
        assert count(stabilize) == (0, 0)
    assert count(stabilize) == (3, 3)
    stabilize.processor.drain(30)
    assert {run.status for run in runs} == {S.SUCCEEDED}


def test_another_thread_is_not_within_this_ones_transaction(stabilize: Stabilize) -> None:
    runs: list[WorkflowRun] = []
    with transaction.atomic():
        thread = threading.Thread(target=lambda: runs.append(stabilize.start(order())))
        thread.start()
        thread.join(60)
        assert is_known(runs[0])


# ---------------------------------------------------------------------- keys and mistakes


def test_a_key_counts_within_one_transaction_and_after_it(stabilize: Stabilize) -> None:
    with transaction.atomic():
        first = stabilize.start(order(), dedup_key="order-42")
        assert stabilize.start(order(), dedup_key="order-42") == first
    with transaction.atomic():
        assert stabilize.start(order(), dedup_key="order-42") == first
    assert count(stabilize) == (1, 1)
    assert len(stabilize.publisher.ready) == 1


def test_a_start_that_is_refused_leaves_the_transaction_usable(stabilize: Stabilize, start: Start) -> None:
    workflow = order()
    start(stabilize, workflow)
    with transaction.atomic():
        with pytest.raises(WorkflowStateError, match="make a new Workflow for each start"):
            start(stabilize, workflow)
        Order.objects.create(item="lamp")
    assert Order.objects.count() == 1


def test_errors_of_the_database_are_those_of_django(
    stabilize: Stabilize, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad_row(*_: Any) -> dict[str, Any]:
        return {column.name: None for column in tables.workflows.c}

    monkeypatch.setattr("stabilize_celery.persistence.rows.stage_row", bad_row)
    monkeypatch.setattr("stabilize_celery.persistence.store.stages", tables.workflows)
    with pytest.raises(IntegrityError, match="null value"), transaction.atomic():
        stabilize.start(order())
    assert count(stabilize) == (0, 0)


def test_an_unknown_alias_is_named_with_those_there_are(stabilize: Stabilize) -> None:
    with pytest.raises(ConfigurationError, match=r"'defalt'.*default, other, lite"):
        stabilize.start(order(), connection="defalt")


def test_missing_tables_are_explained(ready: None, empty_postgres_url: str) -> None:
    point("default", empty_postgres_url)
    with (
        Stabilize.embedded(empty_postgres_url, create_tables=False, check_types=False) as stabilize,
        pytest.raises(SchemaVersionError, match="migrate"),
        transaction.atomic(),
    ):
        stabilize.start(order())
    connections.close_all()


# ---------------------------------------------------------------------- other databases


@pytest.fixture
def elsewhere(stabilize: Stabilize, postgres_url: str) -> Iterator[str]:
    """The alias of a database that has the same tables and is another one."""
    point("other", postgres_url)
    with connections["other"].schema_editor() as editor:
        editor.create_model(Order)
    yield "other"
    connections["other"].close()


def test_transactions_of_another_database_are_refused_if_named(stabilize: Stabilize, elsewhere: str) -> None:
    with pytest.raises(ConfigurationError, match=r"on_commit"), transaction.atomic(using=elsewhere):
        stabilize.start(order(), connection=elsewhere)
    assert count(stabilize) == (0, 0)


def test_a_plain_start_within_another_databases_transaction_is_none_of_its_business(
    stabilize: Stabilize, elsewhere: str
) -> None:
    def fail() -> None:
        with transaction.atomic(using=elsewhere):
            runs.append(stabilize.start(order()))
            raise OwnError

    runs: list[WorkflowRun] = []
    with pytest.raises(OwnError):
        fail()
    assert is_known(runs[0])


def test_the_same_database_is_found_behind_another_alias_and_address(
    stabilize: Stabilize, django_url: str
) -> None:
    point("other", django_url.replace("127.0.0.1", "localhost"))
    with transaction.atomic(using="other"):
        run = stabilize.start(order())
        assert not is_known(run)
    assert is_known(run)
    connections["other"].close()


def test_sqlite_files_are_joined_as_well(lite: Any) -> None:
    def within(error: type[Exception] | None) -> WorkflowRun:
        with transaction.atomic(using="lite"):
            Order.objects.using("lite").create(item="lamp")
            run = stabilize.start(order())
            if error:
                raise error
        return run

    url = f"sqlite:///{lite.settings_dict['NAME']}"
    with Stabilize.embedded(url, create_tables=False, check_types=False) as stabilize:
        from tests.conformance import behaviours

        behaviours.register(stabilize)
        with pytest.raises(OwnError):
            within(OwnError)
        assert count(stabilize) == (0, 0)
        run = within(None)
        stabilize.processor.drain(30)
        assert run.status is S.SUCCEEDED
        assert Order.objects.using("lite").count() == 1


# ---------------------------------------------------------------------- requests and tests


@pytest.mark.parametrize("fails", [False, True])
def test_a_request_that_is_a_transaction(
    stabilize: Stabilize, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    def fail() -> None:
        raise OwnError

    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    calls = [lambda: stabilize.start(order()), *([fail] if fails else [])]
    monkeypatch.setattr(urls, "within_request", calls)

    response = Client(raise_request_exception=False).get("/order/")

    assert response.status_code == (500 if fails else 200)
    assert Order.objects.count() == (0 if fails else 1)
    assert count(stabilize) == ((0, 0) if fails else (1, 1))
    assert len(stabilize.publisher.ready) == (0 if fails else 1)


def test_django_tests_see_what_would_be_sent(stabilize: Stabilize) -> None:
    """As within django.test.TestCase, whose transaction is always rolled back."""
    with transaction.atomic():
        with TestCase.captureOnCommitCallbacks() as callbacks:
            stabilize.start(order())
        assert len(callbacks) == 1
        assert not stabilize.publisher.ready
        with TestCase.captureOnCommitCallbacks(execute=True):
            stabilize.start(order())
        assert len(stabilize.publisher.ready) == 1
        transaction.set_rollback(True)
    assert count(stabilize) == (0, 0)


# ---------------------------------------------------------------------- the rows


def everything() -> Workflow:
    """A workflow whose rows use every kind of value."""
    workflow = Workflow.create(
        "shop %s",
        "100 % 'order' \"x\" ☃ %(name)s",
        [
            StageExecution.single(
                "a", "noop", {"deep": {"null": None, "list": [1, 2.5, True], "text": "\u0000☃%"}}
            ),
            StageExecution.single(
                "b", "noop", {"x": ":y %s ?"}, requires={"a"}, output_reducers={"n": "sum"}
            ),
        ],
        trigger=Trigger(type="manual", user="kim"),
        context={"when": "2026-01-01", "n": 1},
        config={"limitConcurrent": True, "maxConcurrentExecutions": 3, "keepWaitingPipelines": True},
        start_time_expiry=datetime.now(UTC) + timedelta(days=1, microseconds=7),
    )
    workflow.dedup_key = None
    return workflow


def rows_of(store: WorkflowStore) -> dict[str, list[dict[str, Any]]]:
    """Everything that is stored, but for what differs from one workflow to the next."""
    own = {"id", "workflow_id", "upstream_id", "downstream_id", "tasks", "created_at", "due_at", "send_at"}
    with store.database.begin() as c:
        return {
            table.name: [
                {k: v for k, v in row._mapping.items() if k not in own | {"start_time_expiry"}}
                for row in c.execute(select(table).order_by(*table.primary_key.columns))
            ]
            for table in (tables.workflows, tables.stages, tables.edges, tables.messages)
        }


def raw_types(store: WorkflowStore) -> list[Any]:
    """What the columns hold, not as SQLAlchemy's types would read it."""
    statement = (
        "SELECT created_at, start_time_expiry, context, trigger, is_canceled, status FROM stabilize_workflows"
    )
    engine = create_engine(store.database.url)
    with engine.connect() as c:
        found = [[type(value) for value in row] for row in c.exec_driver_sql(statement)]
    engine.dispose()
    return found


@pytest.mark.parametrize("server_side_binding", [False, True])
def test_the_rows_are_those_of_any_other_start(
    stabilize: Stabilize, postgres_url: str, server_side_binding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        connection.settings_dict, "OPTIONS", {"server_side_binding": True} if server_side_binding else {}
    )
    connection.close()
    workflow = everything()
    expiry = workflow.start_time_expiry
    with transaction.atomic():
        run = stabilize.start(workflow)
    with Stabilize.embedded(postgres_url, create_tables=False) as plain:
        plain.start(everything())
        assert rows_of(plain.store) == rows_of(stabilize.store)
        assert raw_types(plain.store) == raw_types(stabilize.store)
    found = run.workflow()
    assert found.start_time_expiry == expiry
    assert abs(found.created_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert found.stages[0].context == workflow.stages[0].context
    assert found.stages[0].tasks == workflow.stages[0].tasks
    connection.close()


def test_the_rows_on_sqlite_are_those_of_any_other_start(lite: Any, tmp_path: Any) -> None:
    with (
        Stabilize.embedded(f"sqlite:///{lite.settings_dict['NAME']}", create_tables=False) as joined,
        Stabilize.embedded(f"sqlite:///{tmp_path}/plain.db") as plain,
    ):
        workflow = everything()
        with transaction.atomic(using="lite"):
            run = joined.start(workflow)
        plain.start(everything())
        assert rows_of(plain.store) == rows_of(joined.store)
        assert raw_types(plain.store) == raw_types(joined.store)
        assert run.workflow().start_time_expiry == workflow.start_time_expiry
