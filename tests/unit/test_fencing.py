"""The fencing token of a task only ever grows: another system that refuses old ones never refuses the right one."""

from __future__ import annotations

import threading
from collections import defaultdict
from itertools import pairwise

import pytest

from stabilize_celery import Stabilize, StageExecution, TaskResult, TransientError, Workflow, current_run

Tokens = dict[str, list[int]]


@pytest.fixture
def tokens() -> Tokens:
    return defaultdict(list)


@pytest.fixture
def stabilize(tokens):
    with Stabilize.embedded(concurrency=2, retry_delay=0.01, poll_delay=0.01) as engine:

        def note() -> int:
            run = current_run()
            tokens[run.task_id].append(run.fencing_token)
            return len(tokens[run.task_id])

        def asks(stage):
            note()
            return None if "_signal_name" in stage.context else TaskResult.suspend()

        def fails_twice(stage):
            if note() < 3:
                raise TransientError("not yet")

        def polls_twice(stage):
            return TaskResult.running() if note() < 3 else None

        def jumps_twice(stage):
            return TaskResult.jump_to("first") if note() < 3 else None

        for task in (note, asks, fails_twice, polls_twice, jumps_twice):
            engine.registry.register(task.__name__, lambda stage, task=task: _called(task, stage))
        yield engine


def _called(task, stage):
    result = task(stage) if task.__name__ != "note" else task()
    return result if isinstance(result, TaskResult) else TaskResult.success()


def run(stabilize, *stages):
    return stabilize.run(Workflow.create("tests", "fencing", list(stages)), timeout=30)


def all_growing(tokens, calls):
    assert [len(each) for each in tokens.values()] == calls
    return all(old < new for each in tokens.values() for old, new in pairwise(each))


@pytest.mark.parametrize("task", ["fails_twice", "polls_twice"])
def test_it_grows_with_each_call(stabilize, tokens, task):
    run(stabilize, StageExecution.single("a", task))
    assert all_growing(tokens, [3])


def test_it_grows_over_a_suspension(stabilize, tokens):
    started = run(stabilize, StageExecution.single("a", "asks"))
    started.signal("a", "go")
    stabilize.processor.drain()
    assert all_growing(tokens, [2])


def test_it_grows_over_jumps(stabilize, tokens):
    jumping = StageExecution.single("second", "jumps_twice", requires={"first"})
    run(stabilize, StageExecution.single("first", "note"), jumping)
    assert all_growing(tokens, [3, 3])


def test_it_grows_over_a_restart(stabilize, tokens):
    started = run(stabilize, StageExecution.single("a", "note"))
    started.restart_stage("a")
    stabilize.processor.drain()
    assert all_growing(tokens, [2])


def test_it_grows_over_a_pass_that_was_given_up(tokens):
    """The worker of the pass before may still be at it, and is not to be taken for the right one."""
    begun, over = threading.Event(), threading.Event()

    def lingers(stage):
        run = current_run()
        tokens[run.task_id].append(run.fencing_token)
        if len(tokens[run.task_id]) == 1:
            begun.set()
            over.wait(30)
        return TaskResult.success()

    def jumps(stage):
        begun.wait(30)
        return TaskResult.jump_to("first") if not over.is_set() else TaskResult.success()

    def notes(stage):
        if begun.is_set():
            over.set()
        return TaskResult.success()

    with Stabilize.embedded("sqlite://", concurrency=3, heartbeat=0.05) as engine:
        for name, task in (("lingers", lingers), ("jumps", jumps), ("notes", notes)):
            engine.registry.register(name, task)
        engine.run(
            Workflow.create(
                "tests",
                "fencing",
                [
                    StageExecution.single("first", "notes"),
                    StageExecution.single("lingers", "lingers", requires={"first"}),
                    StageExecution.single("jumps", "jumps", requires={"first"}),
                ],
            ),
            timeout=30,
        )
    assert all_growing(tokens, [2])
