"""Dead letters: nothing hangs because of one, and trying it again puts everything right that it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from sqlalchemy import delete, update

from stabilize_celery import WorkflowRun
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.errors import DeadLetterError
from stabilize_celery.handlers.registry import default_handlers
from stabilize_celery.messages import MESSAGE_TYPES
from stabilize_celery.persistence.tables import messages, workflows
from tests.conformance.harness import flow, stage
from tests.integration.recovery.conftest import Bench


@contextmanager
def poison(bench: Bench, type: str) -> Iterator[None]:
    """Messages of a type cannot be handled within the block."""
    handlers: Any = bench.stabilize.dispatcher.handlers
    cls = MESSAGE_TYPES[type]

    def broken(message: object, unit: object) -> None:
        raise RuntimeError(f"{type} is broken")

    with patch.dict(handlers, {cls: default_handlers()[cls]}):
        handlers[cls].handle = broken
        yield


def bury(bench: Bench, type: str, *stages: Any, **options: Any) -> tuple[WorkflowRun, str]:
    """A workflow one of whose messages has died."""
    run = bench.stabilize.start(flow(*stages, **options))
    with poison(bench, type):
        bench.drain()
    (letter,) = bench.stabilize.dead_letters(type=type)
    return run, letter["id"]


CHAIN = (stage("a"), stage("b", after=["a"]))


@pytest.mark.parametrize(
    "type", ["StartWorkflow", "StartStage", "StartTask", "RunTask", "CompleteTask", "CompleteStage"]
)
def test_a_message_that_died_is_tried_again_and_its_workflow_goes_on(bench: Bench, type: str) -> None:
    run, letter_id = bury(bench, type, *CHAIN)
    assert run.status is S.TERMINAL
    assert f"message {letter_id} is a dead letter: {type} is broken" in run.history()[-1]["reason"]
    assert not bench.kinds()

    told = bench.stabilize.retry_dead_letter(letter_id, user="kim")

    assert told in ("its workflow goes on", "its workflow starts")
    assert not bench.kinds()
    bench.drain()
    assert run.status is S.SUCCEEDED
    assert bench.stabilize.dead_letters() == []
    assert [e["actor"] for e in run.history() if e["event"] == "revive"] == ["kim"]


def test_what_had_ended_before_the_letter_is_not_run_again(bench: Bench) -> None:
    run = bench.stabilize.start(flow(stage("a"), stage("b", after=["a"])))
    bench.until(lambda: bench.statuses(run)["b"] == "RUNNING")
    with poison(bench, "CompleteStage"):
        bench.drain()
    (letter,) = bench.stabilize.dead_letters()

    bench.stabilize.retry_dead_letter(letter["id"])
    bench.drain()

    generations = {s.ref_id: s.generation for s in run.workflow().stages}
    assert (run.status, generations) == (S.SUCCEEDED, {"a": 0, "b": 1})


def test_a_letter_of_a_synthetic_stage_lets_its_parent_begin_anew(bench: Bench) -> None:
    plan = {"before": [{"name": "check", "task": "ok"}]}
    run, letter_id = bury(bench, "ContinueParentStage", stage("a", plan=plan))

    bench.stabilize.retry_dead_letter(letter_id)
    bench.drain()

    assert bench.statuses(run) == {"a": "SUCCEEDED", "check": "SUCCEEDED"}


def test_a_signal_that_died_reaches_the_stage_in_its_new_pass(bench: Bench) -> None:
    run = bench.stabilize.start(flow(stage("ask", "approval")))
    bench.drain()
    with poison(bench, "SignalStage"):
        run.approve("ask", user="kim")
        bench.drain()
    (letter,) = bench.stabilize.dead_letters()
    assert run.status is S.TERMINAL

    bench.stabilize.retry_dead_letter(letter["id"])
    bench.drain()

    assert run.status is S.SUCCEEDED


def test_a_cancellation_that_died_cancels(bench: Bench) -> None:
    run = bench.stabilize.start(flow(stage("ask", "approval")))
    bench.drain()
    with poison(bench, "CancelWorkflow"):
        run.cancel(user="kim", reason="enough")
        bench.drain()
    (letter,) = bench.stabilize.dead_letters()

    bench.stabilize.retry_dead_letter(letter["id"])
    bench.drain()

    assert run.status is S.CANCELED


def test_a_revived_workflow_needs_a_slot_again(bench: Bench) -> None:
    config = {
        "id": "one",
        "limitConcurrent": True,
        "maxConcurrentExecutions": 1,
        "keepWaitingPipelines": True,
    }
    run, letter_id = bury(bench, "CompleteStage", stage("a"), config=config)
    other = bench.stabilize.start(flow(stage("ask", "approval"), config=config))
    bench.drain()

    bench.stabilize.retry_dead_letter(letter_id)
    bench.drain()
    assert (run.status, bench.kinds()) == (S.BUFFERED, set())

    other.approve("ask")
    bench.drain()
    assert (other.status, run.status) == (S.SUCCEEDED, S.SUCCEEDED)


def test_a_hook_that_died_is_called_again_and_its_workflow_is_left_alone(bench: Bench) -> None:
    run, letter_id = bury(bench, "RunHook", stage("a", "hooked", do=[{"return": "success"}]))
    assert run.status is S.SUCCEEDED

    assert bench.stabilize.retry_dead_letter(letter_id) == "the message was sent again"

    assert [row["id"] for row in bench.rows("RunHook")] == [letter_id]
    bench.drain()
    assert not bench.rows()
    assert run.status is S.SUCCEEDED
    assert "on_cleanup" in [event["event"] for event in run.history()]


def test_a_letter_about_no_workflow_is_sent_again(bench: Bench) -> None:
    config = {
        "id": "one",
        "limitConcurrent": True,
        "maxConcurrentExecutions": 1,
        "keepWaitingPipelines": True,
    }
    first, second = (bench.stabilize.start(flow(stage("ask", "approval"), config=config)) for _ in "12")
    bench.drain()
    with poison(bench, "StartWaitingWorkflows"):
        first.approve("ask")
        bench.drain()
    (letter,) = bench.stabilize.dead_letters()
    assert letter["workflow_id"] is None
    assert bench.kinds() == {"no message"}, "an execution waits though a slot is free"

    bench.stabilize.retry_dead_letter(letter["id"])
    bench.drain()

    assert str(second.status) == "RUNNING"


def test_a_letter_of_a_workflow_that_is_gone_can_only_be_dropped(bench: Bench) -> None:
    run, letter_id = bury(bench, "CompleteStage", stage("a"))
    bench.execute(delete(workflows).where(workflows.c.id == run.id))

    with pytest.raises(DeadLetterError, match=f"workflow {run.id}, which is not in .* drop the letter"):
        bench.stabilize.retry_dead_letter(letter_id)

    bench.stabilize.drop_dead_letter(letter_id)
    assert bench.stabilize.dead_letters() == []


def test_a_letter_that_cannot_be_read_is_not_tried_again(bench: Bench) -> None:
    run = bench.stabilize.start(flow(stage("a")))
    bench.until_sent("StartStage")
    bench.execute(update(messages).where(messages.c.type == "StartStage").values(payload={"nonsense": 1}))
    bench.drain()
    (letter,) = bench.stabilize.dead_letters(workflow_id=run.id)
    assert run.status is S.TERMINAL

    with pytest.raises(DeadLetterError, match=r"unexpected fields \['nonsense'\].*restart its workflow"):
        bench.stabilize.retry_dead_letter(letter["id"])

    assert bench.stabilize.dead_letter(letter["id"])["error"]["details"]["type"] == "InvalidMessageError"


def test_a_letter_of_a_workflow_that_has_ended_otherwise_is_kept(bench: Bench) -> None:
    run, letter_id = bury(bench, "CompleteStage", stage("a"))
    run.restart_stage("a")
    bench.drain()
    assert run.status is S.SUCCEEDED

    with pytest.raises(DeadLetterError, match="ended SUCCEEDED for another reason"):
        bench.stabilize.retry_dead_letter(letter_id)

    assert len(bench.stabilize.dead_letters()) == 1


def test_dropping_is_told_in_the_history(bench: Bench) -> None:
    run, letter_id = bury(bench, "CompleteStage", stage("a"))

    bench.stabilize.drop_dead_letter(letter_id, user="kim")

    last = run.history()[-1]
    assert (last["event"], last["actor"]) == ("letter", "kim")
    assert "(CompleteStage) was dropped" in last["reason"]
    assert run.status is S.TERMINAL


def test_a_letter_that_does_not_exist(bench: Bench) -> None:
    for verb in (
        bench.stabilize.retry_dead_letter,
        bench.stabilize.drop_dead_letter,
        bench.stabilize.dead_letter,
    ):
        with pytest.raises(DeadLetterError, match="there is no dead letter nothing in"):
            verb("nothing")


def test_letters_are_found_by_workflow_type_and_page(bench: Bench) -> None:
    ids = []
    for _ in range(3):
        run = bench.stabilize.start(flow(stage("a")))
        with poison(bench, "CompleteStage"):
            bench.drain()
        ids.append(run.id)
        bench.clock.advance(1)
    found = bench.stabilize.dead_letters()
    assert [letter["workflow_id"] for letter in found] == ids[::-1]
    assert bench.stabilize.dead_letters(limit=1) == found[:1]
    assert bench.stabilize.dead_letters(before=found[0]["id"]) == found[1:]
    assert bench.stabilize.dead_letters(workflow_id=ids[1]) == [found[1]]
    assert bench.stabilize.dead_letters(type="StartStage") == []
