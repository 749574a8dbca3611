"""Watching the engine: observers are told every transition, after the transaction that made it has committed.

An observer is called in the process that committed, with the transitions of one transaction in the order they were
made.  It is called **at most once**: a process that dies between the commit and the call calls no observer, and no
other process makes up for it.  What must not be missed is a stage of the workflow, or read from the history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.observe.logs import discreet_logger
from stabilize_celery.plugins import AttemptHook

logger = discreet_logger(__name__)


@dataclass(frozen=True)
class Transition:
    """One row of the history, with the names a person knows.

    Contexts and outputs stay in the database; a reason may quote the error of a task.
    """

    #: ``workflow``, ``stage`` or ``task`` for a change of status; else what happened: ``retry``, ``signal``, ...
    event: str
    workflow_id: str
    #: Empty where the transaction had no need to load them.
    application: str
    workflow_name: str
    old: WorkflowStatus | None
    new: WorkflowStatus | None
    at: datetime
    reason: str | None = None
    #: Who asked for it.
    actor: str | None = None
    #: Host and process that committed it.
    worker: str = ""
    details: dict[str, Any] | None = None
    stage_id: str | None = None
    stage_ref: str | None = None
    stage_type: str | None = None
    generation: int = 0
    task_id: str | None = None
    task_type: str | None = None
    #: When the workflow, stage or task that changed had started, if it had.
    started_at: datetime | None = None

    @property
    def ends_workflow(self) -> bool:
        """Whether its workflow is at an end with it."""
        return self.event == "workflow" and self.new is not None and self.new.is_complete


#: Called with the transitions of one committed transaction; what it raises is logged, and changes nothing.
Observer = Callable[[Sequence[Transition]], None]
#: Called with the outcome of an attempt, or with ``None`` if its time limit has ended it.
Ended = Callable[[Any], None]


#: Told by every engine of this process, besides each engine's own.
everywhere: list[Observer] = []


class Observers(Sequence[Observer]):
    """Those of one engine, and those of every engine of this process."""

    def __init__(self) -> None:
        self._own: list[Observer] = []

    def append(self, observer: Observer) -> None:
        """One more for this engine."""
        self._own.append(observer)

    def __len__(self) -> int:
        return len(everywhere) + len(self._own)

    def __getitem__(self, index: Any) -> Any:
        return (*everywhere, *self._own)[index]


def transition_of(row: dict[str, Any], workflow: Workflow | None, stage: StageExecution | None) -> Transition:
    """The transition a row of the history stands for."""
    task = None if stage is None or row["task_id"] is None else stage.task_by_id(row["task_id"])
    subject = task or stage or workflow
    return Transition(
        event=row["event"],
        workflow_id=row["workflow_id"],
        application="" if workflow is None else workflow.application,
        workflow_name="" if workflow is None else workflow.name,
        old=row["from_status"],
        new=row["to_status"],
        at=row["at"],
        reason=row["reason"],
        actor=row["actor"],
        worker=row["worker"] or "",
        details=row["details"],
        stage_id=row["stage_id"],
        stage_ref=None if stage is None else stage.ref_id,
        stage_type=None if stage is None else stage.type,
        generation=row["generation"],
        task_id=row["task_id"],
        task_type=None if task is None else task.implementing_class,
        started_at=None if subject is None else subject.start_time,
    )


def tell(observers: Sequence[Observer], transitions: Sequence[Transition]) -> None:
    """Tell every observer; one that fails keeps neither the others nor the engine from going on."""
    for observer in observers:
        try:
            observer(transitions)
        except Exception:
            logger.exception("observer %r failed", observer)


@contextmanager
def watched(hooks: Sequence[AttemptHook], *attempt: Any) -> Iterator[Ended]:
    """Enter the attempt hooks of plugins; one that fails keeps neither the others nor the attempt from going on.

    Args:
        hooks: of this process.
        attempt: what each is called with.
    """
    entered: list[Ended] = []
    with ExitStack() as stack:
        for hook in hooks:
            try:
                manager = hook(*attempt)
                entered.append(manager.__enter__())
            except Exception:
                logger.exception("attempt hook %r failed", hook)
            else:
                stack.push(_leaving(manager, hook))

        def ended(outcome: Any) -> None:
            for each in entered:
                try:
                    each(outcome)
                except Exception:
                    logger.exception("attempt hook %r failed", each)

        yield ended


def _leaving(manager: Any, hook: AttemptHook) -> Callable[..., bool]:
    def leave(*error: Any) -> bool:
        try:
            manager.__exit__(*error)
        except Exception as problem:
            if problem is not error[1]:
                logger.exception("attempt hook %r failed", hook)
        return False

    return leave
