"""A stage as it was: for a hook that is called after its stage has begun anew or is gone."""

from __future__ import annotations

from collections.abc import Mapping
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
    """The stage, ready to be shown to a hook."""
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
