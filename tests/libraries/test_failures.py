"""A stage that fails is seen where the failures of Celery's tasks are: log, signal, Flower, Sentry."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from stabilize_celery import Stabilize, StageExecution, Workflow, WorkflowFailedError, WorkflowRun
from tests.integration.observe.test_observed_workers import Listener
from tests.processes import wait_until
from tests.services import PostgresService, RabbitService
from tests.worker import ROOT, WorkerProcess

SECRET = "hunter2-tr0ub4dor"
APP = "tests.libraries.failing_shop"
CONTEXTS = {"leaking": {"password": SECRET}, "slow": {"stageTimeoutMs": 3000}}
_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
#: What each type of stage is reported as: class, and part of the text.
FAILURES = {
    "lookup": ("KeyError", "'b'"),
    "returned": ("TaskError", "nothing in stock"),
    "leaking": ("RuntimeError", "the server said ***"),
    "unpicklable": ("DeclinedError", "402 no money"),
    "ignoring": ("Ignore", "not mine"),
    "rejecting": ("Reject", "not mine"),
    "slow": ("TaskTimeoutError", "timed out after"),
    "huge": ("ValueError", "xxxx"),
}


class Shop:
    """An engine, its worker, and what was heard from it."""

    def __init__(self, engine: Stabilize, listener: Listener, worker: WorkerProcess, heard: Path) -> None:
        self.engine, self.listener, self.worker, self._heard = engine, listener, worker, heard

    def heard(self, kind: str) -> list[dict[str, Any]]:
        """What its worker has written down."""
        lines = self._heard.read_text().splitlines() if self._heard.exists() else []
        return [told for told in map(json.loads, lines) if told["kind"] == kind]

    def told_of(self, runs: Iterable[WorkflowRun]) -> tuple[list[Any], list[Any], list[Any]]:
        """The signals, Sentry's events and Celery's events of some runs."""
        ids = {run.id for run in runs}
        celery = [
            event for event in self.listener.of("task-failed") if ids & set(_ID.findall(event["traceback"]))
        ]
        sentry = [told["event"] for told in self.heard("sentry")]
        return (
            [told for told in self.heard("signal") if told["workflow_id"] in ids],
            [event for event in sentry if event.get("tags", {}).get("workflow_id") in ids],
            celery,
        )

    def wait_for(self, count: int, runs: Iterable[WorkflowRun]) -> tuple[list[Any], list[Any], list[Any]]:
        """The same, once there are so many of each."""
        runs = list(runs)
        wait_until(lambda: min(map(len, self.told_of(runs))) >= count, 60, f"{count} of each kind")
        found = self.told_of(runs)
        assert [len(each) for each in found] == [count] * 3
        return found


@pytest.fixture(scope="module", params=["prefork", "threads"])
def shop(
    request: Any,
    postgres_service: PostgresService,
    postgres_template: str,
    rabbit_service: RabbitService,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shop]:
    name = f"failures_{request.param}"
    broker, database = (
        rabbit_service.add_vhost(name),
        postgres_service.create_database(name, postgres_template),
    )
    app = Celery("shop", broker=broker, set_as_current=False)
    app.conf.update(stabilize_database_url=database)
    engine = Stabilize(app)
    listener = Listener(app)
    folder = tmp_path_factory.mktemp(name)
    heard = folder / "heard.jsonl"
    conf = {"stabilize_heartbeat": 0.2, "worker_send_task_events": True, "stabilize_send_events": True}
    values = {"BROKER": broker, "DATABASE": database, "HEARD": str(heard), "CONF": json.dumps(conf)}
    worker = WorkerProcess(
        APP,
        env={**os.environ, **values, "PYTHONPATH": str(ROOT)},
        log=folder / "worker.log",
        cwd=folder,
        pool=request.param,
        name="shop@localhost",
    )
    try:
        worker.start().wait_ready(100)
        yield Shop(engine, listener, worker, heard)
    finally:
        worker.kill()
        listener.close()
    engine.close()
    app.close()
    rabbit_service.delete_vhost(name)
    postgres_service.drop_database(name)


def one(ref: str, **context: Any) -> Workflow:
    return Workflow.create("shop", "order", [StageExecution.single(ref, ref, context)])


def test_a_failed_stage_is_seen_where_failed_tasks_are(shop: Shop) -> None:
    runs = {ref: shop.engine.start(one(ref, **CONTEXTS.get(ref, {}))) for ref in FAILURES}
    for run in runs.values():
        with pytest.raises(WorkflowFailedError):
            run.get(timeout=60)
    signals, reported, flower = shop.wait_for(len(FAILURES), runs.values())
    log = shop.worker.output
    for ref, (name, text) in FAILURES.items():
        where = f"stage {ref} of workflow order ({runs[ref].id}), attempt 1"
        [told] = [told for told in signals if told["stage"] == ref]
        assert (told["sender"], told["type"], told["attempt"]) == ("stabilize.RunTask", name, 1)
        assert text in told["text"]

        [event] = [event for event in reported if event["tags"]["stage"] == ref]
        assert event["tags"]["workflow"] == "order"
        exception = event["exception"]["values"][-1]
        assert exception["type"] == name
        assert text in exception["value"]

        [failed] = [event for event in flower if where in event["traceback"]]
        assert failed["exception"].startswith(name)
        assert text in failed["exception"]
        assert len(failed["traceback"]) < 300_000
        assert name_of(failed, shop) == f"order / {ref} (RunTask)", "what Flower calls it"

        assert re.search(rf"ERROR/.* {name}\(", log)
        assert where in log
    [lookup] = [event for event in reported if event["tags"]["stage"] == "lookup"]
    assert "lookup" in [
        frame["function"] for frame in lookup["exception"]["values"][-1]["stacktrace"]["frames"]
    ]
    assert "failing_shop.py" in log
    assert SECRET not in log
    assert SECRET not in json.dumps([shop.heard("signal"), shop.listener.events], default=repr)


def name_of(event: dict[str, Any], shop: Shop) -> str:
    [received] = [each for each in shop.listener.of("task-received") if each["uuid"] == event["uuid"]]
    return str(received["name"])


def test_it_is_run_once_whatever_the_task_class_of_the_app_says(shop: Shop) -> None:
    run = shop.engine.start(one("lookup", marker="once"))
    with pytest.raises(WorkflowFailedError):
        run.get(timeout=60)
    shop.wait_for(1, [run])
    shop.engine.start(one("fine")).get(timeout=60)
    assert len([told for told in shop.heard("call") if told["workflow"] == run.id]) == 1
    assert not shop.listener.of("task-retried")
    assert not shop.listener.of("task-rejected")


def test_a_repetition_is_a_warning_and_no_failure(shop: Shop) -> None:
    run = shop.engine.start(one("flaky"))
    run.get(timeout=60)
    where = re.escape(f"stage flaky of workflow order ({run.id}), attempt 1")
    shop.worker.wait_log(rf"WARNING/.*{where} failed and is repeated in 0.05 s: TransientError: later")
    shop.engine.start(one("fine")).get(timeout=60)
    assert shop.told_of([run]) == ([], [], [])


def test_a_failure_that_the_workflow_survives_is_seen_too(shop: Shop) -> None:
    lookup = StageExecution.single("lookup", "lookup", {"continuePipelineOnFailure": True})
    fine = StageExecution.single("fine", "fine", requires={"lookup"})
    run = shop.engine.start(Workflow.create("shop", "order", [lookup, fine]))
    run.get(timeout=60)
    shop.wait_for(1, [run])
    assert [told["stage"] for told in shop.heard("call") if told["workflow"] == run.id] == ["lookup", "fine"]
