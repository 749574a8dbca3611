"""What a database may be like: with other defaults, read-only, out of resources, away in the middle of a commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, create_engine, func, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from stabilize_celery import Stabilize, Workflow
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.errors import (
    CommitUnknownError,
    ConfigurationError,
    RepeatTransactionError,
    SchemaVersionError,
    StoreError,
    WorkflowStateError,
    WorkflowTimeoutError,
)
from stabilize_celery.persistence import tables, unit_of_work
from stabilize_celery.persistence.database import is_canceled, is_retryable, is_unavailable
from stabilize_celery.persistence.migrate import upgrade
from stabilize_celery.persistence.pipeline import Wire, row_of
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.tasks.sub_workflow import SubWorkflowTask
from tests.conformance import behaviours
from tests.conformance.harness import flow, stage
from tests.pooler import pooler_running
from tests.services import PostgresService, plain_address

LEVELS = ["repeatable read", "serializable"]
level_now = select(func.current_setting("transaction_isolation").label("level"))
Make = Callable[..., Stabilize]


def alter(url: str, setting: str, value: str) -> None:
    with psycopg.connect(plain_address(url), autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER DATABASE \"{make_url(url).database}\" SET {setting} = '{value}'")


@pytest.fixture
def make(postgres_url: str) -> Iterator[Make]:
    made: list[Stabilize] = []

    def engine(url: str = postgres_url, **settings: Any) -> Stabilize:
        options = {"create_tables": False, "resend_delay": 0.2, "control_retry_delay": 0.01, "lease": 20.0}
        made.append(Stabilize.embedded(url, concurrency=1, **{**options, **settings}))
        behaviours.register(made[-1])
        return made[-1]

    yield engine
    for each in made:
        each.close()


# ---------------------------------------------------------------------- isolation


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", ["direct", "pooler"])
def test_every_transaction_is_read_committed(postgres_url: str, way: str, level: str) -> None:
    alter(postgres_url, "default_transaction_isolation", level)
    with pooler_running(postgres_url, sessions=2) as pooler:
        url = postgres_url if way == "direct" else pooler.url_of(postgres_url)
        store = WorkflowStore(url, prepare_statements=way == "direct")
        seen = []
        for _ in range(2):
            with store.database.begin() as connection:
                seen.append(connection.execute(level_now).scalar_one())
            with store.database.begin() as connection:
                seen.append((row_of(connection, level_now, {}) or {})["level"])
            with store.database.autocommit() as connection:
                seen.append(connection.execute(level_now).scalar_one())
            with store.database.alone() as connection:
                seen.append((row_of(connection, level_now, {}) or {})["level"])
                seen.append((row_of(connection, level_now, {}) or {})["level"])
        store.close()
    assert seen == ["read committed"] * len(seen)


@pytest.mark.parametrize("level", LEVELS)
def test_a_statement_alone_that_fails_leaves_nothing_open(postgres_url: str, level: str) -> None:
    alter(postgres_url, "default_transaction_isolation", level)
    store = WorkflowStore(postgres_url)
    with pytest.raises(DBAPIError, match="division"), store.database.alone() as connection:
        row_of(connection, text("SELECT 1 / 0 AS n").columns(), {})
    with store.database.alone() as connection:
        assert row_of(connection, level_now, {}) == {"level": "read committed"}
        assert connection.connection.driver_connection.info.transaction_status.name == "IDLE"  # type: ignore[union-attr]
    store.close()


@pytest.mark.parametrize("level", LEVELS)
def test_a_limit_holds_whatever_the_default(
    make: Make, postgres_url: str, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """Both starts have begun their transactions before either locks the row of the configuration."""
    alter(postgres_url, "default_transaction_isolation", level)
    config = {
        "id": "shop",
        "limitConcurrent": True,
        "maxConcurrentExecutions": 1,
        "keepWaitingPipelines": True,
    }

    def limited() -> Workflow:
        return Workflow.create("tests", "limited", [stage("ask", "approval")], config=config)

    engines = [make(), make()]
    older = [limited(), limited()]
    newest = engines[0].start(limited())
    engines[0].processor.drain(until=lambda: newest.workflow().stages[0].status is S.SUSPENDED)
    newest.approve("ask")
    engines[0].processor.drain(until=newest.ready)
    engines[0].start_many(older)
    messages = tables.messages
    with engines[0].store.database.begin() as connection:
        ids = list(
            connection.execute(select(messages.c.id).where(messages.c.type == "StartWorkflow")).scalars()
        )
    assert len(ids) == 2
    begun = threading.Barrier(2)
    lock = unit_of_work.lock_slots

    def meet_and_lock(connection: Connection, config_id: str) -> Any:
        with suppress(threading.BrokenBarrierError):
            begun.wait(10)
        return lock(connection, config_id)

    monkeypatch.setattr(unit_of_work, "lock_slots", meet_and_lock)

    def handle(engine: Stabilize, message_id: str) -> None:
        engine.dispatcher.handle(message_id)

    threads = [threading.Thread(target=handle, args=pair) for pair in zip(engines, ids, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    workflows = tables.workflows
    with engines[0].store.database.begin() as connection:
        held = connection.scalar(select(func.count()).where(workflows.c.holds_slot))
    assert held == 1


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_start_in_a_callers_transaction_says_to_repeat_it(
    make: Make, postgres_url: str, level: str
) -> None:
    engine = make()
    theirs = create_engine(postgres_url, isolation_level=level)  # type: ignore[call-overload]
    with theirs.connect() as connection:
        connection.execute(text("SELECT count(*) FROM stabilize_workflows"))
        first = engine.start(flow(stage("a")), dedup_key="order-1")
        with pytest.raises(RepeatTransactionError, match="repeat your transaction") as refused:
            engine.start(flow(stage("a")), connection=connection, dedup_key="order-1")
        connection.rollback()
        assert engine.start(flow(stage("a")), connection=connection, dedup_key="order-1") == first
        connection.rollback()
    theirs.dispose()
    assert not is_unavailable(refused.value)
    assert isinstance(refused.value.__cause__, DBAPIError)


def test_a_key_that_is_taken_is_no_conflict_where_it_is_seen(make: Make, postgres_url: str) -> None:
    engine = make()
    theirs = create_engine(postgres_url)
    with theirs.connect() as connection:
        connection.execute(text("SELECT count(*) FROM stabilize_workflows"))
        first = engine.start(flow(stage("a")), dedup_key="order-1")
        assert engine.start(flow(stage("a")), connection=connection, dedup_key="order-1") == first
    theirs.dispose()


# ---------------------------------------------------------------------- read-only, out of resources, given up


def failure(connection: Connection, state: str) -> BaseException:
    raised = f"DO $$ BEGIN RAISE EXCEPTION 'so it is' USING ERRCODE = '{state}'; END $$"
    with pytest.raises(DBAPIError) as found:
        connection.exec_driver_sql(raised)
    return found.value


@pytest.mark.parametrize(
    ("state", "unavailable", "retryable"),
    [
        ("25006", True, False), ("57014", True, False), ("53100", True, False), ("53200", True, False),
        ("53300", True, False), ("08006", True, False), ("08P01", True, False), ("57P01", True, False),
        ("57P03", True, False), ("25P03", True, False), ("25P04", True, False),
        ("40001", False, True), ("40P01", False, True), ("55P03", False, True),
        ("23505", False, False), ("42P01", False, False), ("25P02", False, False), ("22003", False, False),
        ("42501", False, False),
    ],
)  # fmt: skip
def test_what_is_the_databases_fault(
    postgres_url: str, state: str, unavailable: bool, retryable: bool
) -> None:
    store = WorkflowStore(postgres_url)
    with store.database.engine.connect() as connection:
        error = failure(connection, state)
    assert (is_unavailable(error), is_retryable(error)) == (unavailable, retryable)
    assert is_canceled(error) == (state in ("57014", "25P04"))
    kind: type[Exception] = (
        StoreError if unavailable else SchemaVersionError if state == "42P01" else DBAPIError
    )
    with pytest.raises(kind) as told, store.database.begin() as connection:
        connection.exec_driver_sql(
            f"DO $$ BEGIN RAISE EXCEPTION 'so it is' USING ERRCODE = '{state}'; END $$"
        )
    assert is_unavailable(told.value) == unavailable
    assert is_canceled(told.value) == is_canceled(error)
    store.close()


def test_a_read_only_database_is_told_so(make: Make, postgres_url: str) -> None:
    run = make().start(flow(stage("a")))
    alter(postgres_url, "default_transaction_read_only", "on")
    engine = make()
    with pytest.raises(StoreError, match=r"is read-only: .*default_transaction_read_only") as told:
        engine.start(flow(stage("a")))
    assert is_unavailable(told.value)
    assert engine.get(run.id).status is S.NOT_STARTED


def test_tables_cannot_be_made_in_a_read_only_database(empty_postgres_url: str) -> None:
    alter(empty_postgres_url, "default_transaction_read_only", "on")
    store = WorkflowStore(empty_postgres_url)
    with pytest.raises(StoreError, match="is read-only"):
        store.create_tables()
    with pytest.raises(StoreError, match="is read-only"):
        upgrade(store.database)
    store.close()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_hold_every_text_is_refused(
    postgres_service: PostgresService, make: Make, encoding: str
) -> None:
    name = f"t_{encoding.lower()}"
    plain = plain_address(postgres_service.url)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
    url = make_url(postgres_service.url).set(database=name).render_as_string(hide_password=False)
    try:
        engine = make(url)
        for attempt in (
            engine.create_tables,
            lambda: upgrade(engine.store.database),
            lambda: engine.start(flow(stage("a"))),
        ):
            with pytest.raises(ConfigurationError, match=f"has the encoding {encoding}.*ENCODING 'UTF8'"):
                attempt()
        engine.close()
    finally:
        postgres_service.drop_database(name)


def test_a_control_message_that_takes_too_long_each_time_is_a_dead_letter(
    make: Make, postgres_url: str
) -> None:
    """It is tried again, and not for ever."""
    engine = make(control_max_attempts=3)
    run = engine.start(flow(stage("a")))
    with engine.store.database.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION slow() RETURNS trigger AS $$ BEGIN "
            "RAISE EXCEPTION 'canceling statement due to statement timeout' USING ERRCODE = '57014'; END $$ "
            "LANGUAGE plpgsql; "
            "CREATE TRIGGER slow BEFORE UPDATE ON stabilize_stages FOR EACH ROW EXECUTE FUNCTION slow()"
        )
    engine.processor.drain(timeout=30, until=lambda: bool(engine.dead_letters()))
    (letter,) = engine.dead_letters()
    assert letter["attempts"] == 3
    assert run.status is S.TERMINAL


# ---------------------------------------------------------------------- away


class Away:
    """Makes the store's transactions fail, as if the database were away, while ``times`` lasts."""

    def __init__(self, engine: Stabilize, patch: pytest.MonkeyPatch) -> None:
        self.times = 0
        self.seen = 0
        database = engine.store.database
        for name in ("begin", "autocommit"):
            patch.setattr(database, name, self._wrapped(getattr(database, name)))

    def _wrapped(self, original: Callable[[], Any]) -> Callable[[], Any]:
        def wrapped() -> Any:
            if self.times > 0:
                self.times -= 1
                self.seen += 1
                raise StoreError("the database is away")
            return original()

        return wrapped


