"""Every message type and its handler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stabilize_celery.handlers.base import (
    Handler,
    InvalidStageIdHandler,
    InvalidTaskIdHandler,
    InvalidTaskTypeHandler,
    InvalidWorkflowIdHandler,
)
from stabilize_celery.handlers.cancel_stage import CancelStageHandler
from stabilize_celery.handlers.cancel_workflow import CancelWorkflowHandler
from stabilize_celery.handlers.complete_stage import CompleteStageHandler
from stabilize_celery.handlers.complete_task import CompleteTaskHandler
from stabilize_celery.handlers.complete_workflow import CompleteWorkflowHandler
from stabilize_celery.handlers.continue_parent_stage import ContinueParentStageHandler
from stabilize_celery.handlers.expire_suspension import ExpireStageHandler, ExpireSuspensionHandler
from stabilize_celery.handlers.jump_to_stage import JumpToStageHandler
from stabilize_celery.handlers.pause_workflow import PauseWorkflowHandler
from stabilize_celery.handlers.restart_stage import RestartStageHandler
from stabilize_celery.handlers.resume_workflow import ResumeWorkflowHandler
from stabilize_celery.handlers.run_hook import RunHookHandler
from stabilize_celery.handlers.run_task import RunTaskHandler
from stabilize_celery.handlers.signal_stage import SignalStageHandler
from stabilize_celery.handlers.skip_stage import SkipStageHandler
from stabilize_celery.handlers.start_stage import StartStageHandler
from stabilize_celery.handlers.start_stages import StartStagesHandler
from stabilize_celery.handlers.start_task import StartTaskHandler
from stabilize_celery.handlers.start_waiting_workflows import StartWaitingWorkflowsHandler
from stabilize_celery.handlers.start_workflow import StartWorkflowHandler
from stabilize_celery.messages import Message

ALL_HANDLERS: tuple[type[Handler[Any]], ...] = (
    StartWorkflowHandler,
    StartStageHandler,
    StartStagesHandler,
    SkipStageHandler,
    StartTaskHandler,
    RunTaskHandler,
    CompleteTaskHandler,
    CompleteStageHandler,
    ContinueParentStageHandler,
    CompleteWorkflowHandler,
    CancelWorkflowHandler,
    CancelStageHandler,
    PauseWorkflowHandler,
    ResumeWorkflowHandler,
    RestartStageHandler,
    JumpToStageHandler,
    SignalStageHandler,
    ExpireSuspensionHandler,
    ExpireStageHandler,
    StartWaitingWorkflowsHandler,
    RunHookHandler,
    InvalidWorkflowIdHandler,
    InvalidStageIdHandler,
    InvalidTaskIdHandler,
    InvalidTaskTypeHandler,
)

Handlers = Mapping[type[Message], Handler[Any]]


def default_handlers() -> dict[type[Message], Handler[Any]]:
    """One handler for every message type."""
    return {cls.message_type: cls() for cls in ALL_HANDLERS}
