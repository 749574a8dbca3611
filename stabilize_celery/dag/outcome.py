"""What a stage and a workflow have come to, from the statuses of their parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from stabilize_celery.models.stage import Phase, StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.task import TaskExecution


@dataclass(frozen=True)
class Child:
    """A synthetic stage as far as its parent's outcome depends on it."""

    phase: Phase
    status: S
    #: It waits for a sibling that ended in a way that lets nothing follow.
    stranded: bool = False


def phase_statuses(children: Sequence[Child], phase: Phase) -> list[S]:
    """The statuses of the children of one phase; stranded ones do not count."""
    if not children:
        return []
    return [child.status for child in children if child.phase is phase and not child.stranded]


def has_failed(tasks: Sequence[TaskExecution], children: Sequence[Child], planning_failed: bool) -> bool:
    """Whether something failed that the stage did not choose to report as FAILED_CONTINUE itself.

    Only then the on-failure stages run, and the after-stages do not.
    """
    if planning_failed or any(task.failed_as not in (None, S.CANCELED) for task in tasks):
        return True
    if any(task.status in (S.TERMINAL, S.STOPPED) for task in tasks):
        return True
    parts = phase_statuses(children, Phase.BEFORE) + phase_statuses(children, Phase.AFTER)
    return S.TERMINAL in parts or S.STOPPED in parts


def stage_outcome(
    stage: StageExecution,
    children: Sequence[Child] = (),
    planning_failed: bool = False,
) -> S:
    """The status a stage has reached; RUNNING (or PAUSED, SUSPENDED) while parts of it have not ended.

    The order of the rules is that of the behaviour contract, section 3.2, with decisions 8 and 9: failures of
    after-stages map like those of tasks, and an after-stage that ends FAILED_CONTINUE makes its parent that.
    """
    if planning_failed:
        return stage.failure_status()
    before = phase_statuses(children, Phase.BEFORE)
    tasks = [task.status for task in stage.tasks]
    core = before + tasks
    if S.TERMINAL in core:
        return stage.failure_status()
    for status in (S.STOPPED, S.CANCELED, S.PAUSED, S.BUFFERED, S.SUSPENDED):
        if status in core:
            return status
    if S.FAILED_CONTINUE in before and any(c.stranded for c in children if c.phase is Phase.BEFORE):
        return S.FAILED_CONTINUE
    if not all(status.is_complete for status in core):
        return S.RUNNING
    after = phase_statuses(children, Phase.AFTER)
    if S.TERMINAL in after:
        return stage.failure_status()
    for status in (S.STOPPED, S.CANCELED):
        if status in after:
            return status
    if not all(status.is_complete for status in after):
        return S.RUNNING
    return S.FAILED_CONTINUE if S.FAILED_CONTINUE in core + after else S.SUCCEEDED


def phase_ended(children: Sequence[Child], phase: Phase) -> bool:
    """Whether every child of a phase that can still run has ended."""
    return all(status.is_complete for status in phase_statuses(children, phase))


def workflow_outcome(
    statuses: Mapping[S, int] | Collection[S], *, is_canceled: bool = False, fail_at_end: bool = False
) -> S:
    """What a workflow ends as, from the statuses of its own stages, when nothing goes on any more.

    Args:
        statuses: of the stages of the workflow itself, without synthetic ones.
        is_canceled: it was canceled by a person.
        fail_at_end: a STOPPED stage asked for ``completeOtherBranchesThenFail``.

    A workflow ends SUCCEEDED, TERMINAL or CANCELED (decision 16).
    """
    if is_canceled:
        return S.CANCELED
    if S.TERMINAL in statuses:
        return S.TERMINAL
    if S.STOPPED in statuses:
        return S.TERMINAL if fail_at_end else S.SUCCEEDED
    if S.CANCELED in statuses:
        return S.CANCELED
    return S.SUCCEEDED
