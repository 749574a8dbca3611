"""The markers: a message was about something that does not exist.  Logged, nothing else."""

from __future__ import annotations

import logging

from stabilize_celery.handlers.base import Handler
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import (
    InvalidStageId,
    InvalidTaskId,
    InvalidTaskType,
    InvalidWorkflowId,
    Message,
)

logger = logging.getLogger(__name__)


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
    """A task type nobody registered."""

    message_type = InvalidTaskType
