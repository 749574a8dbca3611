"""Recovery while real workers run: an empty broker, poison, retention."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from stabilize_celery import Workflow
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.errors import QueueError
from stabilize_celery.persistence import tables
from tests.conformance.harness import flow, stage
from tests.integration.workers import poison_app
from tests.integration.workers.conftest import Deploy
from tests.services import RabbitService

DAY = timedelta(days=1)
#: Nothing is sent again by itself while the test runs.
PATIENT = {"stabilize_resend_delay": 600.0, "stabilize_resend_delay_max": 600.0, "stabilize_lease": 60.0}
QUEUES = ("stabilize", "stabilize.tasks")


def many(count: int) -> list[Workflow]:
    return [flow(stage("a"), stage("b", after=["a"]), stage("c", after=["a"])) for _ in range(count)]


# ------------------------------------------------------------------ rebuild


def test_refilling_sends_what_is_due_and_nothing_else(deploy: Deploy, rabbit_service: RabbitService) -> None:
    deployment = deploy(**PATIENT)
    engine, store = deployment.engine, deployment.engine.stabilize.store
    for workflow in many(4):
        engine.start(workflow)
    with store.database.begin() as connection:
        ids = list(connection.execute(tables.messages.select()).scalars())
        held, later = ids[:2]
        far = store.now() + DAY
        row = tables.messages.c.id
        connection.execute(update(tables.messages).where(row == held).values(lease_owner="x", send_at=far))
        connection.execute(update(tables.messages).where(row == later).values(due_at=far, send_at=far))
    for queue in QUEUES:
        rabbit_service.delete_queue(deployment.broker_url, queue)

    for _ in range(2):
        done = engine.stabilize.rebuild()
        assert (done.sent, done.refused) == (2, 0)

    assert rabbit_service.queue_length(deployment.broker_url, "stabilize") == 4


def test_refilling_while_workers_run_does_nothing_twice(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.two_workers()
    engine = deployment.engine
    runs = [engine.start(engine.prepare(workflow)) for workflow in many(15)]

    while not all(run.ready() for run in runs):
        engine.stabilize.rebuild()

    for run in runs:
        assert sorted(engine.settle(run, 60).order()) == ["a", "b", "c"]


def test_refilling_a_broker_that_is_down_says_so(deploy: Deploy) -> None:
    engine = deploy(broker="amqp://guest:secret@127.0.0.1:1//").engine
    engine.start(flow(stage("a")))

    with pytest.raises(QueueError, match=r"broker amqp://.*127.0.0.1:1.* cannot be reached") as refused:
        engine.stabilize.rebuild()

    assert "secret" not in str(refused.value)


# ------------------------------------------------------------------ poison


def test_a_poison_message_ends_in_the_dead_letters_and_its_workflow_can_be_saved(
    deploy: Deploy, tmp_path: Path
) -> None:
    deployment = deploy(stabilize_control_max_attempts=3)
    flag = tmp_path / "poisonous"
    flag.touch()
    deployment.environment[poison_app.FLAG] = str(flag)
    deployment.worker(app="tests.integration.workers.poison_app")
    engine, stabilize = deployment.engine, deployment.engine.stabilize
    healthy = engine.start(flow(stage("x", "approval")))

    run = engine.start(flow(stage("a"), stage("poison", after=["a"]), stage("c", after=["poison"])))
    engine.wait_until(run.ready, 60, run)

    assert run.status is S.TERMINAL
    (letter,) = stabilize.dead_letters(workflow_id=run.id)
    assert f"message {letter['id']} is a dead letter: {poison_app.ERROR}" in run.history()[-1]["reason"]
    assert poison_app.ERROR in letter["error"]["details"]["traceback"]
    assert engine.settle(run).statuses() == {"a": "SUCCEEDED", "poison": "CANCELED", "c": "NOT_STARTED"}

    flag.unlink()
    stabilize.retry_dead_letter(letter["id"])

    result = engine.wait_final(run, 60)
    assert result.status is S.SUCCEEDED
    assert result.executions("a") == 1, "what had ended before is not run again"
    assert not healthy.ready()
    assert not stabilize.audit().problems


# ------------------------------------------------------------------ retention


def test_two_prune_while_workers_run(deploy: Deploy) -> None:
    """Nothing that runs is touched, nothing is deleted twice, nobody waits for anybody."""
    deployment = deploy()
    deployment.two_workers()
    engine = deployment.engine
    old = [engine.start(engine.prepare(workflow)) for workflow in many(20)]
    for run in old:
        engine.wait_final(run, 60)
    with engine.stabilize.store.database.begin() as connection:
        long_ago = engine.stabilize.store.now() - 2 * DAY
        connection.execute(update(tables.workflows).values(end_time=long_ago))
    fresh = [engine.start(engine.prepare(workflow)) for workflow in many(20)]
    deleted: list[int] = []

    def prune() -> None:
        deleted.append(engine.stabilize.prune(DAY, batch=3).total)

    threads = [threading.Thread(target=prune) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sum(deleted) == len(old)
    assert [engine.settle(run, 60).status for run in fresh] == [S.SUCCEEDED] * len(fresh)
    assert {run.id for run in engine.stabilize.find(limit=1000)} == {run.id for run in fresh}
    assert not engine.stabilize.audit().problems
