"""The app that the Flower and the worker of these tests are started with."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery

from stabilize_celery import (
    Stabilize,
    StageDefinitionBuilder,
    StageExecution,
    SyntheticStageOwner,
    TaskExecution,
    TaskResult,
    TransientError,
)

BROKER, DATABASE = "PAGE_BROKER_URL", "PAGE_DATABASE_URL"


class DeployBuilder(StageDefinitionBuilder):
    """A stage with something inside, before and after."""

    def build_tasks(self, stage: StageExecution) -> list[TaskExecution]:
        return [TaskExecution.create("Deploy", "give")]

    def before_stages(self, stage: StageExecution, graph: Any) -> None:
        graph.add(_inside(stage, "Check", SyntheticStageOwner.STAGE_BEFORE))

    def after_stages(self, stage: StageExecution, graph: Any) -> None:
        graph.add(_inside(stage, "Notify", SyntheticStageOwner.STAGE_AFTER))


def _inside(stage: StageExecution, name: str, owner: SyntheticStageOwner) -> StageExecution:
    tasks = [TaskExecution.create(name, "give")]
    return StageExecution.create_synthetic("check", name, stage, owner, tasks=tasks)


def give(given: dict[str, Any] | None = None) -> dict[str, Any]:
    return given or {}


def gate(gate: str) -> dict[str, Any]:
    """Ends when the test makes that file."""
    end = time.monotonic() + 120
    while not Path(gate).exists() and time.monotonic() < end:
        time.sleep(0.02)
    return {"passed": True}


def fail(message: str = "by design") -> None:
    raise ValueError(message)


def flaky(stage: StageExecution, again: bool = True) -> dict[str, Any]:
    if again:
        raise TransientError("rate limited", context_update={"again": False})
    return {"rows": 7}


def jump_back(draft: int = 0) -> Any:
    return TaskResult.jump_to("write", context={"previous": draft}) if draft < 2 else {"accepted": draft}


def write(previous: int = 0) -> dict[str, Any]:
    return {"draft": previous + 1}


def make_app(broker: str, database: str) -> tuple[Celery, Stabilize]:
    """The app, with the engine and every task type on it."""
    made = Celery("shop", broker=broker, set_as_current=False)
    made.conf.update(
        stabilize_database_url=database,
        stabilize_retry_delay=0.05,
        stabilize_relay_interval=0.2,
        stabilize_heartbeat=0.2,
        stabilize_lease=10.0,
        stabilize_redact_keys=("password", "card"),
        broker_connection_retry_on_startup=True,
        worker_send_task_events=True,
    )
    engine = Stabilize(made)
    for task in (give, gate, fail, flaky, jump_back, write):
        engine.registry.register(task.__name__, task)
    engine.register_builder(DeployBuilder())
    return made, engine


if BROKER in os.environ:
    app, stabilize = make_app(os.environ[BROKER], os.environ[DATABASE])
