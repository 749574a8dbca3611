"""The statuses of workflows, stages and tasks, and the table of legal transitions between them."""

from __future__ import annotations

from enum import Enum

from stabilize_celery.errors import InvalidStateTransitionError


class WorkflowStatus(Enum):
    """Status of a workflow, a stage or a task.

    Each value is ``(name, complete, halt)``: *complete* means it will not change by itself any more, *halt* that
    nothing downstream may start because of it.  Source: the table in Spinnaker Orca's ``ExecutionStatus``.
    """

    NOT_STARTED = ("NOT_STARTED", False, False)
    #: The work is going on.
    RUNNING = ("RUNNING", False, False)
    #: The workflow was paused; ``resume`` continues it.
    PAUSED = ("PAUSED", False, False)
    #: A task waits for a signal.
    SUSPENDED = ("SUSPENDED", False, False)
    #: The workflow waits for a free slot of its pipeline configuration.
    BUFFERED = ("BUFFERED", False, False)
    #: A task asked to continue at another stage.
    REDIRECT = ("REDIRECT", False, False)
    SUCCEEDED = ("SUCCEEDED", True, False)
    SKIPPED = ("SKIPPED", True, False)
    #: It failed, and the workflow goes on regardless.
    FAILED_CONTINUE = ("FAILED_CONTINUE", True, False)
    #: It failed, and the workflow fails with it.
    TERMINAL = ("TERMINAL", True, True)
    #: It failed and ends its branch; other branches go on.
    STOPPED = ("STOPPED", True, True)
    CANCELED = ("CANCELED", True, True)

    def __init__(self, label: str, complete: bool, halt: bool) -> None:
        self.label = label
        self.is_complete = complete
        self.is_halt = halt

    def __str__(self) -> str:
        return self.label

    @property
    def is_successful(self) -> bool:
        """It ended well."""
        return self in _SUCCESSFUL

    @property
    def is_failure(self) -> bool:
        """It ended in a failure (a cancellation is none)."""
        return self in _FAILED

    @property
    def is_skipped(self) -> bool:
        return self is WorkflowStatus.SKIPPED

    @property
    def is_dirty(self) -> bool:
        """It was being worked on."""
        return self in (WorkflowStatus.RUNNING, WorkflowStatus.REDIRECT)

    @property
    def is_continuable(self) -> bool:
        """What depends on it may start."""
        return self in CONTINUABLE_STATUSES

    @property
    def is_active(self) -> bool:
        """It has not ended and is not merely queued for a slot."""
        return self in ACTIVE_STATUSES


_S = WorkflowStatus
_SUCCESSFUL = frozenset({_S.SUCCEEDED, _S.SKIPPED})
_FAILED = frozenset({_S.FAILED_CONTINUE, _S.TERMINAL, _S.STOPPED})

COMPLETED_STATUSES = frozenset(status for status in WorkflowStatus if status.is_complete)
HALT_STATUSES = frozenset(status for status in WorkflowStatus if status.is_halt)
CONTINUABLE_STATUSES = frozenset({_S.SUCCEEDED, _S.SKIPPED, _S.FAILED_CONTINUE, _S.REDIRECT})
ACTIVE_STATUSES = frozenset({_S.NOT_STARTED, _S.RUNNING, _S.PAUSED, _S.SUSPENDED})

#: Where each status may go by itself.  A reset (jump, restart) starts a new generation instead and is not listed.
TRANSITIONS: dict[WorkflowStatus, frozenset[WorkflowStatus]] = {
    _S.NOT_STARTED: frozenset({_S.RUNNING, _S.CANCELED, _S.SKIPPED, _S.BUFFERED, _S.TERMINAL, _S.PAUSED}),
    _S.BUFFERED: frozenset({_S.NOT_STARTED, _S.RUNNING, _S.CANCELED, _S.SKIPPED, _S.PAUSED}),
    _S.RUNNING: frozenset(
        {
            _S.SUCCEEDED,
            _S.FAILED_CONTINUE,
            _S.TERMINAL,
            _S.CANCELED,
            _S.PAUSED,
            _S.STOPPED,
            _S.SUSPENDED,
            _S.REDIRECT,
            _S.SKIPPED,
        }
    ),
    _S.PAUSED: frozenset({_S.RUNNING, _S.CANCELED, _S.STOPPED, _S.NOT_STARTED, _S.BUFFERED}),
    _S.SUSPENDED: frozenset({_S.RUNNING, _S.CANCELED, _S.STOPPED}),
    _S.REDIRECT: frozenset({_S.RUNNING, _S.SUCCEEDED, _S.CANCELED}),
    **{status: frozenset() for status in COMPLETED_STATUSES},
}


def can_transition(current: WorkflowStatus, target: WorkflowStatus) -> bool:
    """Whether the table allows ``current -> target``; staying where one is is always allowed."""
    return current is target or target in TRANSITIONS[current]


def validate_transition(
    current: WorkflowStatus,
    target: WorkflowStatus,
    entity_type: str = "entity",
    entity_id: str | None = None,
) -> None:
    """Refuse a transition that is not in the table.

    Raises:
        InvalidStateTransitionError: naming the entity and both statuses.
    """
    if not can_transition(current, target):
        raise InvalidStateTransitionError(current, target, entity_type, entity_id)
