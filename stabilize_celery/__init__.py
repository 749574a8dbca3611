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

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stabilize_celery.clock import Clock, FakeClock
    from stabilize_celery.contrib.seeds import Orchestrator, PostgresQueue, QueueProcessor, SqliteQueue
    from stabilize_celery.engine import Stabilize
    from stabilize_celery.errors import (
        PermanentError,
        StabilizeError,
        TransientError,
        WorkflowCanceledError,
        WorkflowFailedError,
        WorkflowNotFoundError,
        WorkflowStateError,
        WorkflowTimeoutError,
    )
    from stabilize_celery.handlers.complete_stage import CompleteStageHandler
    from stabilize_celery.handlers.complete_task import CompleteTaskHandler
    from stabilize_celery.handlers.complete_workflow import CompleteWorkflowHandler
    from stabilize_celery.handlers.continue_parent_stage import ContinueParentStageHandler
    from stabilize_celery.handlers.jump_to_stage import JumpToStageHandler
    from stabilize_celery.handlers.run_task import RunTaskHandler
    from stabilize_celery.handlers.start_stage import StartStageHandler
    from stabilize_celery.handlers.start_task import StartTaskHandler
    from stabilize_celery.handlers.start_workflow import StartWorkflowHandler
    from stabilize_celery.models.stage import StageExecution, SyntheticStageOwner
    from stabilize_celery.models.status import WorkflowStatus
    from stabilize_celery.models.task import TaskExecution
    from stabilize_celery.models.workflow import Trigger, Workflow
    from stabilize_celery.persistence.store import PostgresWorkflowStore, SqliteWorkflowStore
    from stabilize_celery.run import WorkflowRun
    from stabilize_celery.stages.builder import (
        StageDefinitionBuilder,
        StageDefinitionBuilderFactory,
        register_builder,
    )
    from stabilize_celery.tasks.interface import RetryableTask, SkippableTask, Task
    from stabilize_celery.tasks.python import PythonTask
    from stabilize_celery.tasks.registry import TaskRegistry
    from stabilize_celery.tasks.result import TaskResult
    from stabilize_celery.tasks.run import current_run
    from stabilize_celery.tasks.shell import ShellTask

__version__ = "0.1.0"
__all__ = [
    "Clock",
    "CompleteStageHandler",
    "CompleteTaskHandler",
    "CompleteWorkflowHandler",
    "ContinueParentStageHandler",
    "DockerTask",
    "FakeClock",
    "JumpToStageHandler",
    "Orchestrator",
    "PermanentError",
    "PostgresQueue",
    "PostgresWorkflowStore",
    "PythonTask",
    "QueueProcessor",
    "RetryableTask",
    "RunTaskHandler",
    "ShellTask",
    "SkippableTask",
    "SqliteQueue",
    "SqliteWorkflowStore",
    "Stabilize",
    "StabilizeError",
    "StageDefinitionBuilder",
    "StageDefinitionBuilderFactory",
    "StageExecution",
    "StartStageHandler",
    "StartTaskHandler",
    "StartWorkflowHandler",
    "SyntheticStageOwner",
    "Task",
    "TaskExecution",
    "TaskRegistry",
    "TaskResult",
    "TransientError",
    "Trigger",
    "Workflow",
    "WorkflowCanceledError",
    "WorkflowFailedError",
    "WorkflowNotFoundError",
    "WorkflowRun",
    "WorkflowStateError",
    "WorkflowStatus",
    "WorkflowTimeoutError",
    "current_run",
    "register_builder",
]

#: Where each name is; imported when it is asked for, because Celery imports this package for each of its commands.
_HOMES = {
    "Clock": "stabilize_celery.clock",
    "CompleteStageHandler": "stabilize_celery.handlers.complete_stage",
    "CompleteTaskHandler": "stabilize_celery.handlers.complete_task",
    "CompleteWorkflowHandler": "stabilize_celery.handlers.complete_workflow",
    "ContinueParentStageHandler": "stabilize_celery.handlers.continue_parent_stage",
    "DockerTask": "stabilize_celery.contrib.docker",
    "FakeClock": "stabilize_celery.clock",
    "JumpToStageHandler": "stabilize_celery.handlers.jump_to_stage",
    "Orchestrator": "stabilize_celery.contrib.seeds",
    "PermanentError": "stabilize_celery.errors",
    "PostgresQueue": "stabilize_celery.contrib.seeds",
    "PostgresWorkflowStore": "stabilize_celery.persistence.store",
    "PythonTask": "stabilize_celery.tasks.python",
    "QueueProcessor": "stabilize_celery.contrib.seeds",
    "RetryableTask": "stabilize_celery.tasks.interface",
    "RunTaskHandler": "stabilize_celery.handlers.run_task",
    "ShellTask": "stabilize_celery.tasks.shell",
    "SkippableTask": "stabilize_celery.tasks.interface",
    "SqliteQueue": "stabilize_celery.contrib.seeds",
    "SqliteWorkflowStore": "stabilize_celery.persistence.store",
    "Stabilize": "stabilize_celery.engine",
    "StabilizeError": "stabilize_celery.errors",
    "StageDefinitionBuilder": "stabilize_celery.stages.builder",
    "StageDefinitionBuilderFactory": "stabilize_celery.stages.builder",
    "StageExecution": "stabilize_celery.models.stage",
    "StartStageHandler": "stabilize_celery.handlers.start_stage",
    "StartTaskHandler": "stabilize_celery.handlers.start_task",
    "StartWorkflowHandler": "stabilize_celery.handlers.start_workflow",
    "SyntheticStageOwner": "stabilize_celery.models.stage",
    "Task": "stabilize_celery.tasks.interface",
    "TaskExecution": "stabilize_celery.models.task",
    "TaskRegistry": "stabilize_celery.tasks.registry",
    "TaskResult": "stabilize_celery.tasks.result",
    "TransientError": "stabilize_celery.errors",
    "Trigger": "stabilize_celery.models.workflow",
    "Workflow": "stabilize_celery.models.workflow",
    "WorkflowCanceledError": "stabilize_celery.errors",
    "WorkflowFailedError": "stabilize_celery.errors",
    "WorkflowNotFoundError": "stabilize_celery.errors",
    "WorkflowRun": "stabilize_celery.run",
    "WorkflowStateError": "stabilize_celery.errors",
    "WorkflowStatus": "stabilize_celery.models.status",
    "WorkflowTimeoutError": "stabilize_celery.errors",
    "current_run": "stabilize_celery.tasks.run",
    "register_builder": "stabilize_celery.stages.builder",
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value
