"""The signal of a workflow that has ended."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.contrib.django.models import Workflow as WorkflowModel
from stabilize_celery.contrib.django.signals import workflow_ended


@pytest.fixture
def ends(stabilize: Stabilize) -> Iterator[list[dict[str, Any]]]:
    """What a receiver was told, and what it saw in the database then."""
    told: list[dict[str, Any]] = []

    def note(**given: Any) -> None:
        given.pop("signal")
        told.append({**given, "seen": WorkflowModel.objects.get(id=given["workflow_id"]).status})

    workflow_ended.connect(note)
    yield told
    workflow_ended.disconnect(note)


def workflow(*types: str) -> Workflow:
    stages = [StageExecution.single(str(i), type_) for i, type_ in enumerate(types)]
    return Workflow.create("shop", "order", stages)


def test_each_end_is_told_once_after_its_commit(stabilize: Stabilize, ends: list[dict[str, Any]]) -> None:
    good = stabilize.run(workflow("noop", "noop"), timeout=60)
    bad = stabilize.run(workflow("noop", "fail"), timeout=60)

    assert [(e["workflow_id"], e["status"], e["seen"]) for e in ends] == [
        (good.id, S.SUCCEEDED, "SUCCEEDED"),
        (bad.id, S.TERMINAL, "TERMINAL"),
    ]
    assert {(e["application"], e["name"], e["sender"]) for e in ends} == {("shop", "order", WorkflowModel)}
    assert ends[0]["ended_at"] == stabilize.store.history(good.id)[-1]["at"]
    assert ends[0]["reason"] == ""


def test_a_cancellation_is_an_end_with_a_reason(stabilize: Stabilize, ends: list[dict[str, Any]]) -> None:
    run = stabilize.run(workflow("approval"), timeout=60)
    run.cancel(user="kim", reason="changed my mind")
    stabilize.processor.drain(60)

    assert [(e["status"], "changed my mind" in e["reason"]) for e in ends] == [(S.CANCELED, True)]


def test_a_receiver_that_fails_stops_nobody(
    stabilize: Stabilize, ends: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: Any) -> None:
        raise ValueError("a receiver's own")

    workflow_ended.connect(fail)
    try:
        with caplog.at_level(logging.ERROR):
            run = stabilize.run(workflow("noop"), timeout=60)
    finally:
        workflow_ended.disconnect(fail)

    assert run.status is S.SUCCEEDED
    assert len(ends) == 1
    assert "a receiver's own" in caplog.text
