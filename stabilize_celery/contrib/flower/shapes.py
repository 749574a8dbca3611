"""The JSON that the page and programs get: a form that stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence.reports import StageDetail

#: Hides what is secret.
Shown = Callable[[Any], Any]


def time_of(moment: datetime | None) -> str | None:
    """ISO 8601 with its timezone."""
    return None if moment is None else moment.isoformat()


def head(workflow: Workflow, now: datetime) -> dict[str, Any]:
    """A workflow as a line of a list; ``now`` is the clock of the database, for times that go on."""
    paused = workflow.paused
    return {
        "id": workflow.id,
        "application": workflow.application,
        "name": workflow.name,
        "status": workflow.status.name,
        "created_at": time_of(workflow.created_at),
        "start_time": time_of(workflow.start_time),
        "end_time": time_of(workflow.end_time),
        "now": time_of(now),
        "complete": workflow.status.is_complete,
        "pipeline_config_id": workflow.pipeline_config_id,
        "canceled_by": workflow.canceled_by,
        "cancellation_reason": workflow.cancellation_reason,
        "is_canceled": workflow.is_canceled,
        "paused_by": paused.paused_by if paused is not None and paused.is_paused else None,
        "started_by": workflow.trigger.user,
        "parent_workflow_id": workflow.parent.workflow_id if workflow.parent is not None else None,
    }


def whole_head(workflow: Workflow, now: datetime) -> dict[str, Any]:
    """A workflow with what it was started with, without its stages."""
    return {**head(workflow, now), "context": workflow.context, "trigger": workflow.trigger.to_dict()}


def node(stage: StageExecution, shown: Shown) -> dict[str, Any]:
    """A stage as it is drawn."""
    return {
        "id": stage.id,
        "ref_id": stage.ref_id,
        "name": title(stage),
        "type": stage.type,
        "status": stage.status.name,
        "complete": stage.status.is_complete,
        "parent_id": stage.parent_stage_id,
        "phase": _phase(stage),
        "generation": stage.generation,
        "start_time": time_of(stage.start_time),
        "end_time": time_of(stage.end_time),
        "attempts": max((task.attempts for task in stage.tasks), default=0),
        "error": shown(_first_error(stage)),
    }


def title(stage: StageExecution) -> str:
    """What people call a stage; the ref_id of a synthetic stage means nothing to them."""
    return stage.called


def jumps(workflow: Workflow) -> list[dict[str, Any]]:
    """The jumps so far, oldest first, from and to which ref_id."""
    history = workflow.context.get("_jump_history")
    made = history if isinstance(history, list) else []
    return [
        {"from": each.get("from_stage"), "to": each.get("to_stage"), "at": each.get("time")}
        for each in made
        if isinstance(each, dict)
    ]


def stage_detail(found: StageDetail, shown: Shown) -> dict[str, Any]:
    """One stage with everything about it."""
    stage = found.stage
    origins = {
        key: {
            "kind": origin.kind,
            "stage_id": origin.stage_id,
            "stage": title(found.others[origin.stage_id]) if origin.stage_id in found.others else None,
        }
        for key, origin in found.origins.items()
    }
    return {
        **node(stage, shown),
        "own_context": shown(stage.own_context),
        "sees": shown(found.sees),
        "origins": origins,
        "problem": shown(found.problem) or None,
        "outputs": shown(stage.outputs),
        "tasks": [_task(task, shown) for task in stage.tasks],
        "errors": list(_errors(stage, shown)),
        "waits_for": [_message(row, shown) for row in found.messages],
        "signals": [_signal(row, shown) for row in found.signals],
    }


def transition(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the history."""
    return {
        "id": entry["id"],
        "at": time_of(entry["at"]),
        "event": entry["event"],
        "stage_id": entry["stage_id"],
        "task_id": entry["task_id"],
        "generation": entry["generation"],
        "from": entry["from_status"] and entry["from_status"].name,
        "to": entry["to_status"] and entry["to_status"].name,
        "reason": entry["reason"],
        "actor": entry["actor"],
        "worker": entry["worker"],
        "details": entry["details"],
    }


def configuration(row: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with a limit, and who waits for it."""
    return {
        "pipeline_config_id": row["pipeline_config_id"],
        "max_concurrent": row["max_concurrent"],
        "keep_waiting": row["keep_waiting"],
        "taken": row["taken"],
        "waiting": row["waiting"],
        "oldest_waiting": row["oldest"],
    }


def dead_letter(row: Mapping[str, Any]) -> dict[str, Any]:
    """A message that was given up."""
    return {
        "id": row["id"],
        "type": row["type"],
        "label": row["label"],
        "workflow_id": row["workflow_id"],
        "stage_id": row["stage_id"],
        "attempts": row["attempts"],
        "died_at": time_of(row["died_at"]),
        "error": _described(row["error"]),
    }


def _phase(stage: StageExecution) -> str | None:
    if not stage.is_synthetic:
        return None
    if stage.phase is not None:
        return stage.phase.value
    owner = stage.synthetic_stage_owner
    return "before" if owner is not None and owner.name == "STAGE_BEFORE" else "after"


def _task(task: TaskExecution, shown: Shown) -> dict[str, Any]:
    return {
        "id": task.id,
        "name": task.name,
        "type": task.implementing_class,
        "status": task.status.name,
        "start_time": time_of(task.start_time),
        "end_time": time_of(task.end_time),
        "attempts": task.attempts,
        "last_error": shown(_described(task.last_error)),
    }


def _message(row: Mapping[str, Any], shown: Shown) -> dict[str, Any]:
    return {
        "type": row["type"],
        "due_at": time_of(row["due_at"]),
        "attempts": row["attempts"],
        "lease_owner": row["lease_owner"],
        "queue": row["queue"],
        "last_error": shown(_described(row["last_error"])),
    }


def _signal(row: Mapping[str, Any], shown: Shown) -> dict[str, Any]:
    return {"name": row["name"], "data": shown(row["data"]), "user": row["user"], "at": time_of(row["at"])}


def _described(error: Any) -> dict[str, Any] | None:
    """A stored error as one mapping: what it says, its type, its causes, where it comes from."""
    if not isinstance(error, Mapping):
        return None
    details = error.get("details", error)
    if not isinstance(details, Mapping):
        return None
    return {
        "error": details.get("error"),
        "type": details.get("type"),
        "causes": details.get("errors"),
        "traceback": details.get("traceback"),
    }


def _first_error(stage: StageExecution) -> str | None:
    for task in stage.tasks:
        described = _described(task.last_error)
        if described is not None and described["error"]:
            kind = f"{described['type']}: " if described["type"] else ""
            return f"{kind}{described['error']}"[:300]
    return None


def _errors(stage: StageExecution, shown: Shown) -> Iterable[dict[str, Any]]:
    own = stage.own_context
    stored = _described(own.get("exception"))
    if stage.status.is_failure and stored is not None:
        yield {"where": "stage", **shown(stored)}
    elif stage.status.is_failure and own.get("error"):
        yield {
            "where": "stage",
            "error": shown(str(own["error"])),
            "type": None,
            "causes": None,
            "traceback": None,
        }
    for task in stage.tasks:
        described = _described(task.last_error)
        if described is not None and described != stored:
            yield {"where": task.name, **shown(described)}
