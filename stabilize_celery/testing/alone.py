"""One stage alone: a workflow in which stand-ins take the place of everything before it."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy, deepcopy
from typing import Any

from stabilize_celery.models.ids import new_id
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.result import TaskResult

#: The task type of the stand-ins.
GIVEN = "stabilize.testing.given"


class GivenTask(Task):
    """Puts out what the test gave it."""

    def execute(self, stage: StageExecution) -> TaskResult:
        return TaskResult.success(outputs=stage.own_context["outputs"])


def workflow_around(
    stage: StageExecution | str,
    context: Mapping[str, Any] | None,
    upstream: Mapping[str, Mapping[str, Any]],
    workflow_context: Mapping[str, Any] | None,
) -> Workflow:
    """A workflow of one stage and what comes before it; see :meth:`StabilizeForTests.run_stage`."""
    alone = StageExecution.single(stage, stage) if isinstance(stage, str) else _fresh(stage)
    alone.context.update(deepcopy(dict(context or {})))
    directly = sorted(alone.requisite_stage_ref_ids or upstream)
    earlier = sorted(upstream.keys() - set(directly))
    alone.requisite_stage_ref_ids = set(directly)

    def given(ref_id: str, requires: list[str]) -> StageExecution:
        return StageExecution.single(ref_id, GIVEN, {"outputs": dict(upstream.get(ref_id, {}))}, requires)

    before = [given(ref, []) for ref in earlier] + [given(ref, earlier) for ref in directly]
    return Workflow.create("tests", f"only {alone.ref_id}", [*before, alone], context=workflow_context)


def _fresh(stage: StageExecution) -> StageExecution:
    """A copy of the stage of another workflow, which is left alone."""
    made = copy(stage)
    made._execution = None
    made = deepcopy(made)
    made.id = new_id()
    for task in made.tasks:
        task.id = new_id()
    return made
