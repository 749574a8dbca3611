"""How long a task is put off that no worker knows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from stabilize_celery import Stabilize, StageExecution, Workflow, WorkflowStatus
from stabilize_celery.clock import FakeClock
from stabilize_celery.persistence.rows import last_failure
from stabilize_celery.tasks.outcome import Verdict
from stabilize_celery.worker.limits import unknown

ERROR = LookupError("no such type")


def test_the_delays_double_to_a_minute_and_the_grace_counts_from_the_first_try() -> None:
    failed = {"details": {"error": "an attempt before"}}
    row: dict[str, Any] = {"last_error": failed}
    now = datetime(2030, 1, 1, tzinfo=UTC)
    delays = []
    while (outcome := unknown(ERROR, row, 300.0, now)).verdict is Verdict.PUT_OFF:
        delays.append(outcome.delay)
        row = {"last_error": outcome.error}
        assert last_failure(row) == failed
        now += timedelta(seconds=outcome.delay)

    assert delays == [2, 4, 8, 16, 32, 60, 60, 60, 58]
    assert outcome.unmapped
    assert outcome.reason == "no such type"


def test_without_other_workers_it_fails_at_once() -> None:
    with Stabilize.embedded(clock=FakeClock(), concurrency=1, check_types=False) as engine:
        begun = engine.store.now()
        run = engine.run(Workflow.create("shop", "order", [StageExecution.single("pay", "charge")]))

        assert run.status is WorkflowStatus.TERMINAL
        assert engine.store.now() == begun
        assert run.workflow().stages[0].context["error"] == "No task found for type: charge"
