"""Starting workflows: in the caller's transaction, once per key, many at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from stabilize_celery import Stabilize, Workflow, WorkflowRun
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.errors import ConfigurationError, WorkflowNotFoundError
from stabilize_celery.persistence import tables
from tests.conformance import behaviours
from tests.conformance.deployment import SETTINGS
from tests.conformance.harness import flow, stage
from tests.processes import wait_until

orders = Table("orders", MetaData(), Column("id", Integer, primary_key=True))


class OwnError(Exception):
    """The caller's own."""


@pytest.fixture
def stabilize(postgres_url: str) -> Iterator[Stabilize]:
    with Stabilize.embedded(postgres_url, create_tables=False, **SETTINGS) as engine:
        behaviours.register(engine)
        yield engine


@pytest.fixture
def database(postgres_url: str) -> Iterator[Engine]:
    """The caller's own way to the same database."""
    engine = create_engine(postgres_url)
    orders.create(engine)
    yield engine
    engine.dispose()


def order() -> Workflow:
    return flow(stage("a"), stage("b", after=["a"]))


def counts(database: Engine) -> tuple[int, int, int]:
    """How many orders, workflows and messages there are."""
    with database.connect() as connection:
        found = [
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (orders, tables.workflows, tables.messages)
        ]
    return found[0], found[1], found[2]


def blocked(database: Engine) -> int:
    """How many connections wait for a lock."""
    with database.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one()


def is_known(run: WorkflowRun) -> bool:
    try:
        return run.status is not None
    except WorkflowNotFoundError:
        return False


def test_a_start_in_a_connections_transaction_happens_with_its_commit(
    stabilize: Stabilize, database: Engine
) -> None:
    with database.begin() as connection:
        connection.execute(orders.insert())
        run = stabilize.start(order(), connection=connection)
        assert not is_known(run)
        stabilize.processor.drain(0.2)
        assert not is_known(run)
    assert counts(database) == (1, 1, 1)

    stabilize.processor.drain(30)

    assert run.status is S.SUCCEEDED


def test_a_start_in_a_transaction_that_is_rolled_back_never_happened(
    stabilize: Stabilize, database: Engine
) -> None:
    def fail() -> None:
        with database.begin() as connection:
            connection.execute(orders.insert())
            stabilize.start(order(), connection=connection)
            raise OwnError

    with pytest.raises(OwnError):
        fail()

    assert counts(database) == (0, 0, 0)
    assert stabilize.processor.drain(30) == 0
    assert stabilize.find() == []


def test_only_the_commit_sends_the_messages(stabilize: Stabilize, database: Engine) -> None:
    """Sent before the commit they would be found missing, and the start would wait for the next look."""
    with database.connect() as connection, connection.begin() as transaction:
        stabilize.start(order(), connection=connection)
        assert not stabilize.publisher.ready
        transaction.commit()
        assert len(stabilize.publisher.ready) == 1


@pytest.mark.parametrize("ends", ["commit", "rollback", "flush-then-rollback"])
def test_a_session_is_joined_too(stabilize: Stabilize, database: Engine, ends: str) -> None:
    with Session(database) as session:
        session.execute(orders.insert())
        run = stabilize.start(order(), connection=session)
        if ends == "flush-then-rollback":
            session.flush()
        if ends == "commit":
            session.commit()
        else:
            session.rollback()
    stabilize.processor.drain(30)

    if ends == "commit":
        assert run.status is S.SUCCEEDED
        assert counts(database)[:2] == (1, 1)
    else:
        assert not is_known(run)
        assert counts(database) == (0, 0, 0)


def test_a_session_that_was_rolled_back_can_be_used_again(stabilize: Stabilize, database: Engine) -> None:
    with Session(database) as session:
        lost = stabilize.start(order(), connection=session)
        session.rollback()
        kept = stabilize.start(order(), connection=session)
        session.commit()
        session.execute(orders.insert())
        session.commit()
    stabilize.processor.drain(30)

    assert not is_known(lost)
    assert kept.status is S.SUCCEEDED
    assert counts(database)[:2] == (1, 1)


def test_a_savepoint_that_is_rolled_back_takes_its_start_along(
    stabilize: Stabilize, database: Engine
) -> None:
    with database.begin() as connection:
        savepoint = connection.begin_nested()
        lost = stabilize.start(order(), connection=connection)
        savepoint.rollback()
        kept = stabilize.start(order(), connection=connection)
    stabilize.processor.drain(30)

    assert not is_known(lost)
    assert kept.status is S.SUCCEEDED


def test_something_that_is_no_connection_is_refused(stabilize: Stabilize) -> None:
    with pytest.raises(ConfigurationError, match=r"connection= takes .*, not str"):
        stabilize.start(order(), connection="postgresql://")


def test_a_second_start_with_a_key_returns_the_first_run(stabilize: Stabilize, database: Engine) -> None:
    first = stabilize.start(order(), dedup_key="order-42")
    second = stabilize.start(order(), dedup_key="order-42")
    other = stabilize.start(order(), dedup_key="order-43")
    stabilize.processor.drain(30)
    third = stabilize.start(order(), dedup_key="order-42")

    assert first == second == third
    assert other != first
    assert counts(database)[1] == 2
    assert first.status is S.SUCCEEDED


