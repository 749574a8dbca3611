"""Prune and a control of what it deletes: the control finds the workflow, or is refused; it is never lost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, update

from stabilize_celery import Stabilize, WorkflowRun
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.errors import WorkflowNotFoundError
from stabilize_celery.persistence import tables
from tests.concurrency.aftermath import check
from tests.concurrency.stage_hands import Action, Scene, this_contender
from tests.conformance.harness import flow, stage

DAY = timedelta(days=1)


def ended_long_ago(scene: Scene, *stages: Any) -> WorkflowRun:
    run = scene.start(flow(*(stages or (stage("a"), stage("b", after=["a"])))))
    assert run.ready()
    workflows = tables.workflows
    scene.execute(
        update(workflows).where(workflows.c.id == run.id).values(end_time=scene.engine.store.now() - 2 * DAY)
    )
    return run


def held_before(part: str, action: Action) -> Action:
    """The action, held where its engine is about to execute a statement with that in it."""

    def act(engine: Stabilize) -> Any:
        def reached(connection: Any, cursor: Any, sql: str, *_: Any) -> None:
            if part in sql and not this_contender().held.is_set():
                this_contender().hold()

        event.listen(engine.store.database.engine, "before_cursor_execute", reached)
        return action(engine)

    return act


def held_in_commit_of_order(action: Action) -> Action:
    """The action, held where the message it sends is written and not committed."""

    def act(engine: Stabilize) -> Any:
        insert = engine.store.insert_order

        def insert_and_hold(row: dict[str, Any]) -> None:
            event.listen(engine.store.database.engine, "commit", lambda _: this_contender().hold())
            insert(row)

        engine.store.insert_order = insert_and_hold  # type: ignore[method-assign]
        return action(engine)

    return act


def prune(engine: Stabilize) -> int:
    return engine.prune(DAY).total


def restart_of(run: WorkflowRun) -> Action:
    return lambda engine: engine.get(run.id).restart_stage("a", user="ann")


def test_a_restart_meets_the_deletion_of_its_workflow(scene: Scene) -> None:
    run = ended_long_ago(scene)
    pruning = scene.contender(held_before("DELETE FROM", prune))
    pruning.until_held()
    restart = scene.contender(restart_of(run)).until_stuck()
    assert restart.waited, "it was written beside the deletion"
    pruning.join()
    with pytest.raises(WorkflowNotFoundError):
        restart.join()
    assert pruning.result == 1
    assert scene.messages() == []


def test_a_restart_that_is_being_written_keeps_its_workflow(scene: Scene) -> None:
    run = ended_long_ago(scene)
    restart = scene.contender(held_in_commit_of_order(restart_of(run))).until_held()
    pruning = scene.contender(prune).join()
    restart.join()
    assert pruning.result == 0
    scene.proceed()
    assert run.status is S.SUCCEEDED
    assert sum(row["event"] == "workflow" and row["to_status"] is S.SUCCEEDED for row in run.history()) == 2
    check(scene, run)


def test_a_restart_between_the_looks_of_prune(scene: Scene) -> None:
    """It was written after prune has looked, and before it locks: the second look sees it."""
    run = ended_long_ago(scene)
    pruning = scene.contender(held_before("SKIP LOCKED", prune)).until_held()
    restart_of(run)(scene.engine)
    assert pruning.join().result == 0
    scene.proceed()
    assert run.status is S.SUCCEEDED


def test_prune_that_was_chosen_to_end_a_deadlock_tries_again(scene: Scene) -> None:
    """It locks the workflow, another transaction a dead letter of it, and each wants what the other one has."""
    run = ended_long_ago(scene)
    letters, workflows = tables.dead_letters, tables.workflows
    scene.execute(
        letters.insert().values(
            id="letter", type="CompleteStage", workflow_id=run.id, label="", row={}, error={}, attempts=1,
            died_at=scene.engine.store.now(),
        )
    )  # fmt: skip

    def rival(engine: Stabilize) -> None:
        with engine.store.database.begin() as connection:
            connection.exec_driver_sql("SET LOCAL deadlock_timeout = '1h'")
            connection.execute(update(letters).values(attempts=2))
            this_contender().hold()
            connection.execute(update(workflows).values(name="seen"))

    other = scene.contender(rival).until_held()
    pruning = scene.contender(held_before("DELETE FROM", prune)).until_held()
    pruning.let_go()
    scene.until(lambda: scene.waits(pruning.backend))
    other.join()
    assert pruning.join().result == 1
    assert scene.deadlocks() == 1
