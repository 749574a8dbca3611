"""One task of a stage: a step of user work."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from stabilize_celery.models.ids import new_id
from stabilize_celery.models.status import WorkflowStatus


@dataclass(repr=False)
class TaskExecution:
    """One execution of a task within a stage.

    Attributes:
        id: ULID.
        name: for people.
        implementing_class: the task type it is registered under.
        status: where it stands.
        start_time, end_time: timezone-aware; ``None`` before.
        stage_start, stage_end: first and last task of the stage; the engine sets them from the list order.
        attempts: how often the body was started for this generation of the stage.
        claims: how often workers have claimed it, over all generations: the last fencing token.
        last_error: the stored form of the last failed attempt's error, kept after a later success.
        task_exception_details: the error the task ended with.
    """

    id: str = field(default_factory=new_id)
    name: str = ""
    implementing_class: str = ""
    status: WorkflowStatus = WorkflowStatus.NOT_STARTED
    start_time: datetime | None = None
    end_time: datetime | None = None
    stage_start: bool = False
    stage_end: bool = False
    loop_start: bool = False
    loop_end: bool = False
    attempts: int = 0
    claims: int = 0
    last_error: dict[str, Any] | None = None
    task_exception_details: dict[str, Any] = field(default_factory=dict)
    #: The failure before the stage's failure policy was applied to it; ``None`` unless the task failed.
    failed_as: WorkflowStatus | None = None
    #: When the task was paused, and how long it has been paused so far; subtracted from its timeouts.
    paused_at: datetime | None = None
    paused_seconds: float = 0.0
    #: How often it has waited for a signal; tells one suspension from the next.
    suspensions: int = 0
    #: When it stops waiting for a signal; ``None`` if it waits for as long as it takes.
    waits_until: datetime | None = None

    def __repr__(self) -> str:
        return f"<TaskExecution {self.name} ({self.implementing_class}) {self.status}>"

    @classmethod
    def create(
        cls,
        name: str,
        implementing_class: str,
        stage_start: bool = False,
        stage_end: bool = False,
    ) -> TaskExecution:
        """A task that has not started."""
        return cls(
            name=name, implementing_class=implementing_class, stage_start=stage_start, stage_end=stage_end
        )

    def reset(self) -> None:
        """Forget everything that running it left behind, but for its fencing token, which only ever grows."""
        fresh = TaskExecution()
        for name in (
            "status",
            "start_time",
            "end_time",
            "attempts",
            "last_error",
            "task_exception_details",
            "failed_as",
            "paused_at",
            "paused_seconds",
            "suspensions",
            "waits_until",
        ):
            setattr(self, name, getattr(fresh, name))
