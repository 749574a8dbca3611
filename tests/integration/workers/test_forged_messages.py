"""Somebody else writes to the engine's queues: it is dropped with a word in the log, and no workflow notices."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Producer
from sqlalchemy import insert, select, update

from stabilize_celery import WorkflowRun
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.persistence import tables
from stabilize_celery.persistence.rows import new_row
from tests.conformance.harness import flow, stage
from tests.integration.workers.conftest import Deploy, Deployment

UNKNOWN_ID = "0" * 26
GENERAL = {"id": "forged", "root_id": "forged", "lang": "py", "argsrepr": "()", "kwargsrepr": "{}"}

Forge = Callable[..., None]


class TouchesAFile:
    """Unpickling it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def body(*args: Any, **kwargs: Any) -> bytes:
    return json.dumps(
        [args, kwargs, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    ).encode()


@pytest.fixture
def forge(deploy: Deploy) -> Iterator[tuple[Deployment, Forge]]:
    """A deployment with one worker that accepts more than it should, and how to write to its queues."""
    deployment = deploy(accept_content=["json", "pickle", "yaml"], stabilize_relay_interval=0.1)
    # Celery would not do that as root, and here it is the point: what we accept does not depend on the app.
    deployment.environment["C_FORCE_ROOT"] = "1"
    deployment.worker()
    with Connection(deployment.broker_url) as connection, connection.channel() as channel:
        producer = Producer(channel, auto_declare=False)

        def send(
            content: bytes,
            task: str | None = "stabilize.StartStage",
            kind: str = "application/json",
            queue: str = "stabilize",
            **more: Any,
        ) -> None:
            headers = {**GENERAL, **({"task": task} if task else {}), **more}
            producer.publish(
                content,
                exchange="",
                routing_key=queue,
                headers=headers,
                content_type=kind,
                content_encoding="utf-8",
            )

        yield deployment, send


def unharmed(deployment: Deployment) -> None:
    """The worker lives, and workflows get through both of its queues."""
    assert deployment.workers[0].running
    result = deployment.engine.run(flow(stage("a"), stage("b", after=["a"])))
    assert result.status is S.SUCCEEDED


def rows_of(deployment: Deployment, run: WorkflowRun, table: Any = tables.messages) -> list[dict[str, Any]]:
    with deployment.engine.stabilize.store.database.begin() as connection:
        found = connection.execute(select(table).where(table.c.workflow_id == run.id))
        return [dict(row._mapping) for row in found]


def test_what_is_no_message_of_ours(forge: tuple[Deployment, Forge], tmp_path: Path) -> None:
    deployment, send = forge
    trace = tmp_path / "executed"
    pickled = pickle.dumps([(TouchesAFile(trace),), {}, {}])
    for queue in ("stabilize", "stabilize.tasks"):
        for task in ("stabilize.StartStage", "stabilize.RunTask"):
            send(pickled, task, "application/x-python-serialize", queue)
            send(
                b"!!python/object/apply:os.system ['touch " + str(trace).encode() + b"']",
                task,
                "application/x-yaml",
                queue,
            )
            send(pickled, task, "application/data", queue)
            send(b"\x80\x04garbage", task, queue=queue)
            send(b"[" * 100_000, task, queue=queue)
            send(b"{}", task, queue=queue)
            send(b"[1, 2, 3]", task, queue=queue)
            send(b"[[], {}]", task, queue=queue)
            send(b"null", task, queue=queue)
            send(b'{"args": 1, "kwargs": 2}', task, queue=queue)
            send(b'{"args": [], "task": "stabilize.RunTask"}', task, queue=queue)
            send(b"[[1], [2], null]", task, queue=queue)
            send(b'[["x"], {}, {"chord": 7, "callbacks": 5, "chain": "x"}]', task, queue=queue)
            send(body(UNKNOWN_ID), task, queue=queue, eta="tomorrow")
            send(body(UNKNOWN_ID), task, queue=queue, expires=[])
            send(
                body(UNKNOWN_ID), task, queue=queue, retries="many", timelimit=7, root_id=[1], group={"a": 1}
            )
            send(body(), task, queue=queue)
            send(body(UNKNOWN_ID), task, queue=queue)
            send(body(UNKNOWN_ID, "more"), task, queue=queue)
            send(body(UNKNOWN_ID, force=True), task, queue=queue)
            send(body({"id": UNKNOWN_ID}), task, queue=queue)
            send(body(["x"] * 1000), task, queue=queue)
            send(body(7), task, queue=queue)
            send(body(None), task, queue=queue)
            send(body("\0"), task, queue=queue)
            send(body("\ud800"), task, queue=queue)
            send(body("x" * 1_000_000), task, queue=queue)
            send(body("'; DROP TABLE stabilize_workflows; --"), task, queue=queue)
        send(body(UNKNOWN_ID), "stabilize.StartOrbit", queue=queue)
        send(b"not even a task", None, queue=queue)

    unharmed(deployment)
    unharmed(deployment)

    assert not trace.exists()
    output = deployment.workers[0].output
    assert "its content is 'application/x-python-serialize'" in output
    assert "its content is 'application/x-yaml'" in output
    assert "without a proper id was dropped" in output


def test_a_row_that_is_sent_to_the_entrypoint_of_the_other_kind(forge: tuple[Deployment, Forge]) -> None:
    """A control message is not run as a task, and a task's code is not skipped by handling it as a control message."""
    deployment, send = forge
    engine, store = deployment.engine, deployment.engine.stabilize.store
    deployment.workers[0].stop()
    # Two workflows whose first messages stand in the table: StartWorkflow and RunTask.
    fresh = engine.start(flow(stage("a")))
    running = engine.start(flow(stage("b")))
    engine.stabilize.dispatcher.process(rows_of(deployment, running)[0]["id"], "StartWorkflow")
    (control,), (task,) = rows_of(deployment, fresh), rows_of(deployment, running)
    assert (control["type"], task["type"]) == ("StartWorkflow", "RunTask")

    dispatcher = engine.stabilize.dispatcher
    assert dispatcher.process(control["id"], "RunTask") is False
    assert dispatcher.process(task["id"], "StartStage") is False

    assert rows_of(deployment, fresh) == [control]
    assert rows_of(deployment, running) == [task]
    assert store.head(fresh.id).status is S.NOT_STARTED
    send(body(control["id"]), "stabilize.RunTask", queue="stabilize.tasks")
    send(body(task["id"]), "stabilize.StartStage")
    deployment.worker()
    assert engine.settle(fresh).executions("a") == 1
    assert engine.settle(running).executions("b") == 1


def test_a_stale_or_foreign_row_changes_no_workflow(forge: tuple[Deployment, Forge]) -> None:
    deployment, send = forge
    engine, store = deployment.engine, deployment.engine.stabilize.store
    run = engine.start(
        flow(stage("a", "script", do=[{"return": "suspend"}, {"return": "success"}]), stage("b", after=["a"]))
    )
    engine.wait_status(run, "a", "SUSPENDED")
    before, history = run.workflow(), run.history()
    other = engine.run(flow(stage("a")))
    from stabilize_celery import messages as m

    first, second = before.stages
    place: dict[str, Any] = {"workflow_id": run.id, "stage_id": first.id}
    forged = [
        m.StartStage(**place, generation=7),
        m.CompleteStage(**place, generation=7),
        m.CompleteTask(**place, task_id=first.tasks[0].id, generation=7),
        m.RunTask(**place, task_id=first.tasks[0].id, generation=7),
        m.RunTask(**place, task_id=UNKNOWN_ID),
        m.StartStage(workflow_id=other.workflow.id, stage_id=second.id),
        m.StartTask(workflow_id=other.workflow.id, stage_id=first.id, task_id=first.tasks[0].id),
        m.CompleteStage(workflow_id=run.id, stage_id=UNKNOWN_ID),
        m.CancelWorkflow(workflow_id=UNKNOWN_ID),
    ]
    rows = [new_row(message, engine.stabilize.settings, store.now()) for message in forged]
    with store.database.begin() as connection:
        connection.execute(insert(tables.messages), rows)
    for row in rows:
        send(body(row["id"]), f"stabilize.{row['type']}", queue=row["queue"])

    engine.wait_until(lambda: not rows_of(deployment, run), 30, run)
    unharmed(deployment)

    after = run.workflow()
    assert [(s.status, s.generation, s.outputs) for s in after.stages] == [
        (s.status, s.generation, s.outputs) for s in before.stages
    ]
    assert len(run.history()) == len(history)
    assert engine.result(other.run).status is S.SUCCEEDED
    run.signal("a", "go")
    assert engine.settle(run).status is S.SUCCEEDED


@pytest.mark.parametrize(
    "damage",
    [{"type": "StartOrbit"}, {"version": 99}, {"payload": {"colour": "red"}}, {"payload": [1]}],
    ids=["unknown-type", "newer-version", "unknown-field", "list"],
)
def test_a_row_that_cannot_be_read(forge: tuple[Deployment, Forge], damage: dict[str, Any]) -> None:
    """What a newer release may know waits for it; what nobody can read ends its workflow with the reason."""
    deployment, _ = forge
    engine = deployment.engine
    run = engine.start(flow(stage("a", "script", do=[{"return": "suspend"}, {"return": "success"}])))
    engine.wait_status(run, "a", "SUSPENDED")
    store = engine.stabilize.store
    row = {
        **new_row(_task_of(run), engine.stabilize.settings, store.now()),
        "sends": 0,
        "send_at": store.now(),
        **damage,
    }
    with store.database.begin() as connection:
        connection.execute(insert(tables.messages), row)
    if "payload" in damage:
        engine.wait_until(lambda: run.status is S.TERMINAL, 30, run)
        assert "is a dead letter" in str(run.history()[-1]["reason"])
        return
    deployment.workers[0].wait_log("is put back|unregistered task", 30)
    assert run.status is S.RUNNING
    (kept,) = rows_of(deployment, run)
    assert kept["attempts"] == 0
    with store.database.begin() as connection:
        sound = {
            "type": row["type"] if "type" not in damage else "RunTask",
            "version": 1,
            "send_at": store.now(),
            "lease_owner": None,
        }
        connection.execute(update(tables.messages).values(sound))
    engine.wait_until(lambda: not rows_of(deployment, run), 30, run)
    unharmed(deployment)


def _task_of(run: WorkflowRun) -> Any:
    from stabilize_celery.messages import RunTask

    found = run.workflow().stages[0]
    return RunTask(
        workflow_id=run.id,
        stage_id=found.id,
        task_id=found.tasks[0].id,
        generation=found.generation,
        task_type="script",
    )
