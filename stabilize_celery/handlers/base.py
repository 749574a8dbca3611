"""What all handlers share: how they are made, and how they find what a message is about."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Generic, TypeVar

from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import (
    InvalidStageId,
    InvalidTaskId,
    InvalidTaskType,
    InvalidWorkflowId,
    Message,
    StageLevel,
    TaskLevel,
    WorkflowLevel,
)
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.workflow import Workflow

logger = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)


class Handler(Generic[M]):
    """Carries out one type of message inside the transaction it is given.

    The arguments are those of the seed documents; a handler keeps them only so that a processor built from handlers
    knows its queue, store and registry.  All state is in the database.
    """

    message_type: ClassVar[type[Message]]

    def __init__(self, queue: Any = None, store: Any = None, registry: Any = None) -> None:
        self.queue = queue
        self.store = store
        self.registry = registry

    def handle(self, message: M, unit: Unit) -> None:
        """Do what the message says; repeatable, because the whole transaction may be repeated."""
        raise NotImplementedError


def find_workflow(message: WorkflowLevel, unit: Unit) -> Workflow | None:
    """The workflow a message is about, locked; an unknown one is reported."""
    workflow = unit.workflow(message.workflow_id)
    if workflow is None:
        unit.send(InvalidWorkflowId(workflow_id=message.workflow_id, detail=message.type))
    return workflow


def find_stage(message: StageLevel, unit: Unit) -> StageExecution | None:
    """The stage a message is about, locked; ``None`` if it is unknown, another workflow's, or of another generation."""
    stage = unit.stage(message.stage_id)
    if stage is None or stage.execution.id != message.workflow_id:
        unit.send(
            InvalidStageId(workflow_id=message.workflow_id, stage_id=message.stage_id, detail=message.type)
        )
        return None
    if stage.generation != message.generation:
        refused(message, unit, "it belongs to an older generation of the stage", stage)
        logger.info(
            "%s for stage %s dropped: it is of generation %d, the stage of %d",
            message.type,
            stage.called,
            message.generation,
            stage.generation,
        )
        return None
    return stage


def refused(message: WorkflowLevel, unit: Unit, why: str, stage: StageExecution | None = None) -> None:
    """What a person asked for makes no sense any more: say so in the history."""
    user = getattr(message, "user", None)
    if user is not None and user != "system":
        unit.record(
            "refused", message.workflow_id, stage=stage, reason=f"{message.type}: {why}", actor=user or None
        )


def find_task(message: TaskLevel, unit: Unit) -> tuple[StageExecution, TaskExecution] | None:
    """The stage and task a message is about."""
    stage = find_stage(message, unit)
    if stage is None:
        return None
    task = stage.task_by_id(message.task_id)
    if task is None:
        unit.send(
            InvalidTaskId(
                workflow_id=message.workflow_id,
                stage_id=message.stage_id,
                generation=message.generation,
                task_id=message.task_id,
                detail=message.type,
            )
        )
        return None
    return stage, task


def stage_ids(stage: StageExecution) -> dict[str, Any]:
    """The fields every message about a stage carries."""
    return {"workflow_id": stage.execution.id, "stage_id": stage.id, "generation": stage.generation}


class _InvalidHandler(Handler[Message]):
    def handle(self, message: Message, unit: Unit) -> None:
        logger.warning("%s: %s", message.type, message)


class InvalidWorkflowIdHandler(_InvalidHandler):
    """A workflow that does not exist."""

    message_type = InvalidWorkflowId


class InvalidStageIdHandler(_InvalidHandler):
    """A stage that does not exist."""

    message_type = InvalidStageId


class InvalidTaskIdHandler(_InvalidHandler):
    """A task that does not exist."""

    message_type = InvalidTaskId


class InvalidTaskTypeHandler(_InvalidHandler):
    """An unregistered task type."""

    message_type = InvalidTaskType
