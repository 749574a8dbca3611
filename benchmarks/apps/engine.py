"""This engine on a Celery app."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from benchmarks.shapes import SHAPES, Shape, requires
from stabilize_celery import Stabilize, StageExecution, Workflow

BROKER, DATABASE, INLINE, RECORD = "BENCH_BROKER", "BENCH_DATABASE", "BENCH_INLINE", "BENCH_RECORD"
OUTPUTS = {shape.payload: {"value": "x" * shape.payload} for shape in SHAPES.values()}


def make_app(broker: str, database: str, *, inline: bool = True) -> tuple[Celery, Stabilize]:
    """The app, for a worker or for the client."""
    made = Celery("bench_engine", broker=broker, set_as_current=False)
    made.conf.update(worker_prefetch_multiplier=4, stabilize_database_url=database, stabilize_inline=inline)
    engine = Stabilize(made)

    @engine.task("bench")
    def bench(stage: StageExecution) -> dict[str, Any]:
        return OUTPUTS[stage.context.get("bytes", 0)]

    @engine.task("clock")
    def clock(stage: StageExecution) -> None:
        record(stage.context["asked"])

    return made, engine


def record(asked: float) -> None:
    """Note how many seconds ago somebody asked for what runs now; one clock serves all processes of the machine."""
    line = f"{time.monotonic() - asked}\n".encode()
    file = os.open(os.environ[RECORD], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line)
    finally:
        os.close(file)


def workflow_of(shape: Shape, size: int) -> Workflow:
    """A workflow of so many stages."""
    own = {"bytes": shape.payload} if shape.payload else {}
    stages = [
        StageExecution.single(
            f"s{number:06d}", "bench", dict(own), requires=[f"s{each:06d}" for each in before]
        )
        for number, before in enumerate(requires(shape, size))
    ]
    return Workflow.create("bench", shape.title, stages)


if BROKER in os.environ:
    app, stabilize = make_app(
        os.environ[BROKER], os.environ[DATABASE], inline=os.environ.get(INLINE, "1") == "1"
    )
