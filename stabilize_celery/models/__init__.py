"""Plain data: what a workflow, a stage and a task are.  No input or output happens here."""

from __future__ import annotations

from stabilize_celery.lazy import lazily

#: Where the names are that programs written for the `stabilize` package import from here.
_HOMES = {
    "StageExecution": "models.stage",
    "SyntheticStageOwner": "models.stage",
    "TaskExecution": "models.task",
    "Trigger": "models.workflow",
    "Workflow": "models.workflow",
    "WorkflowStatus": "models.status",
}
__getattr__ = lazily(__name__, _HOMES)
