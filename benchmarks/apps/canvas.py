"""The same shapes as Celery's own canvas."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, chain, chord, group

from benchmarks.apps.engine import record
from benchmarks.shapes import CHAIN, FAN, FAN_IN, MANY, PAYLOAD, WIDE, Shape

BROKER, BACKEND = "BENCH_CANVAS_BROKER", "BENCH_CANVAS_BACKEND"


def make_app(broker: str, backend: str) -> Celery:
    """The app, for a worker or for the client."""
    made = Celery("bench_canvas", broker=broker, backend=backend, set_as_current=False)
    made.conf.update(worker_prefetch_multiplier=4, task_default_queue="canvas")

    @made.task(name="bench.step")
    def step(_previous: object = None, size: int = 0) -> str:
        return "x" * size

    @made.task(name="bench.clock", ignore_result=True)
    def clock(asked: float) -> None:
        record(asked)

    return made


def signature_of(app: Celery, shape: Shape, size: int) -> Any:
    """A canvas of so many tasks."""
    step = app.tasks["bench.step"]
    if shape is FAN:
        return chain(step.si(), chord([step.si() for _ in range(size - 2)], step.s()))
    if shape is FAN_IN:
        return chord([step.si() for _ in range(size - 1)], step.s())
    if shape is WIDE:
        return group(step.si() for _ in range(size))
    if shape in (CHAIN, MANY, PAYLOAD):
        return chain(step.s(size=shape.payload) for _ in range(size))
    raise ValueError(f"no canvas for {shape.name}")


if BROKER in os.environ:
    app = make_app(os.environ[BROKER], os.environ[BACKEND])
