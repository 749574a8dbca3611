"""Controls of a workflow that are handled out of order, late, or twice: the last one that was asked for wins."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from stabilize_celery import FakeClock, Stabilize, StageExecution, Workflow, WorkflowRun
from stabilize_celery import WorkflowStatus as S

Sent = tuple[str, str]


@pytest.fixture
def engine() -> Iterator[Stabilize]:
    """Every message is one step, and the clock stands still between them unless a test moves it."""
    engine = Stabilize.embedded("sqlite://", concurrency=1, clock=FakeClock(), inline=False)
    engine.register_workflow(
        "inner", lambda seen: Workflow.create("tests", "inner", [one("ask", "approval")])
    )
    yield engine
    engine.close()


def one(ref: str, task: str, **context: object) -> StageExecution:
    return StageExecution.single(ref, task, context)


def drain(engine: Stabilize) -> None:
    while engine.processor.step():
        pass


def nested(engine: Stabilize) -> tuple[WorkflowRun, WorkflowRun]:
    outer = engine.start(Workflow.create("tests", "outer", [one("sub", "sub_workflow", workflow="inner")]))
    drain(engine)
    return outer, engine.get(next(iter(engine.find(name="inner"))).id)


def held_back(engine: Stabilize, ask: Callable[[], None]) -> list[Sent]:
    """Let a control of the outer workflow be handled, and hold back what it sends to the inner one."""
    engine.store.clock.advance(1)
    ask()
    assert engine.processor.step()
    held = list(engine.publisher.ready)
    engine.publisher.ready.clear()
    return held


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0), (1, 0, 1)], ids=str)
def test_an_inner_workflow_follows_the_outer_one_in_whatever_order_it_is_asked(
    engine: Stabilize, order: tuple[int, ...]
) -> None:
    outer, inner = nested(engine)
    pause = held_back(engine, outer.pause)
    resume = held_back(engine, outer.resume)
    for which in order:
        engine.publisher.ready.extend((pause, resume)[which])
        drain(engine)
    assert (outer.status, inner.status) == (S.RUNNING, S.RUNNING)

    pause_again = held_back(engine, outer.pause)
    engine.publisher.ready.extend([*pause_again, *resume])
    drain(engine)
    assert (outer.status, inner.status) == (S.PAUSED, S.PAUSED)
    outer.resume()
    drain(engine)
    assert (outer.status, inner.status) == (S.RUNNING, S.RUNNING)
    assert engine.audit().problems == []


def test_a_pause_that_was_overtaken_by_a_resume_pauses_nothing(engine: Stabilize) -> None:
    run = engine.start(Workflow.create("tests", "w", [one("ask", "approval")]))
    drain(engine)
    run.pause(user="kim")
    late = engine.publisher.ready.pop()
    run.pause(user="lee")
    drain(engine)
    engine.store.clock.advance(1)
    run.resume(user="lee")
    drain(engine)
    assert run.status is S.RUNNING
    engine.publisher.ready.append(late)
    drain(engine)
    assert run.status is S.RUNNING
    refused = [event for event in run.history() if event["event"] == "refused"]
    assert [event["actor"] for event in refused] == ["kim"]


def test_a_resume_of_an_earlier_pause_ends_no_later_one(engine: Stabilize) -> None:
    run = engine.start(Workflow.create("tests", "w", [one("ask", "approval")]))
    drain(engine)
    run.pause()
    drain(engine)
    run.resume(user="kim")
    late = engine.publisher.ready.pop()
    for control in (run.resume, run.pause):
        engine.store.clock.advance(1)
        control()
        drain(engine)
    engine.publisher.ready.append(late)
    drain(engine)
    assert run.status is S.PAUSED


def test_a_person_may_pause_an_inner_workflow_alone(engine: Stabilize) -> None:
    outer, inner = nested(engine)
    inner.pause(user="kim")
    drain(engine)
    assert (outer.status, inner.status) == (S.RUNNING, S.PAUSED)
    inner.resume(user="kim")
    drain(engine)
    assert inner.status is S.RUNNING
