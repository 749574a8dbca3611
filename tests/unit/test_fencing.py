"""The fencing token of a task only ever grows: another system that refuses old ones never refuses the right one."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import update

from stabilize_celery import Stabilize, StageExecution, TaskResult, TransientError, Workflow, current_run
from stabilize_celery.clock import FakeClock
from stabilize_celery.persistence.tables import messages

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


class Overtaken:
    """An engine on which another worker claims a message just before this one says that it cannot handle it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.engine = Stabilize.embedded("sqlite://", concurrency=1, clock=self.clock, lease=30.0)
        self.engine.registry.register("note", lambda: None)
        self.engine.start(Workflow.create("tests", "fencing", [StageExecution.single("a", "note")]))
        for method in ("put_back", "record_failure", "bury"):
            self._overtake(method)

    def _overtake(self, method: str) -> None:
        real = getattr(self.engine.store, method)

        def late(message_id: str, *arguments: Any, **named: Any) -> Any:
            self.clock.advance(31)
            row = self.engine.store.message(message_id)
            if row is not None and row["lease_owner"] != "another":
                self.claim_as_another(message_id)
            return real(message_id, *arguments, **named)

        setattr(self.engine.store, method, late)

    def claim_as_another(self, message_id: str) -> None:
        values = {"lease_owner": "another", "send_at": self.clock.now() + timedelta(seconds=30)}
        with self.engine.store.database.begin() as connection:
            connection.execute(
                update(messages)
                .where(messages.c.id == message_id)
                .values(**values, claims=messages.c.claims + 1, attempts=messages.c.attempts + 1)
            )

    def ready(self, type: str) -> dict[str, Any]:
        """Handle messages until one of a type is next; its row."""
        while self.engine.publisher.ready[0][1] != type:
            self.engine.processor.step()
        found = self.engine.store.message(self.engine.publisher.ready[0][0])
        assert found is not None
        return found

    def change(self, row: dict[str, Any], **values: Any) -> None:
        with self.engine.store.database.begin() as connection:
            connection.execute(update(messages).where(messages.c.id == row["id"]).values(**values))

    def assert_is_anothers(self, row: dict[str, Any], claims: int) -> None:
        found = self.engine.store.message(row["id"])
        assert found is not None, "it was taken from under the other worker"
        assert (found["lease_owner"], found["claims"], found["attempts"]) == ("another", claims, claims)
        assert found["send_at"] == self.clock.now() + timedelta(seconds=30)
        assert not self.engine.dead_letters()


@pytest.fixture
def overtaken() -> Iterator[Overtaken]:
    made = Overtaken()
    yield made
    made.engine.close()


@pytest.mark.parametrize(
    "values", [{"version": 99}, {"payload": {"unexpected": 1}}], ids=["unknown", "invalid"]
)
def test_a_claim_that_cannot_be_read_is_given_back_by_its_own_worker_alone(
    overtaken: Overtaken, values: dict[str, Any]
) -> None:
    row = overtaken.ready("RunTask")
    overtaken.change(row, **values)
    overtaken.engine.processor.step()
    overtaken.assert_is_anothers(row, claims=2)


def test_a_type_of_a_newer_release_is_not_taken_from_its_worker(overtaken: Overtaken) -> None:
    row = overtaken.ready("StartWorkflow")
    overtaken.change(row, type="RunOrbit")
    overtaken.engine.processor.step()
    overtaken.assert_is_anothers(row, claims=1)


@pytest.mark.parametrize("tries", [1, 10], ids=["tried again", "given up"])
def test_a_result_that_cannot_be_recorded_is_not_held_against_another_worker(
    overtaken: Overtaken, monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    """A handler fails: the lease may be over by the time that is written down."""
    row = overtaken.ready("RunTask")
    overtaken.change(row, attempts=tries - 1, claims=tries - 1)

    def fails(*_: Any) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(overtaken.engine.dispatcher, "_handle_in", fails)
    overtaken.engine.processor.step()
    overtaken.assert_is_anothers(row, claims=tries + 1)
