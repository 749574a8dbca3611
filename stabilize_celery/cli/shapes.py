"""What ``--json`` prints: a form that stays as it is, for programs that read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import Enum
from typing import Any

from stabilize_celery.cli.layout import phase_of
from stabilize_celery.cli.words import attempts, error_text
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.run import merged_outputs


def time_of(moment: datetime | None) -> str | None:
    """ISO 8601 with its timezone."""
    return None if moment is None else moment.isoformat()


def seconds_of(start: datetime | None, end: datetime | None, now: datetime) -> float | None:
    """How long something took, or has taken so far."""
    return None if start is None else round(max(0.0, ((end or now) - start).total_seconds()), 6)


def head_shape(workflow: Workflow, now: datetime) -> dict[str, Any]:
    """A workflow without its stages."""
    paused = workflow.paused
    return {
        "id": workflow.id,
        "application": workflow.application,
        "name": workflow.name,
        "status": str(workflow.status),
        "created_at": time_of(workflow.created_at),
        "start_time": time_of(workflow.start_time),
        "end_time": time_of(workflow.end_time),
        "elapsed_seconds": seconds_of(workflow.start_time, workflow.end_time, now),
        "trigger": workflow.trigger.to_dict(),
        "context": workflow.context,
        "pipeline_config_id": workflow.pipeline_config_id,
        "dedup_key": workflow.dedup_key,
        "canceled_by": workflow.canceled_by,
        "cancellation_reason": workflow.cancellation_reason,
        "paused_by": paused.paused_by if paused is not None and paused.is_paused else None,
    }


def workflow_shape(workflow: Workflow, now: datetime) -> dict[str, Any]:
    """A workflow with its stages, tasks and outputs."""
    return {
        **head_shape(workflow, now),
        "stages": [_stage_shape(stage, now) for stage in workflow.stages],
        "outputs": merged_outputs(workflow),
    }


def _stage_shape(stage: StageExecution, now: datetime) -> dict[str, Any]:
    phase = phase_of(stage)
    return {
        "id": stage.id,
        "ref_id": stage.ref_id,
        "name": stage.name,
        "type": stage.type,
        "status": str(stage.status),
        "requires": sorted(stage.requisite_stage_ref_ids),
        "parent_id": stage.parent_stage_id,
        "phase": None if phase is None else phase.value,
        "start_time": time_of(stage.start_time),
        "end_time": time_of(stage.end_time),
        "elapsed_seconds": seconds_of(stage.start_time, stage.end_time, now),
        "attempts": attempts(stage),
        "error": error_text(stage) or None,
        "outputs": stage.outputs,
        "tasks": [_task_shape(task, now) for task in stage.tasks],
    }


def _task_shape(task: TaskExecution, now: datetime) -> dict[str, Any]:
    return {
        "id": task.id,
        "name": task.name,
        "type": task.implementing_class,
        "status": str(task.status),
        "start_time": time_of(task.start_time),
        "end_time": time_of(task.end_time),
        "elapsed_seconds": seconds_of(task.start_time, task.end_time, now),
        "attempts": task.attempts,
        "last_error": task.last_error,
    }


def history_shape(entries: Iterable[Mapping[str, Any]], workflow: Workflow) -> list[dict[str, Any]]:
    """Transitions, with the stages and tasks they are about by name."""
    stages = {stage.id: stage for stage in workflow.stages}
    tasks = {task.id: task for stage in workflow.stages for task in stage.tasks}
    shaped = []
    for entry in entries:
        stage, task = stages.get(entry["stage_id"]), tasks.get(entry["task_id"])
        shaped.append(
            {
                "at": time_of(entry["at"]),
                "event": entry["event"],
                "stage": None if stage is None else stage.called,
                "stage_id": entry["stage_id"],
                "task": None if task is None else task.name,
                "task_id": entry["task_id"],
                "generation": entry["generation"],
                "from": _status_name(entry["from_status"]),
                "to": _status_name(entry["to_status"]),
                "reason": entry["reason"],
                "actor": entry["actor"],
                "worker": entry["worker"],
                "details": entry["details"],
            }
        )
    return shaped


def _status_name(status: Enum | None) -> str | None:
    return None if status is None else str(status)
