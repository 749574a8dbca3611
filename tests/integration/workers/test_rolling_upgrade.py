"""Workers of two releases on one database: what the older one cannot read waits for the newer one, and nothing is lost."""

from __future__ import annotations

from sqlalchemy import select

from stabilize_celery import WorkflowStatus as S
from stabilize_celery.persistence import tables
from tests.conformance.harness import flow, stage
from tests.integration.workers.conftest import Deploy

NEWER = "tests.integration.workers.newer_app"


def test_what_an_older_worker_cannot_read_is_done_by_a_newer_one(deploy: Deploy) -> None:
    deployment = deploy(inline=False, stabilize_resend_delay=0.5)
    engine = deployment.engine
    newer = deployment.worker(app=NEWER, queues=["stabilize"])
    first = engine.start(flow(stage("a"), stage("b", after=["a"])))
    engine.wait_status(first, "a", "RUNNING")

    older = deployment.worker()
    older.wait_log(r"is put back: message RunTask has version 2, this worker knows 1; upgrade the worker", 60)
    assert engine.result(first).order() == []
    newer_still = deployment.worker(app=NEWER)
    many = [
        engine.start(flow(stage("a"), stage("b", after=["a"]), stage("c", after=["a"]))) for _ in range(5)
    ]

    results = [engine.wait_final(run, 90) for run in (first, *many)]

    assert [result.status for result in results] == [S.SUCCEEDED] * 6
    assert all(result.executions(ref) == 1 for result in results for ref in result.statuses())
    assert all(
        task.attempts <= 1 for result in results for each in result.workflow.stages for task in each.tasks
    )
    with engine.stabilize.store.database.begin() as connection:
        assert connection.execute(select(tables.dead_letters)).all() == []
    assert "is put back" not in newer.output + newer_still.output
