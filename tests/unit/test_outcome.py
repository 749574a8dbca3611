"""What a stage and a workflow have come to: the behaviour contract, sections 3.1, 3.2 and 3.4."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from stabilize_celery.dag.outcome import (
    Child,
    has_failed,
    phase_ended,
    phase_statuses,
    stage_outcome,
    workflow_outcome,
)
from stabilize_celery.models.stage import Phase, StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.task import TaskExecution

CONTINUE = {"continuePipelineOnFailure": True}
STOP = {"failPipeline": False}


def stage_of(statuses: str, **context: Any) -> StageExecution:
    """A stage whose tasks have these statuses."""
    tasks = [TaskExecution(name=name, status=S[name]) for name in statuses.split()]
    return StageExecution(ref_id="s", status=S.RUNNING, tasks=tasks, context=context)


def children_of(phase: Phase, statuses: str) -> list[Child]:
    """Children of a phase; a status with a star is stranded."""
    return [Child(phase, S[s.rstrip("*")], stranded=s.endswith("*")) for s in statuses.split()]


@pytest.mark.parametrize(
    ("before", "tasks", "after", "context", "outcome"),
    [
        # Nothing at all, and nothing but success.
        ("", "", "", {}, "SUCCEEDED"),
        ("", "SUCCEEDED SKIPPED", "", {}, "SUCCEEDED"),
        ("SUCCEEDED", "SUCCEEDED", "SUCCEEDED", {}, "SUCCEEDED"),
        # Going on.
        ("", "SUCCEEDED NOT_STARTED", "", {}, "RUNNING"),
        ("", "RUNNING", "", {}, "RUNNING"),
        ("RUNNING", "NOT_STARTED", "", {}, "RUNNING"),
        ("", "SUCCEEDED", "NOT_STARTED", {}, "RUNNING"),
        ("", "SUCCEEDED", "SUCCEEDED RUNNING", {}, "RUNNING"),
        # Waiting.
        ("", "SUSPENDED NOT_STARTED", "", {}, "SUSPENDED"),
        ("", "PAUSED NOT_STARTED", "", {}, "PAUSED"),
        # A failure of the core, under each policy.
        ("", "SUCCEEDED TERMINAL SKIPPED", "", {}, "TERMINAL"),
        ("", "TERMINAL", "", CONTINUE, "FAILED_CONTINUE"),
        ("", "TERMINAL", "", {"continuePipeline": True}, "FAILED_CONTINUE"),
        ("", "TERMINAL", "", STOP, "STOPPED"),
        ("", "TERMINAL", "", CONTINUE | STOP, "FAILED_CONTINUE"),
        ("TERMINAL", "NOT_STARTED", "", {}, "TERMINAL"),
        ("TERMINAL", "NOT_STARTED", "", CONTINUE, "FAILED_CONTINUE"),
        # What a task says itself is not mapped.
        ("", "STOPPED SKIPPED", "", CONTINUE, "STOPPED"),
        ("", "CANCELED STOPPED", "", {}, "STOPPED"),
        ("", "CANCELED SKIPPED", "", CONTINUE, "CANCELED"),
        ("", "FAILED_CONTINUE SUCCEEDED", "", {}, "FAILED_CONTINUE"),
        ("FAILED_CONTINUE", "SUCCEEDED", "", {}, "FAILED_CONTINUE"),
        # A failure beats what is still going on.
        ("TERMINAL RUNNING", "NOT_STARTED", "", {}, "TERMINAL"),
        ("STOPPED", "NOT_STARTED", "", {}, "STOPPED"),
        # Decision 8: after-stages map like tasks.
        ("", "SUCCEEDED", "TERMINAL", {}, "TERMINAL"),
        ("", "SUCCEEDED", "TERMINAL", CONTINUE, "FAILED_CONTINUE"),
        ("", "SUCCEEDED", "TERMINAL", STOP, "STOPPED"),
        ("", "SUCCEEDED", "FAILED_CONTINUE", {}, "FAILED_CONTINUE"),
        ("", "SUCCEEDED", "STOPPED", {}, "STOPPED"),
        ("", "SUCCEEDED", "CANCELED", {}, "CANCELED"),
        # Scenarios 44 and 45: a chained sibling that can never run is not waited for.
        ("FAILED_CONTINUE NOT_STARTED*", "NOT_STARTED", "", {}, "FAILED_CONTINUE"),
        ("", "SUCCEEDED", "FAILED_CONTINUE NOT_STARTED*", {}, "FAILED_CONTINUE"),
        ("FAILED_CONTINUE NOT_STARTED", "NOT_STARTED", "", {}, "RUNNING"),
    ],
)
def test_what_a_stage_has_come_to(
    before: str, tasks: str, after: str, context: dict[str, Any], outcome: str
) -> None:
    children = children_of(Phase.BEFORE, before) + children_of(Phase.AFTER, after)

    assert str(stage_outcome(stage_of(tasks, **context), children)) == outcome


@pytest.mark.parametrize(
    "result", ["SUCCEEDED", "TERMINAL", "STOPPED", "CANCELED", "RUNNING", "FAILED_CONTINUE"]
)
def test_on_failure_stages_change_nothing(result: str) -> None:
    """Decision 9: they never turn a failure into a success, whatever becomes of them."""
    children = children_of(Phase.ON_FAILURE, result)

    assert stage_outcome(stage_of("TERMINAL"), children) is S.TERMINAL
    assert stage_outcome(stage_of("TERMINAL", **CONTINUE), children) is S.FAILED_CONTINUE


@pytest.mark.parametrize(
    ("context", "outcome"), [({}, S.TERMINAL), (CONTINUE, S.FAILED_CONTINUE), (STOP, S.STOPPED)]
)
def test_a_stage_that_could_not_be_planned_has_failed(context: dict[str, Any], outcome: S) -> None:
    assert stage_outcome(stage_of("NOT_STARTED", **context), planning_failed=True) is outcome


def test_the_policy_is_read_from_the_stages_own_context() -> None:
    stage = stage_of("TERMINAL")
    stage._own_context, stage.context = stage.context, {**CONTINUE}

    assert stage_outcome(stage) is S.TERMINAL


@pytest.mark.parametrize(
    ("tasks", "failed_as", "children", "planning_failed", "failed"),
    [
        ("SUCCEEDED", None, [], False, False),
        ("TERMINAL", S.TERMINAL, [], False, True),
        ("STOPPED", None, [], False, True),
        # Mapped by the policy of the stage: it failed all the same.
        ("FAILED_CONTINUE", S.TERMINAL, [], False, True),
        # The task's own choice.
        ("FAILED_CONTINUE", None, [], False, False),
        ("FAILED_CONTINUE", S.CANCELED, [], False, False),
        ("CANCELED", None, [], False, False),
        ("NOT_STARTED", None, children_of(Phase.BEFORE, "TERMINAL"), False, True),
        ("SUCCEEDED", None, children_of(Phase.AFTER, "STOPPED"), False, True),
        ("SUCCEEDED", None, children_of(Phase.AFTER, "FAILED_CONTINUE"), False, False),
        ("TERMINAL", None, children_of(Phase.ON_FAILURE, "TERMINAL"), False, True),
        ("SUCCEEDED", None, children_of(Phase.ON_FAILURE, "TERMINAL"), False, False),
        ("SUCCEEDED", None, [], True, True),
    ],
)
def test_when_the_on_failure_stages_run(
    tasks: str, failed_as: S | None, children: list[Child], planning_failed: bool, failed: bool
) -> None:
    stage = stage_of(tasks)
    stage.tasks[0].failed_as = failed_as

    assert has_failed(stage.tasks, children, planning_failed) is failed


def test_a_phase_has_ended_when_all_that_can_still_run_has() -> None:
    children = children_of(Phase.BEFORE, "SUCCEEDED NOT_STARTED*") + children_of(Phase.AFTER, "RUNNING")

    assert phase_ended(children, Phase.BEFORE)
    assert not phase_ended(children, Phase.AFTER)
    assert phase_ended(children, Phase.ON_FAILURE)
    assert phase_statuses(children, Phase.BEFORE) == [S.SUCCEEDED]


@pytest.mark.parametrize(
    ("statuses", "options", "outcome"),
    [
        ("SUCCEEDED SKIPPED FAILED_CONTINUE", {}, S.SUCCEEDED),
        ("SUCCEEDED TERMINAL CANCELED NOT_STARTED", {}, S.TERMINAL),
        ("STOPPED SUCCEEDED NOT_STARTED", {}, S.SUCCEEDED),
        ("STOPPED SUCCEEDED", {"fail_at_end": True}, S.TERMINAL),
        ("SUCCEEDED CANCELED", {}, S.CANCELED),
        ("STOPPED CANCELED", {}, S.SUCCEEDED),
        ("SUCCEEDED SUCCEEDED", {"is_canceled": True}, S.CANCELED),
        ("TERMINAL CANCELED", {"is_canceled": True}, S.CANCELED),
        ("SUCCEEDED", {"fail_at_end": True}, S.SUCCEEDED),
    ],
)
def test_what_a_workflow_has_come_to(statuses: str, options: dict[str, bool], outcome: S) -> None:
    listed = [S[name] for name in statuses.split()]

    assert workflow_outcome(listed, **options) is outcome
    assert workflow_outcome(Counter(listed), **options) is outcome
