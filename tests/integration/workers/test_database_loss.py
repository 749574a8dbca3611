"""A short outage of the database: what a task did meanwhile is recorded afterwards, and not done again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stabilize_celery import WorkflowStatus as S
from stabilize_celery.persistence.schema import create_tables
from tests.conformance.harness import flow, stage
from tests.integration.workers.conftest import Deploy
from tests.services import PostgresService, choose_postgres


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresService]:
    """A database that tests may stop without disturbing others."""
    service = choose_postgres()
    service.start()
    yield service
    service.discard()


@pytest.mark.slow
def test_a_result_waits_for_the_database_to_come_back(deploy: Deploy, own_postgres: PostgresService) -> None:
    database = own_postgres.create_database("outage")
    create_tables(database)
    deployment = deploy(database=database, stabilize_lease=30.0)
    worker = deployment.worker(pool="threads", concurrency=1)
    engine = deployment.engine
    gate = engine.gate()
    run = engine.start(flow(stage("a", "script", do=[{"wait_file": gate.path}]), stage("b", after=["a"])))
    engine.wait_event(run, "a")

    own_postgres.stop()
    try:
        gate.open()
        worker.wait_log("cannot be recorded yet", 60)
    finally:
        own_postgres.start()
    engine.stabilize.store.database.dispose()
    result = engine.settle(run, 60)

    assert result.status is S.SUCCEEDED
    assert result.order() == ["a", "b"]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("told_to_stop", [False, True], ids=["it comes", "stopped"])
def test_a_worker_waits_for_its_database(
    deploy: Deploy, own_postgres: PostgresService, told_to_stop: bool
) -> None:
    """As it waits for its broker."""
    database = own_postgres.create_database(f"late_{int(told_to_stop)}")
    create_tables(database)
    own_postgres.stop()
    try:
        worker = deploy(database=database).worker(wait=False)
        worker.wait_log(
            "stabilize_celery waits for its database, and asks again in 2 s: database .* cannot be reached",
            60,
        )
        if told_to_stop:
            assert worker.stop() == 0
    finally:
        own_postgres.start()
    if not told_to_stop:
        worker.wait_ready(60)
