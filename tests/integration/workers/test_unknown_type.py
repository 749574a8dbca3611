"""A worker that does not know a task type leaves the task to one that does, and not for ever."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from sqlalchemy import select

from stabilize_celery import Stabilize, WorkflowRun
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.persistence.rows import UNKNOWN
from stabilize_celery.persistence.tables import messages
from tests.conformance.harness import flow, stage
from tests.integration.workers.conftest import Deploy
from tests.worker import WorkerProcess

NEWER = """\
from tests.conformance.behaviours import record
from tests.conformance.deployment import app, stabilize

@stabilize.task("newest")
def newest(stage):
    record(stage, "start")
    return {"by": "the new release"}

@app.task(name="conformance.newest", shared=False)
def celery_newest():
    return "by the new release"
"""


def warnings(worker: WorkerProcess) -> list[str]:
    return [line for line in worker.output.splitlines() if "WARNING" in line and "does not know" in line]


def test_a_task_waits_for_a_worker_that_knows_its_type(deploy: Deploy, tmp_path: Path) -> None:
    (tmp_path / "newer.py").write_text(NEWER)
    deployment = deploy(stabilize_unknown_type_grace=60)
    engine, environment = deployment.engine, deployment.environment
    old = deployment.worker(pool="prefork")

    runs = [engine.start(flow(stage("a", "newest"))) for _ in range(3)]
    old.wait_log("task type 'newest'")
    engine.wait_until(lambda: all(len(_told(run)) == 2 for run in runs))
    row = _row(engine.stabilize, runs[0])
    assert row["attempts"] == 0
    since = row["last_error"][UNKNOWN]["since"]
    old.stop()
    old.start().wait_ready()
    engine.wait_until(lambda: len(_told(runs[0])) == 3)
    assert len(warnings(old)) == 1, "once per type and minute"
    mark = _row(engine.stabilize, runs[0])["last_error"][UNKNOWN]
    assert (mark["since"], mark["before"]) == (since, None)
    old.stop()

    environment["CONFORMANCE_MORE"] = '{"stabilize_imports": ["newer"]}'
    deployment.worker(cwd=tmp_path)
    results = [engine.wait_final(run, 90) for run in runs]

    for result in results:
        assert result.status is S.SUCCEEDED
        assert result.stage("a").outputs == {"by": "the new release"}
        assert result.stage("a").tasks[0].attempts == 1, "not to know it is no attempt"


def test_a_celery_task_waits_for_a_worker_that_knows_it(deploy: Deploy, tmp_path: Path) -> None:
    (tmp_path / "newer.py").write_text(NEWER)
    deployment = deploy(stabilize_unknown_type_grace=60)
    engine, environment = deployment.engine, deployment.environment
    deployment.worker(queues=["stabilize", "stabilize.tasks"])
    old = deployment.worker(queues=["celery"])

    run = engine.start(flow(stage("a", "celery", context={"task": "conformance.newest"})))
    old.wait_log("does not know Celery task conformance.newest")
    engine.wait_until(lambda: bool(_told(run)))
    old.stop()
    environment["CONFORMANCE_MORE"] = '{"stabilize_imports": ["newer"]}'
    deployment.worker(cwd=tmp_path, queues=["celery"])
    result = engine.settle(run, 60)

    assert result.stage("a").outputs == {"result": "by the new release"}
    assert result.stage("a").tasks[0].attempts == 1


def test_it_fails_in_the_end_with_what_to_do(deploy: Deploy) -> None:
    deployment = deploy(stabilize_unknown_type_grace=2.5)
    deployment.worker()

    run = deployment.engine.start(flow(stage("a", "newest")))
    result = deployment.engine.wait_final(run, 30)

    error = result.error("a")
    assert result.statuses() == {"a": "TERMINAL"}
    assert error.startswith("No task found for type: newest. Worker ")
    assert f"{socket.gethostname()}:" in error
    assert "within 2.5 s" in error
    assert "stabilize_imports" in error
    first, last = [entry["details"]["delay"] for entry in _told(run)]
    assert first == 2.0
    assert last <= 0.5


def _told(run: WorkflowRun) -> list[dict[str, Any]]:
    return [entry for entry in run.history() if entry["event"] == "unknown_type"]


def _row(stabilize: Stabilize, run: WorkflowRun) -> dict[str, Any]:
    """The one message of a workflow."""
    with stabilize.store.database.begin() as connection:
        return dict(
            connection.execute(select(messages).where(messages.c.workflow_id == run.id)).one()._mapping
        )
