"""What tests say about workflows; a failure shows the whole workflow.

They look at any run, on an embedded engine or on workers, as it is now: wait for it first.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from itertools import pairwise
from typing import Any

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.run import WorkflowRun, merged_outputs, stage_errors
from stabilize_celery.suggestions import did_you_mean

_WIDTH = 110


def draw(run: WorkflowRun) -> str:
    """The workflow as a tree of its stages, with status, attempts and error of each."""
    from rich.console import Console

    from stabilize_celery.cli.tree import stage_tree

    workflow = run.workflow()
    text = StringIO()
    console = Console(file=text, width=_WIDTH, color_system=None, highlight=False)
    console.print(stage_tree(workflow, run._engine.store.now()))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def assert_status(run: WorkflowRun, status: WorkflowStatus | str) -> None:
    """Fail unless the workflow is in that status.

    Args:
        run: the workflow.
        status: such as ``WorkflowStatus.SUSPENDED`` or ``"SUSPENDED"``.

    Raises:
        AssertionError: it is in another; with its tree.
    """
    __tracebackhide__ = True
    wanted, found = _status(status), run.status
    if found is not wanted:
        raise _wrong(run, f"the workflow is {found}, not {wanted}")


def assert_succeeded(run: WorkflowRun, outputs: Mapping[str, Any] | None = None) -> None:
    """Fail unless the workflow has ended SUCCEEDED, with these merged outputs among others.

    Raises:
        AssertionError: it has not; with its tree.
    """
    __tracebackhide__ = True
    assert_status(run, WorkflowStatus.SUCCEEDED)
    if outputs is not None:
        _compare(run, "the workflow's outputs", merged_outputs(run.workflow()), outputs)


def assert_failed(run: WorkflowRun, stage: str | None = None, error: str | None = None) -> None:
    """Fail unless the workflow has ended TERMINAL.

    Args:
        run: the workflow.
        stage: the ref_id of a stage that failed (the name of a synthetic one).
        error: what its error, or that of any stage, contains.

    Raises:
        AssertionError: it is otherwise; with the workflow's tree.
    """
    __tracebackhide__ = True
    assert_status(run, WorkflowStatus.TERMINAL)
    workflow = run.workflow()
    errors = stage_errors(workflow)
    if stage is not None:
        found = _stage(run, workflow, stage)
        if not found.status.is_failure:
            raise _wrong(run, f"stage {stage} is {found.status} and has not failed")
        errors = {stage: errors.get(stage, "")}
    if error is not None and not any(error in text for text in errors.values()):
        known = "; ".join(f"{ref}: {text}" for ref, text in errors.items()) or "there is no error"
        raise _wrong(run, f"no error contains {error!r}; {known}")


def assert_stage(
    run: WorkflowRun,
    stage: str,
    *,
    status: WorkflowStatus | str | None = None,
    outputs: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
    attempts: int | None = None,
    error: str | None = None,
) -> StageExecution:
    """Fail unless a stage is as given; what is not given may be anything.

    Args:
        run: the workflow.
        stage: its ref_id, or the name of a synthetic stage.
        status: such as ``"SUCCEEDED"``.
        outputs: among its outputs.
        context: among its own context.
        attempts: of all its tasks together.
        error: what its error contains.

    Returns:
        The stage, for what else there is to say about it.

    Raises:
        AssertionError: it is otherwise, or there is no such stage; with the workflow's tree.
    """
    __tracebackhide__ = True
    workflow = run.workflow()
    found = _stage(run, workflow, stage)
    if status is not None and found.status is not _status(status):
        raise _wrong(run, f"stage {stage} is {found.status}, not {_status(status)}")
    if outputs is not None:
        _compare(run, f"the outputs of stage {stage}", found.outputs, outputs)
    if context is not None:
        _compare(run, f"the context of stage {stage}", found.context, context)
    made = sum(task.attempts for task in found.tasks)
    if attempts is not None and made != attempts:
        raise _wrong(run, f"stage {stage} took {made} attempts, not {attempts}")
    text = stage_errors(workflow).get(found.called, "")
    if error is not None and error not in text:
        raise _wrong(run, f"the error of stage {stage} is {text!r} and does not contain {error!r}")
    return found


def assert_order(run: WorkflowRun, *stages: str) -> None:
    """Fail unless each stage had ended, for the first time, before the next one started for the first time.

    Args:
        run: the workflow.
        stages: two ref_ids at least, or names of synthetic stages.

    Raises:
        AssertionError: it was otherwise, or one never started; with the workflow's tree.
    """
    __tracebackhide__ = True
    if len(stages) < 2:
        raise ValueError("an order is of two stages at least")
    workflow = run.workflow()
    names = {_stage(run, workflow, stage).id: stage for stage in stages}
    started: dict[str, int] = {}
    ended: dict[str, int] = {}
    for number, entry in enumerate(run.history()):
        if entry["event"] != "stage" or entry["stage_id"] not in names:
            continue
        name, status = names[entry["stage_id"]], entry["to_status"]
        if status is WorkflowStatus.RUNNING:
            started.setdefault(name, number)
        elif status.is_complete:
            ended.setdefault(name, number)
    for stage in stages:
        if stage not in started:
            raise _wrong(run, f"stage {stage} has not started")
    for first, then in pairwise(stages):
        if first not in ended or ended[first] > started[then]:
            happened = " < ".join(sorted(started, key=lambda name: started[name]))
            raise _wrong(
                run, f"stage {first} had not ended when {then} started; they started in the order {happened}"
            )


def _stage(run: WorkflowRun, workflow: Workflow, name: str) -> StageExecution:
    __tracebackhide__ = True
    found = [stage for stage in workflow.top_level_stages() if stage.ref_id == name]
    found = found or [stage for stage in workflow.stages if stage.name == name]
    if len(found) == 1:
        return found[0]
    known = [stage.called for stage in workflow.stages]
    problem = f"{len(found)} stages are called {name!r}"
    if not found:
        problem = f"there is no stage {name!r}{did_you_mean(name, known)}"
    raise _wrong(run, problem)


def _compare(run: WorkflowRun, what: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    __tracebackhide__ = True
    wrong = [
        f"{key!r} is {found[key]!r}, not {value!r}" if key in found else f"{key!r} is missing, not {value!r}"
        for key, value in wanted.items()
        if key not in found or found[key] != value
    ]
    if wrong:
        raise _wrong(run, f"{what}: {'; '.join(wrong)}\n  they are {dict(found)!r}")


def _wrong(run: WorkflowRun, problem: str) -> AssertionError:
    return AssertionError(f"{problem}\n\n{draw(run)}")


def _status(status: WorkflowStatus | str) -> WorkflowStatus:
    if isinstance(status, WorkflowStatus):
        return status
    if status not in WorkflowStatus.__members__:
        raise ValueError(
            f"there is no status {status!r}{did_you_mean(status, list(WorkflowStatus.__members__))}"
        )
    return WorkflowStatus[status]
