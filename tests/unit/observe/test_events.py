"""Celery events never stand in the way of the engine."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery

from stabilize_celery.delivery import events
from stabilize_celery.delivery.dispatcher import Handled
from stabilize_celery.delivery.events import EventSender
from stabilize_celery.messages import CompleteStage
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.observe import Transition

ENDED = Transition(
    "stage", "W", "shop", "order", WorkflowStatus.RUNNING, WorkflowStatus.FAILED_CONTINUE, datetime.now(UTC),
    reason="the card 4111", stage_id="S", stage_ref="pay", details={"card": "4111"},
)  # fmt: skip


@pytest.fixture
def app() -> Celery:
    return Celery("shop", broker="amqp://127.0.0.1:1//", set_as_current=False)


def test_what_an_event_says(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(EventSender, "_send", lambda self, kind, host, fields: sent.append((kind, fields)))
    sender = EventSender(app)
    sender.send_transitions([ENDED])
    message = CompleteStage(workflow_id="W", stage_id="S", generation=0)
    sender.send_handled([Handled(message, "order / pay", 0.25)])
    sender.close()
    (kind, fields), *as_task = sent
    assert kind == "stabilize-stage-failed-continue"
    assert {**fields, "timestamp": 0} == {
        "application": "shop",
        "workflow_id": "W",
        "workflow": "order",
        "stage_id": "S",
        "stage": "pay",
        "generation": 0,
        "old_status": "RUNNING",
        "status": "FAILED_CONTINUE",
        "timestamp": 0,
    }
    assert [kind for kind, _ in as_task] == ["task-received", "task-started", "task-succeeded"]
    assert {fields["uuid"] for _, fields in as_task} == {as_task[0][1]["uuid"]}
    assert as_task[0][1]["name"] == "order / pay (CompleteStage)"
    assert as_task[2][1]["runtime"] == 0.25


def test_a_broker_that_is_away_costs_only_events(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    tried, go_on = threading.Event(), threading.Event()

    def away(*_: Any) -> None:
        tried.set()
        assert go_on.wait(30)
        raise OSError

    monkeypatch.setattr(EventSender, "_send", away)
    monkeypatch.setattr(events, "_PAUSE", 0.0)
    monkeypatch.setattr(events, "_MOST", 3)
    sender = EventSender(app)
    sender.send_transitions([ENDED])
    assert tried.wait(30)
    sender.send_transitions([ENDED] * 10)
    assert sender._waiting.qsize() == 3
    go_on.set()
    thread = sender._thread
    sender.close(timeout=30)
    assert thread is not None
    assert not thread.is_alive()