def test_questions_wait_for_the_database(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    run = engine.start(flow(stage("a")))
    engine.processor.drain(until=run.ready)
    away = Away(engine, monkeypatch)
    questions: list[Callable[[], Any]] = [
        lambda: run.status, run.ready, run.successful, run.workflow, run.history, lambda: run.wait(5),
        lambda: run.get(timeout=5), run.get,
    ]  # fmt: skip
    for ask in questions:
        away.times, away.seen = 2, 0
        ask()
        assert (away.times, away.seen) == (0, 2)


def test_a_timeout_is_kept_while_the_database_is_away(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    run = engine.start(flow(stage("a")))
    Away(engine, monkeypatch).times = 10**9
    with pytest.raises(WorkflowTimeoutError, match=r"could not be asked within 0\.2 s: the database is away"):
        run.get(timeout=0.2)


def test_missing_tables_are_not_waited_for(empty_postgres_url: str, make: Make) -> None:
    engine = make(empty_postgres_url)
    from stabilize_celery.run import WorkflowRun

    with pytest.raises(SchemaVersionError):
        WorkflowRun(engine, "none").get()


def test_tasks_that_ask_the_database_wait_for_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sub-workflow that is started, one whose result is read, the instances of a map."""
    engine = make()
    inner = {"application": "tests", "name": "inner", "stages": [{"ref": "x", "type": "noop"}]}
    children = stage("children", "sub_workflow", workflow=inner)
    each = stage("each", "map", ["children"], items=[1, 2], type="noop")
    run = engine.start(flow(children, each))
    away = Away(engine, monkeypatch)
    tasks = [SubWorkflowTask, type(engine.registry.resolve("map"))]
    executed = []
    for kind in tasks:

        def execute(self: Any, stage: Any, original: Any = kind.execute) -> Any:
            away.times = 2
            executed.append(type(self))
            return original(self, stage)

        monkeypatch.setattr(kind, "execute", execute)
    engine.processor.drain(timeout=60, until=run.ready)
    assert run.status is S.SUCCEEDED
    assert executed == [SubWorkflowTask, SubWorkflowTask, tasks[1]]
    assert all(task.last_error is None for each in run.workflow().stages for task in each.tasks)


def test_what_follows_a_recorded_result_is_handled_later(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of a workflow that failed is a transaction of its own, right after that of the result."""
    engine = make()
    run = engine.start(flow(stage("a", "fail"), stage("b")))
    handle, away = engine.dispatcher.handle, []

    def away_once(message_id: str, **options: Any) -> bool:
        if options and not away:
            away.append(message_id)
            raise StoreError("the database is away")
        return handle(message_id, **options)

    monkeypatch.setattr(engine.dispatcher, "handle", away_once)
    engine.processor.drain(timeout=30, until=run.ready)
    assert run.status is S.TERMINAL
    assert away
    assert "was refused" not in caplog.text


# ---------------------------------------------------------------------- away in mid-commit


@pytest.fixture(params=["committed", "not committed"])
def lost_commit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The connection is lost during the next COMMIT, before or after the server has done it."""
    armed = threading.Event()
    original = Wire.send

    def send(self: Wire) -> None:
        if armed.is_set() and any(sql == "COMMIT" for sql, _, _ in self._waiting):
            armed.clear()
            if request.param == "committed":
                original(self)
            else:
                self._waiting.clear()
            self._server.finish()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        original(self)

    monkeypatch.setattr(Wire, "send", send)
    yield armed
    assert not armed.is_set()


def test_a_start_is_repeated(make: Make, lost_commit: threading.Event) -> None:
    engine = make()
    known = engine.start(flow(stage("a")), dedup_key="known")
    again, new = flow(stage("a")), flow(stage("a"))
    again.dedup_key = "known"
    lost_commit.set()
    runs = engine.start_many([again, new])
    assert runs[0] == known
    assert runs[1].id == new.id
    engine.processor.drain(timeout=20, until=lambda: all(run.ready() for run in runs))
    assert len(engine.find()) == 2
    with pytest.raises(WorkflowStateError, match="is in the database already"):
        engine.start(new)


def test_a_start_that_cannot_be_repeated_says_that_nothing_is_known(
    make: Make, lost_commit: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    new = flow(stage("a"))
    lost_commit.set()
    begin = engine.store.database.begin

    def away_afterwards() -> Any:
        if not lost_commit.is_set():
            raise StoreError("the database is away")
        return begin()

    monkeypatch.setattr(engine.store.database, "begin", away_afterwards)
    with pytest.raises(
        CommitUnknownError, match=f"{new.id} was being started, so it is not known whether it was"
    ):
        engine.start(new)


def test_a_result_is_recorded_once(
    make: Make, lost_commit: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make(heartbeat=0.1)
    calls = []

    @engine.task("work")
    def work() -> dict[str, int]:
        calls.append(1)
        lost_commit.set()
        return {"x": len(calls)}

    run = engine.start(flow(stage("a", "work"), stage("b", after=["a"])))
    engine.processor.drain(timeout=30, until=run.ready)
    assert run.get() == {"x": 1}
    assert calls == [1]
    assert "was refused" not in caplog.text


def test_a_control_message_is_handled_once(make: Make, lost_commit: threading.Event) -> None:
    engine = make()
    run = engine.start(flow(stage("a"), stage("b", after=["a"])))
    messages = tables.messages
    with engine.store.database.begin() as connection:
        first = connection.scalar(select(messages.c.id))
    lost_commit.set()
    with pytest.raises(CommitUnknownError, match="not known whether it was"):
        engine.dispatcher.handle(first)
    with engine.store.database.begin() as connection:
        connection.execute(update(messages).values(send_at=engine.store.now()))
    engine.processor.drain(timeout=20, until=run.ready)
    assert run.status is S.SUCCEEDED
    assert sum(row["event"] == "workflow" and row["to_status"] is S.RUNNING for row in run.history()) == 1
