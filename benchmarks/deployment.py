"""The Celery apps whose workers are measured: this engine, and plain Celery with its canvas.

Settings come from the environment, because workers are processes of their own.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, chain, chord

from stabilize_celery import Stabilize, StageExecution, Workflow

BROKER = os.environ.get("BENCH_BROKER", "memory://")
DATABASE = os.environ.get("BENCH_DATABASE", "sqlite://")
#: Value that each stage outputs, to see what data costs.
PAYLOAD = "x" * int(os.environ.get("BENCH_PAYLOAD", "0"))

engine_app = Celery("bench_engine", broker=BROKER, set_as_current=False)
engine_app.conf.update(
    worker_prefetch_multiplier=4,
    stabilize_database_url=DATABASE,
    stabilize_inline=os.environ.get("BENCH_INLINE", "1") == "1",
)
stabilize = Stabilize(engine_app)


@stabilize.task("bench")
def bench(stage: StageExecution) -> dict[str, Any]:
    return {"value": PAYLOAD}


canvas_app = Celery(
    "bench_canvas",
    broker=BROKER,
    backend=os.environ.get("BENCH_BACKEND", "db+" + DATABASE),
    set_as_current=False,
)
canvas_app.conf.update(worker_prefetch_multiplier=4, task_default_queue="canvas")


@canvas_app.task(name="bench.step")
def step(_previous: object = None) -> str:
    return PAYLOAD


def chain_workflow(stages: int) -> Workflow:
    """One stage after the other."""
    return Workflow.create(
        "bench",
        "chain",
        [
            StageExecution.single(f"s{i:06d}", "bench", requires=[f"s{i - 1:06d}"] if i else ())
            for i in range(stages)
        ],
    )


def fan_workflow(stages: int) -> Workflow:
    """A root, arms, and a join of them all."""
    arms = [f"a{i:06d}" for i in range(stages - 2)]
    return Workflow.create(
        "bench",
        "fan-out with join",
        [
            StageExecution.single("root", "bench"),
            *(StageExecution.single(arm, "bench", requires=["root"]) for arm in arms),
            StageExecution.single("z", "bench", requires=arms),
        ],
    )


def wide_workflow(stages: int) -> Workflow:
    """Stages that have nothing to do with each other."""
    return Workflow.create(
        "bench", "wide", [StageExecution.single(f"w{i:06d}", "bench") for i in range(stages)]
    )


def canvas_chain(tasks: int) -> Any:
    """The same as a Celery chain."""
    return chain(step.s() for _ in range(tasks))


def canvas_fan(tasks: int) -> Any:
    """The same as a Celery chord behind a task."""
    return chain(step.si(), chord([step.s() for _ in range(tasks - 2)], step.si()))
