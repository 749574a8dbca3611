"""What this thread is doing for which workflow: what logs say beside their text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields

from stabilize_celery.messages import Message, StageLevel, TaskLevel, WorkflowLevel


@dataclass
class Scope:
    """Identifiers and names; empty where there is nothing to say."""

    #: The message that is handled, and its type.
    message_id: str = ""
    message_type: str = ""
    workflow_id: str = ""
    workflow: str = ""
    stage_id: str = ""
    #: The ref of the stage.
    stage: str = ""
    task_id: str = ""
    #: The type of the task.
    task: str = ""
    attempt: int | str = ""

    def __str__(self) -> str:
        named = f"stage {self.stage} of workflow {self.workflow} ({self.workflow_id})"
        return f"{named}, attempt {self.attempt}" if self.stage else f"message {self.message_id}"

    def turn_to(self, message: Message) -> None:
        """From now on it is about that message, which has no names."""
        self.message_type = message.type
        self.workflow_id = message.workflow_id if isinstance(message, WorkflowLevel) else ""
        self.stage_id = message.stage_id if isinstance(message, StageLevel) else ""
        self.task_id = message.task_id if isinstance(message, TaskLevel) else ""


#: Their names, as attributes of log records.
FIELDS = tuple(field.name for field in fields(Scope))
#: The attribute of a task's error that says where it was raised.
SCOPE = "stabilize_scope"
NOTHING = Scope()
_current: ContextVar[Scope] = ContextVar("stabilize_scope", default=NOTHING)


def current_scope() -> Scope:
    """That of this thread, or one that says nothing."""
    return _current.get()


@contextmanager
def scoped(scope: Scope) -> Iterator[Scope]:
    """Make a scope the current one while the block runs."""
    token = _current.set(scope)
    try:
        yield scope
    finally:
        _current.reset(token)
