"""One file per message: ``handle(message, unit)`` reads like the description of its message."""

from __future__ import annotations

from stabilize_celery.lazy import lazily

#: Where the names are that programs written for the `stabilize` package import from here.
_HOMES = {
    "CancelStageHandler": "handlers.cancel_stage",
    "CancelWorkflowHandler": "handlers.cancel_workflow",
    "CompleteStageHandler": "handlers.complete_stage",
    "CompleteTaskHandler": "handlers.complete_task",
    "CompleteWorkflowHandler": "handlers.complete_workflow",
    "ContinueParentStageHandler": "handlers.continue_parent_stage",
    "JumpToStageHandler": "handlers.jump_to_stage",
    "RestartStageHandler": "handlers.restart_stage",
    "RunTaskHandler": "handlers.run_task",
    "SignalStageHandler": "handlers.signal_stage",
    "SkipStageHandler": "handlers.skip_stage",
    "StartStageHandler": "handlers.start_stage",
    "StartTaskHandler": "handlers.start_task",
    "StartWaitingWorkflowsHandler": "handlers.start_waiting_workflows",
    "StartWorkflowHandler": "handlers.start_workflow",
}
__getattr__ = lazily(__name__, _HOMES)
