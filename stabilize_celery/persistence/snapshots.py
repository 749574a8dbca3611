"""What user code is shown of a workflow: a stage as it was, and the other stages of the workflow when it asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence import rows

_PLAIN = ("id", "ref_id", "type", "name", "outputs", "generation", "parent_stage_id")


def snapshot_of(stage: StageExecution, inherited: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON form of a stage, with what it sees of others."""
    return {
        **{name: getattr(stage, name) for name in _PLAIN},
        "status": stage.status.name,
        "context": stage.own_context,
        "inherited": dict(inherited),
        "tasks": rows.stage_column(stage, "tasks"),
    }


def stage_of(snapshot: Mapping[str, Any], workflow: Workflow) -> StageExecution:
    """The stage, ready to be shown to a hook that is called after its stage was reset or is gone."""
    stage = StageExecution(
        **{name: snapshot[name] for name in _PLAIN},
        status=WorkflowStatus[snapshot["status"]],
        context={**snapshot["inherited"], **snapshot["context"]},
        tasks=[rows.task_from_json(task) for task in snapshot["tasks"]],
    )
    stage._own_context = snapshot["context"]
    stage.execution = workflow
    workflow.stages = [stage]
    return stage


def lend(stage: StageExecution, retrieve: Callable[[str], Workflow]) -> None:
    """Let user code look from a stage at its whole workflow, which is read when it first does.

    Args:
        stage: with its workflow, in which there are only this stage and its parents.
        retrieve: reads a workflow by its id.
    """
    workflow = stage.execution
    known = {each.id: each for each in workflow.stages}

    def read() -> list[StageExecution]:
        found: list[StageExecution] = []
        for other in retrieve(workflow.id).stages:
            ours = known.pop(other.id, other)
            ours.__dict__["requisite_stage_ref_ids"] = other.requisite_stage_ref_ids
            ours.execution = workflow
            found.append(ours)
        # What was reset since then is gone from the store, but user code was given it.
        return [*found, *known.values()]

    workflow.__class__ = _LentWorkflow
    workflow.__dict__["_read"] = read
    for each in known.values():
        each.__class__ = _LentStage


class _LentWorkflow(Workflow):
    """Its stages are read when they are first asked for."""

    @property
    def stages(self) -> list[StageExecution]:
        read = self.__dict__.pop("_read", None)
        if read is not None:
            try:
                self.__dict__["stages"] = read()
            except BaseException:
                self.__dict__["_read"] = read
                raise
        stages: list[StageExecution] = self.__dict__["stages"]
        return stages

    @stages.setter
    def stages(self, stages: list[StageExecution]) -> None:
        self.__dict__["stages"] = stages


class _LentStage(StageExecution):
    """A stage of such a workflow, whose row does not say what it requires."""

    @property
    def requisite_stage_ref_ids(self) -> set[str]:
        self.execution.stages  # noqa: B018
        required: set[str] = self.__dict__["requisite_stage_ref_ids"]
        return required

    @requisite_stage_ref_ids.setter
    def requisite_stage_ref_ids(self, required: set[str]) -> None:
        self.__dict__["requisite_stage_ref_ids"] = required