def test_of_many_starts_with_a_key_at_the_same_moment_one_counts(
    stabilize: Stabilize, database: Engine
) -> None:
    racers = 8
    for attempt in range(5):
        barrier = threading.Barrier(racers)

        def race(key: str, barrier: threading.Barrier = barrier) -> str:
            barrier.wait()
            return stabilize.start(order(), dedup_key=key).id

        with ThreadPoolExecutor(racers) as pool:
            ids = list(pool.map(race, [f"order-{attempt}"] * racers))

        assert len(set(ids)) == 1
        assert counts(database)[1] == attempt + 1


def test_a_race_with_a_transaction_that_is_not_finished_waits_for_it(
    stabilize: Stabilize, database: Engine
) -> None:
    """Whether the first counts is known when its transaction ends, not before."""
    for ends, expected in (("commit", "first"), ("rollback", "second")):
        with ThreadPoolExecutor(1) as pool, database.connect() as connection:
            transaction = connection.begin()
            first = stabilize.start(order(), connection=connection, dedup_key=ends)
            second = pool.submit(lambda key=ends: stabilize.start(order(), dedup_key=key))
            wait_until(lambda: blocked(database), 10, "the second start to wait for the first")
            getattr(transaction, ends)()
            winner = second.result(30)
        assert (winner == first) == (expected == "first")
        assert is_known(winner)


def test_many_workflows_start_in_one_transaction(stabilize: Stabilize, database: Engine) -> None:
    runs = stabilize.start_many([order() for _ in range(20)])
    assert counts(database)[1:] == (20, 20)
    stabilize.processor.drain(30)

    assert [run.status for run in runs] == [S.SUCCEEDED] * 20
    assert stabilize.start_many([]) == []


def test_many_in_the_callers_transaction_are_all_rolled_back(stabilize: Stabilize, database: Engine) -> None:
    with database.connect() as connection:
        transaction = connection.begin()
        stabilize.start_many([order() for _ in range(3)], connection=connection)
        transaction.rollback()

    assert counts(database) == (0, 0, 0)


def test_one_bad_workflow_among_many_starts_none(stabilize: Stabilize, database: Engine) -> None:
    bad = order()
    bad.stages[0].requisite_stage_ref_ids = {"nowhere"}

    with pytest.raises(ValueError, match="unknown_ref"):
        stabilize.start_many([order(), bad])

    assert counts(database) == (0, 0, 0)


def test_keys_count_among_many_too(stabilize: Stabilize, database: Engine) -> None:
    workflows = [order() for _ in range(3)]
    workflows[0].dedup_key = workflows[2].dedup_key = "same"

    runs = stabilize.start_many(workflows)

    assert runs[0] == runs[2] != runs[1]
    assert counts(database)[1] == 2


def test_messages_are_sent_when_their_rows_can_be_seen(stabilize: Stabilize, database: Engine) -> None:
    """A worker that is told of a row before the commit finds none, and hears of it again only much later."""
    seen: list[int] = []
    publish = stabilize.publisher.publish

    def look_and_publish(outgoing: list) -> None:
        seen.append(counts(database)[2])
        publish(outgoing)

    stabilize.publisher.publish = look_and_publish
    with database.begin() as connection:
        stabilize.start(order(), connection=connection)
        stabilize.start(order(), connection=connection)
    with Session(database) as session:
        stabilize.start(order(), connection=session)
        with session.begin_nested():
            session.execute(orders.insert())
        assert seen == [2, 2]
        session.commit()

    assert seen == [2, 2, 3]


def test_a_commit_that_fails_is_the_callers_error_and_sends_nothing(
    stabilize: Stabilize, database: Engine
) -> None:
    """A constraint that is checked at the commit."""
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE late (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)"))

    def start() -> None:
        with database.begin() as connection:
            connection.execute(text("INSERT INTO late VALUES (1), (1)"))
            stabilize.start(order(), connection=connection)

    with pytest.raises(IntegrityError):
        start()

    assert not stabilize.publisher.ready
    assert counts(database) == (0, 0, 0)


def test_scoped_sessions_are_sessions(stabilize: Stabilize, database: Engine) -> None:
    session = scoped_session(sessionmaker(database))
    run = stabilize.start(order(), connection=session)
    assert not is_known(run)
    session.commit()
    session.remove()
    assert is_known(run)


def test_a_session_within_a_transaction_of_tests_sends_nothing(
    stabilize: Stabilize, database: Engine
) -> None:
    """The usual way to test with a session: its commits release savepoints of a transaction that is rolled back."""
    with database.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            stabilize.start(order(), connection=session)
            session.commit()
            assert not stabilize.publisher.ready
        outer.rollback()
    assert counts(database) == (0, 0, 0)


@pytest.mark.parametrize("which", ["AsyncConnection", "AsyncSession"])
def test_asynchronous_transactions_are_joined_with_run_sync(
    stabilize: Stabilize, database: Engine, postgres_url: str, which: str
) -> None:
    async def go(ends: str) -> WorkflowRun:
        engine = create_async_engine(postgres_url)
        opened = engine.connect() if which == "AsyncConnection" else AsyncSession(engine)
        async with opened as connection:
            with pytest.raises(ConfigurationError, match="run_sync"):
                stabilize.start(order(), connection=connection)
            run = await connection.run_sync(lambda sync: stabilize.start(order(), connection=sync))
            await connection.execute(orders.insert())
            assert not stabilize.publisher.ready
            await getattr(connection, ends)()
        await engine.dispose()
        return run

    lost = asyncio.run(go("rollback"))
    assert counts(database) == (0, 0, 0)
    kept = asyncio.run(go("commit"))
    assert len(stabilize.publisher.ready) == 1
    assert counts(database) == (1, 1, 1)
    assert is_known(kept)
    assert not is_known(lost)
