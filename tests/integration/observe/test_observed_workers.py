"""What can be seen of real workers from outside: Celery events, metrics, spans, logs."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery
from prometheus_client.parser import text_string_to_metric_families

from stabilize_celery import Stabilize, StageExecution, Workflow, WorkflowFailedError
from tests.processes import free_port, wait_until
from tests.worker import ROOT

APP = "tests.integration.observe.observed_shop"


@pytest.fixture
def engine(broker_url: str, postgres_url: str) -> Iterator[Stabilize]:
    app = Celery("shop", broker=broker_url, set_as_current=False)
    app.conf.update(stabilize_database_url=postgres_url, stabilize_tracing=True)
    engine = Stabilize(app)
    yield engine
    engine.close()
    app.close()


@pytest.fixture
def worker(
    start_worker: Callable[..., Any], broker_url: str, postgres_url: str, tmp_path: Path
) -> Callable[..., Any]:
    def start(
        *, env: dict[str, str] | None = None, options: dict[str, Any] | None = None, **conf: Any
    ) -> Any:
        values = {
            "BROKER": broker_url,
            "DATABASE": postgres_url,
            "CONF": json.dumps({"stabilize_heartbeat": 0.2, **conf}),
            "PYTHONPATH": str(ROOT),
        }
        return start_worker(APP, env={**os.environ, **values, **(env or {})}, cwd=tmp_path, **(options or {}))

    return start


def order(*stages: StageExecution) -> Workflow:
    return Workflow.create("shop", "order", list(stages))


def flow() -> Workflow:
    return order(
        StageExecution.single("pay", "charge", {"flaky": True, "card": "topsecret-card"}),
        StageExecution.single("ship", "ship", requires={"pay"}),
    )


class Listener:
    """A receiver of Celery's, as `celery events` and Flower have one."""

    def __init__(self, app: Celery) -> None:
        self.events: list[dict[str, Any]] = []
        self._connection = app.connection_for_read()
        self._ready = threading.Event()
        self._receiver = app.events.Receiver(self._connection, handlers={"*": self.events.append})
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    def _listen(self) -> None:
        with self._receiver.consumer_context() as (connection, _, _):
            self._ready.set()
            while not self._receiver.should_stop:
                try:
                    connection.drain_events(timeout=0.2)
                except TimeoutError:
                    continue

    def close(self) -> None:
        self._receiver.should_stop = True
        self._thread.join(10)
        self._connection.close()

    def of(self, group: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"].startswith(group)]


def test_events_tell_every_stage_and_every_message(engine: Stabilize, worker: Any) -> None:
    worker(
        stabilize_send_events=True,
        worker_send_task_events=True,
        options={"name": "shop@localhost"},
    )
    assert engine.app is not None
    listener = Listener(engine.app)
    run = engine.start(flow())
    run.get(timeout=60)
    with pytest.raises(WorkflowFailedError):
        engine.start(order(StageExecution.single("bad", "fail"))).get(timeout=60)
    wait_until(lambda: listener.of("task-failed"), 30, "the failure")
    wait_until(lambda: len(listener.of("stabilize-workflow-terminal")) == 1, 30, "the last event")
    wait_until(lambda: len(listener.of("stabilize-workflow-succeeded")) == 1, 30, "the last event")
    listener.close()

    ours = [event for event in listener.of("stabilize-") if event["workflow_id"] == run.id]
    stages = [
        (event["type"], event["stage"]) for event in ours if event["type"].startswith("stabilize-stage-s")
    ]
    assert stages == [
        ("stabilize-stage-started", "pay"),
        ("stabilize-stage-succeeded", "pay"),
        ("stabilize-stage-started", "ship"),
        ("stabilize-stage-succeeded", "ship"),
    ]
    started = next(event for event in ours if event["type"] == "stabilize-stage-started")
    told = {name: started[name] for name in ("application", "workflow", "stage_type", "status", "generation")}
    assert told == {
        "application": "shop",
        "workflow": "order",
        "stage_type": "charge",
        "status": "RUNNING",
        "generation": 0,
    }
    assert started["hostname"] == "shop@localhost"
    # What a task raised is told of as Celery tells it of every task, and nothing else of what users pass.
    [failed] = listener.of("task-failed")
    assert failed["exception"] == "ValueError('topsecret-error')"
    others = [event for event in listener.events if event is not failed]
    assert "topsecret" not in json.dumps(others, default=str), "events carry user data"

    # As many messages as there are handlers' turns, whether or not they went through the broker.
    names = [str(event["name"]) for event in listener.of("task-received")]
    for kind in ("StartStage", "StartTask", "RunTask", "CompleteTask", "CompleteStage", "CompleteWorkflow"):
        assert any(kind in name for name in names), f"nobody saw a {kind}"
    received = {event["uuid"] for event in listener.of("task-received")}
    assert received - {failed["uuid"]} == {event["uuid"] for event in listener.of("task-succeeded")}


def scrape(port: int) -> dict[str, dict[tuple[str, ...], float]]:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            # Prometheus writes labels in the order of their names.
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_a_worker_serves_the_metrics_of_all(engine: Stabilize, worker: Any) -> None:
    port = free_port()
    served = {"stabilize_metrics_port": port, "stabilize_metrics_address": "127.0.0.1"}
    serving = worker(**served, options={"queues": ["stabilize"]})
    # A port that is taken is no reason not to work.
    second = worker(**served, options={"queues": ["stabilize.tasks"], "arguments": ["--no-stabilize-relay"]})
    second.wait_log(f"metrics cannot be served on 127.0.0.1:{port}")
    engine.start(flow()).get(timeout=60)
    # What was scraped a moment ago answers the next scrape, too.
    wait_until(
        lambda: scrape(port).get("stabilize_workflows_total", {}).get(("shop", "order", "SUCCEEDED")) == 1,
        30,
        "the workflow to be counted",
    )
    told = scrape(port)
    assert told["stabilize_up"] == {(): 1.0}
    assert told["stabilize_stages_total"]["SUCCEEDED", "charge"] == 1
    assert told["stabilize_task_retries_total"] == {("charge",): 1.0}
    assert told["stabilize_stage_duration_seconds_count"]["SUCCEEDED", "ship"] == 1
    assert told["stabilize_relay_alive"] == {(): 1.0}
    assert told["stabilize_relay_sent_total"][()] >= 1, "the retry was due later"
    assert told["stabilize_dead_letters"] == {(): 0.0}
    assert serving.stop() == 0


def test_one_trace_across_two_workers(engine: Stabilize, worker: Any, tmp_path: Path) -> None:
    spans = tmp_path / "spans.jsonl"
    engine.app.conf.stabilize_task_routes = {"ship": "shipping"}  # type: ignore[union-attr]
    routes = {"ship": "shipping"}
    for queues in (["stabilize", "stabilize.tasks"], ["shipping"]):
        worker(
            stabilize_tracing=True,
            stabilize_task_routes=routes,
            env={"SPANS": str(spans)},
            options={"queues": queues},
        )
    run = engine.start(flow())
    run.get(timeout=60)

    def found() -> list[dict[str, Any]]:
        return [json.loads(line) for line in spans.read_text().splitlines()] if spans.exists() else []

    wait_until(lambda: len(found()) == 4, 30, "four spans")
    by_name = {span["name"]: span for span in found()}
    assert set(by_name) == {"order / pay", "order / ship", "call the carrier"}
    assert {span["context"]["trace_id"] for span in found()} == {f"0x{_number(run.id):032x}"}
    assert by_name["order / pay"]["pid"] != by_name["order / ship"]["pid"]
    assert by_name["call the carrier"]["parent_id"] == by_name["order / ship"]["context"]["span_id"]
    assert "topsecret" not in spans.read_text()


def _number(workflow_id: str) -> int:
    from ulid import ULID

    return int(ULID.from_str(workflow_id))


def test_logs_say_what_they_are_about(engine: Stabilize, worker: Any) -> None:
    running = worker(worker_task_log_format=FORMAT, worker_log_format=FORMAT, options={"name": "celery@logs"})
    run = engine.start(flow())
    run.get(timeout=60)
    task = run.workflow().stages[0].tasks[0].id
    running.wait_log(f"^{run.id} order pay {task} 1 shop charging$")
    bad = engine.start(order(StageExecution.single("bad", "fail")))
    with pytest.raises(WorkflowFailedError):
        bad.get(timeout=60)
    # Celery says it, after the engine is done; to whom it belongs is known all the same.
    running.wait_log(f"^{bad.id} order bad .* 1 celery.app.trace Task .* raised unexpected: ValueError")


FORMAT = "%(workflow_id)s %(workflow)s %(stage)s %(task_id)s %(attempt)s %(name)s %(message)s"
