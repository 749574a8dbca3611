"""Slots are never over-granted: many starts at once, on connections of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from sqlalchemy import func, select

from stabilize_celery import Stabilize, StageExecution, TaskResult, Workflow, WorkflowRun
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.persistence import tables

CONNECTIONS, STARTS, LIMIT = 8, 50, 3
CONFIG = {
    "id": "raced",
    "limitConcurrent": True,
    "maxConcurrentExecutions": LIMIT,
    "keepWaitingPipelines": True,
}


def engine_on(url: str) -> Stabilize:
    engine = Stabilize.embedded(
        url, concurrency=1, create_tables=False, resend_delay=0.2, database_pool_size=2
    )
    engine.registry.register("hold", lambda stage: TaskResult.suspend())
    engine.registry.register("work", lambda stage: {"done": True})
    return engine


@pytest.fixture
def engines(postgres_url: str) -> Iterator[list[Stabilize]]:
    """Engines with connections of their own on one database, as so many processes would be."""
    with ExitStack() as stack:
        yield [stack.enter_context(engine_on(postgres_url)) for _ in range(CONNECTIONS)]


def execution(task: str, number: int) -> Workflow:
    stages = [StageExecution.single("a", "work"), StageExecution.single("b", task, requires=["a"])]
    return Workflow.create("tests", f"w{number}", stages, config=CONFIG)


def counted(engine: Stabilize, *conditions: Any) -> int:
    with engine.store.database.begin() as connection:
        return int(
            connection.execute(
                select(func.count()).select_from(tables.workflows).where(*conditions)
            ).scalar_one()
        )


def holders(engine: Stabilize) -> int:
    return counted(engine, tables.workflows.c.holds_slot)


def running(engine: Stabilize) -> int:
    return counted(engine, tables.workflows.c.status == S.RUNNING)


def start_all(engines: list[Stabilize], task: str) -> list[WorkflowRun]:
    """Fifty starts; each engine's share is written at the same moment, then handled by all of them."""
    barrier = threading.Barrier(CONNECTIONS)

    def start(place: int) -> list[WorkflowRun]:
        engine = engines[place]
        barrier.wait()
        return [engine.start(execution(task, number)) for number in range(place, STARTS, CONNECTIONS)]

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return [run for runs in pool.map(start, range(CONNECTIONS)) for run in runs]


@contextmanager
def watched(url: str) -> Iterator[list[int]]:
    """Counts the holders as fast as it can, as another connection sees them."""
    seen: list[int] = []
    stop = threading.Event()
    engine = engine_on(url)

    def watch() -> None:
        while not stop.is_set():
            seen.append(max(holders(engine), running(engine)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
        engine.close()


def drain(engines: list[Stabilize], done: Any) -> None:
    """All engines work at the same time until ``done``."""

    def work(engine: Stabilize) -> None:
        engine.processor.drain(timeout=60, until=done)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(work, engines))
    assert done(), "the engines gave up"


def most_at_once(runs: list[WorkflowRun]) -> int:
    """How many were RUNNING at the same time, from the times in their histories."""
    moves = []
    for run in runs:
        for row in run.history():
            if row["event"] == "workflow":
                change = (row["to_status"] is S.RUNNING) - (row["from_status"] is S.RUNNING)
                moves.append((row["at"], change))
    # At the same moment, an end comes before a start.
    current = most = 0
    for _, change in sorted(moves):
        current += change
        most = max(most, current)
    return most


@pytest.mark.slow
def test_fifty_starts_at_once_never_hold_more_than_three_slots(engines: list[Stabilize]) -> None:
    with watched(engines[0].store.url) as seen:
        runs = start_all(engines, "work")
        drain(engines, lambda: all(run.ready() for run in runs))

    assert {run.status for run in runs} == {S.SUCCEEDED}
    assert max(seen) <= LIMIT
    assert max(seen) > 0, "nobody was seen holding a slot: the watcher saw nothing"
    assert most_at_once(runs) <= LIMIT
    assert holders(engines[0]) == 0


@pytest.mark.parametrize("how", ["complete", "cancel", "pause", "fail"])
def test_each_that_lets_go_lets_the_next_in(engines: list[Stabilize], how: str) -> None:
    engine = engines[0]
    runs = start_all(engines, "hold")
    total = len(runs)

    def settled(running_now: int, buffered: int) -> bool:
        suspended = (
            tables.stages.c.workflow_id == tables.workflows.c.id,
            tables.stages.c.status == S.SUSPENDED,
            tables.workflows.c.status == S.RUNNING,
        )
        return (
            counted(engine, *suspended) == running_now
            and counted(engine, tables.workflows.c.status == S.BUFFERED) == buffered
        )

    drain(engines, lambda: settled(LIMIT, total - LIMIT))
    waiting = sorted(run.id for run in runs if run.status is S.BUFFERED)
    for count in range(1, 6):
        first = next(run for run in sorted(runs, key=lambda r: r.id) if run.status is S.RUNNING)
        {
            "complete": lambda run=first: run.skip_stage("b"),
            "cancel": first.cancel,
            "pause": first.pause,
            "fail": lambda run=first: run.cancel_stage("b"),
        }[how]()
        drain(engines, lambda left=total - LIMIT - count: settled(LIMIT, left))
        assert holders(engine) == LIMIT
        promoted = waiting[count - 1]
        assert engine.get(promoted).status is S.RUNNING, "the oldest that waits comes next"


def test_resumes_race_for_one_slot(engines: list[Stabilize]) -> None:
    """Decision 12, defect 31: what was paused needs a slot again, also when many come back at once."""
    engine = engines[0]
    runs = [engine.start(execution("hold", number)) for number in range(6)]
    for run in runs:
        drain(engines, lambda run=run: run.status in (S.RUNNING, S.BUFFERED))
        run.pause()
        drain(engines, lambda run=run: run.status is S.PAUSED)
    barrier = threading.Barrier(len(runs))

    def resume(place: int) -> None:
        barrier.wait()
        engines[place].get(runs[place].id).resume()

    with watched(engine.store.url) as seen:
        with ThreadPoolExecutor(len(runs)) as pool:
            list(pool.map(resume, range(len(runs))))
        drain(
            engines,
            lambda: sorted(str(run.status) for run in runs) == ["BUFFERED"] * 3 + ["RUNNING"] * 3,
        )
    assert max(seen) <= LIMIT
