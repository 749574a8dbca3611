"""Durable workflows for Celery deployments.

A map of the rooms:

``engine``        :class:`Stabilize`, the object users hold; ``control`` what can be done to a running workflow; ``run``
                  the handle on one; ``settings`` every option; ``errors`` every error
``models``        workflow, stage, task, status: plain data; ``messages`` what the engine sends itself
``dag``           pure rules about graphs; ``context`` what a stage sees; ``expressions`` safe conditions
``stages``        stage definition builders; ``tasks`` what users subclass, and the built-in tasks
``handlers``      one file per message: what happens when it is handled
``persistence``   the only SQL; ``worker`` running user code under a lease; ``observe`` watching what happens
``delivery``      the only Celery: entrypoints, publisher, relay; and the processor of embedded engines
``recovery``      audit and mending, dead letters, retention; ``maintenance`` what the engine offers of it
``contrib``       within Django, in Flower, and the set-up of the ``stabilize`` package: queue, processor, orchestrator
``cli``           ``celery -A app stabilize ...`` and ``stabilize-celery ...``
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stabilize_celery.lazy import lazily

if TYPE_CHECKING:
    from stabilize_celery.clock import Clock, FakeClock
    from stabilize_celery.context.stage_context import StageContext
    from stabilize_celery.contrib.seeds import Orchestrator, PostgresQueue, Queue, QueueProcessor, SqliteQueue
    from stabilize_celery.engine import Stabilize
    from stabilize_celery.errors import (
        ConfigurationError,
        PermanentError,
        RecoveryError,
        StabilizeError,
        TaskError,
        TransientError,
        TransientVerificationError,
        VerificationError,
        WorkflowCanceledError,
        WorkflowFailedError,
        WorkflowNotFoundError,
        WorkflowStateError,
        WorkflowTimeoutError,
        is_transient,
    )
    from stabilize_celery.handlers.cancel_stage import CancelStageHandler
    from stabilize_celery.handlers.complete_stage import CompleteStageHandler
    from stabilize_celery.handlers.complete_task import CompleteTaskHandler
    from stabilize_celery.handlers.complete_workflow import CompleteWorkflowHandler
    from stabilize_celery.handlers.continue_parent_stage import ContinueParentStageHandler
    from stabilize_celery.handlers.jump_to_stage import JumpToStageHandler
    from stabilize_celery.handlers.run_task import RunTaskHandler
    from stabilize_celery.handlers.signal_stage import SignalStageHandler
    from stabilize_celery.handlers.skip_stage import SkipStageHandler
    from stabilize_celery.handlers.start_stage import StartStageHandler
    from stabilize_celery.handlers.start_task import StartTaskHandler
    from stabilize_celery.handlers.start_waiting_workflows import StartWaitingWorkflowsHandler
    from stabilize_celery.handlers.start_workflow import StartWorkflowHandler
    from stabilize_celery.models.stage import StageExecution, SyntheticStageOwner
    from stabilize_celery.models.status import WorkflowStatus
    from stabilize_celery.models.task import TaskExecution
    from stabilize_celery.models.workflow import Trigger, Workflow
    from stabilize_celery.persistence.store import PostgresWorkflowStore, SqliteWorkflowStore, WorkflowStore
    from stabilize_celery.run import WorkflowRun
    from stabilize_celery.stages.builder import (
        StageDefinitionBuilder,
        StageDefinitionBuilderFactory,
        register_builder,
    )
    from stabilize_celery.tasks.approval import ApprovalTask
    from stabilize_celery.tasks.http import HTTPTask
    from stabilize_celery.tasks.interface import RetryableTask, SkippableTask, Task
    from stabilize_celery.tasks.python import PythonTask
    from stabilize_celery.tasks.registry import TaskRegistry
    from stabilize_celery.tasks.result import TaskResult
    from stabilize_celery.tasks.run import current_run
    from stabilize_celery.tasks.shell import ShellTask
    from stabilize_celery.tasks.sub_workflow import SubWorkflowTask

__version__ = "0.1.0"
__all__ = [
    "ApprovalTask",
    "CancelStageHandler",
    "Clock",
    "CompleteStageHandler",
    "CompleteTaskHandler",
    "CompleteWorkflowHandler",
    "ConfigurationError",
    "ContinueParentStageHandler",
    "DockerTask",
    "FakeClock",
    "HTTPTask",
    "JumpToStageHandler",
    "Orchestrator",
    "PermanentError",
    "PostgresQueue",
    "PostgresWorkflowStore",
    "PythonTask",
    "Queue",
    "QueueProcessor",
    "RecoveryError",
    "RetryableTask",
    "RunTaskHandler",
    "ShellTask",
    "SignalStageHandler",
    "SkipStageHandler",
    "SkippableTask",
    "SqliteQueue",
    "SqliteWorkflowStore",
    "Stabilize",
    "StabilizeError",
    "StageContext",
    "StageDefinitionBuilder",
    "StageDefinitionBuilderFactory",
    "StageExecution",
    "StartStageHandler",
    "StartTaskHandler",
    "StartWaitingWorkflowsHandler",
    "StartWorkflowHandler",
    "SubWorkflowTask",
    "SyntheticStageOwner",
    "Task",
    "TaskError",
    "TaskExecution",
    "TaskRegistry",
    "TaskResult",
    "TransientError",
    "TransientVerificationError",
    "Trigger",
    "VerificationError",
    "Workflow",
    "WorkflowCanceledError",
    "WorkflowFailedError",
    "WorkflowNotFoundError",
    "WorkflowRun",
    "WorkflowStateError",
    "WorkflowStatus",
    "WorkflowStore",
    "WorkflowTimeoutError",
    "current_run",
    "is_transient",
    "register_builder",
]

#: Where each name is.
_HOMES = {
    "ApprovalTask": "tasks.approval",
    "CancelStageHandler": "handlers.cancel_stage",
    "Clock": "clock",
    "CompleteStageHandler": "handlers.complete_stage",
    "CompleteTaskHandler": "handlers.complete_task",
    "CompleteWorkflowHandler": "handlers.complete_workflow",
    "ConfigurationError": "errors",
    "ContinueParentStageHandler": "handlers.continue_parent_stage",
    "DockerTask": "contrib.docker",
    "FakeClock": "clock",
    "HTTPTask": "tasks.http",
    "JumpToStageHandler": "handlers.jump_to_stage",
    "Orchestrator": "contrib.seeds",
    "PermanentError": "errors",
    "PostgresQueue": "contrib.seeds",
    "PostgresWorkflowStore": "persistence.store",
    "PythonTask": "tasks.python",
    "Queue": "contrib.seeds",
    "QueueProcessor": "contrib.seeds",
    "RecoveryError": "errors",
    "RetryableTask": "tasks.interface",
    "RunTaskHandler": "handlers.run_task",
    "ShellTask": "tasks.shell",
    "SignalStageHandler": "handlers.signal_stage",
    "SkipStageHandler": "handlers.skip_stage",
    "SkippableTask": "tasks.interface",
    "SqliteQueue": "contrib.seeds",
    "SqliteWorkflowStore": "persistence.store",
    "Stabilize": "engine",
    "StabilizeError": "errors",
    "StageContext": "context.stage_context",
    "StageDefinitionBuilder": "stages.builder",
    "StageDefinitionBuilderFactory": "stages.builder",
    "StageExecution": "models.stage",
    "StartStageHandler": "handlers.start_stage",
    "StartTaskHandler": "handlers.start_task",
    "StartWaitingWorkflowsHandler": "handlers.start_waiting_workflows",
    "StartWorkflowHandler": "handlers.start_workflow",
    "SubWorkflowTask": "tasks.sub_workflow",
    "SyntheticStageOwner": "models.stage",
    "Task": "tasks.interface",
    "TaskError": "errors",
    "TaskExecution": "models.task",
    "TaskRegistry": "tasks.registry",
    "TaskResult": "tasks.result",
    "TransientError": "errors",
    "TransientVerificationError": "errors",
    "Trigger": "models.workflow",
    "VerificationError": "errors",
    "Workflow": "models.workflow",
    "WorkflowCanceledError": "errors",
    "WorkflowFailedError": "errors",
    "WorkflowNotFoundError": "errors",
    "WorkflowRun": "run",
    "WorkflowStateError": "errors",
    "WorkflowStatus": "models.status",
    "WorkflowStore": "persistence.store",
    "WorkflowTimeoutError": "errors",
    "current_run": "tasks.run",
    "is_transient": "errors",
    "register_builder": "stages.builder",
}
__getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
