"""A started workflow, as its starter holds it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stabilize_celery.clock import MAX_SECONDS, check_seconds
from stabilize_celery.errors import (
    StoreError,
    WorkflowCanceledError,
    WorkflowFailedError,
    WorkflowTimeoutError,
    described_text,
    described_traceback,
)
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence.database import is_unavailable, patiently

if TYPE_CHECKING:
    from stabilize_celery.engine import Stabilize

_SHORTEST_WAIT, _LONGEST_WAIT = 0.01, 0.5
#: In seconds: how long a question without a timeout waits for a database that is away, about as long as it takes to restart.
PATIENCE = 10.0


class WorkflowRun:
    """A handle on one execution, like Celery's ``AsyncResult`` on a task."""

    def __init__(self, engine: Stabilize, workflow_id: str) -> None:
        self._engine = engine
        self.id = workflow_id

    def __repr__(self) -> str:
        return f"<WorkflowRun {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WorkflowRun) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def status(self) -> S:
        """Where it stands now.

        Raises:
            StoreError: the database is away, for longer than 10 seconds; as from the other questions.
        """
        return patiently(lambda: self._engine.store.head(self.id).status, PATIENCE)

    def ready(self) -> bool:
        """Whether it has ended."""
        return self.status.is_complete

    def successful(self) -> bool:
        """Whether it has ended SUCCEEDED."""
        return self.status is S.SUCCEEDED

    def workflow(self) -> Workflow:
        """A fresh copy of the workflow with its stages, tasks and outputs."""
        return patiently(lambda: self._engine.store.retrieve(self.id), PATIENCE)

    def history(self) -> list[dict[str, Any]]:
        """Every transition so far, in order: time, event, statuses, reason, actor, worker."""
        return patiently(lambda: self._engine.store.history(self.id), PATIENCE)

    def wait(self, timeout: float | None = None) -> S:
        """Wait until it has ended, for ``timeout`` seconds at most; returns the final status.

        An embedded engine works meanwhile.  A database that is away is waited for as well.

        Raises:
            TypeError, ValueError: ``timeout`` is no finite number.
            WorkflowTimeoutError: it has not ended by then, or could not be asked; it goes on.
        """
        if timeout is not None:
            # One that was computed may be negative: the time is over.
            check_seconds(timeout, "timeout", shortest=-MAX_SECONDS)
        end = None if timeout is None else time.monotonic() + timeout
        pause = _SHORTEST_WAIT
        while True:
            try:
                patience = None if end is None else max(0.0, end - time.monotonic())
                status = patiently(lambda: self._engine.store.head(self.id).status, patience)
            except StoreError as error:
                if end is None or not is_unavailable(error):
                    raise
                raise WorkflowTimeoutError(
                    f"workflow {self.id} could not be asked within {timeout:g} s: {error}",
                    execution_id=self.id,
                ) from error
            if status.is_complete:
                return status
            left = _LONGEST_WAIT if end is None else end - time.monotonic()
            if left <= 0:
                raise WorkflowTimeoutError(
                    f"workflow {self.id} is {status} after {timeout:g} s; it goes on, ask again later",
                    execution_id=self.id,
                )
            self._pass(min(pause, left), None if end is None else left)
            pause = min(pause * 1.5, _LONGEST_WAIT)

    def _pass(self, pause: float, left: float | None) -> None:
        """Let others work, or work: in an embedded engine, or while ``task_always_eager`` leaves it to this process."""
        if (loop := self._engine.eager) is not None:
            loop.drain(pause, self.ready)
        elif not self._engine.drive(left, self.ready):
            time.sleep(pause)

    def get(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait until it has ended and return the merged outputs of its stages, not those of synthetic ones.

        Raises:
            WorkflowFailedError: it ended TERMINAL; ``errors`` says of each failed stage what it reported.
            WorkflowCanceledError: it was canceled.
            WorkflowTimeoutError: (a TimeoutError) it has not ended within ``timeout`` seconds.
        """
        status = self.wait(timeout)
        workflow = self.workflow()
        if status is S.CANCELED:
            by = f" by {workflow.canceled_by}" if workflow.canceled_by else ""
            why = f": {workflow.cancellation_reason}" if workflow.cancellation_reason else ""
            raise WorkflowCanceledError(
                f"workflow {workflow.name} ({self.id}) was canceled{by}{why}", execution_id=self.id
            )
        if status is S.TERMINAL:
            errors = stage_errors(workflow)
            told = (
                "; ".join(f"{ref}: {error}" for ref, error in errors.items()) or "no stage reported an error"
            )
            raise WorkflowFailedError(
                f"workflow {workflow.name} ({self.id}) failed: {told}",
                errors=errors,
                traceback="\n\n".join(f"stage {ref}:\n{text}" for ref, text in stage_tracebacks(workflow)),
                execution_id=self.id,
            )
        return merged_outputs(workflow)

    # ------------------------------------------------------------------ control

    def cancel(self, *, reason: str = "", user: str = "", force: bool = False) -> None:
        """See :meth:`Stabilize.cancel`."""
        self._engine.cancel(self.id, user=user, reason=reason, force=force)

    def cancel_stage(self, ref_id: str, *, reason: str = "", user: str = "") -> None:
        """See :meth:`Stabilize.cancel_stage`."""
        self._engine.cancel_stage(self.id, ref_id, user=user, reason=reason)

    def pause(self, *, user: str = "") -> None:
        """See :meth:`Stabilize.pause`."""
        self._engine.pause(self.id, user=user)

    def resume(self, *, user: str = "") -> None:
        """See :meth:`Stabilize.resume`."""
        self._engine.resume(self.id, user=user)

    def restart_stage(self, ref_id: str, *, user: str = "") -> None:
        """See :meth:`Stabilize.restart_stage`."""
        self._engine.restart_stage(self.id, ref_id, user=user)

    def skip_stage(self, ref_id: str, *, reason: str = "", user: str = "") -> None:
        """See :meth:`Stabilize.skip_stage`."""
        self._engine.skip_stage(self.id, ref_id, user=user, reason=reason)

    def signal(
        self,
        ref_id: str,
        name: str,
        data: dict[str, Any] | None = None,
        *,
        persistent: bool = True,
        user: str = "",
    ) -> None:
        """See :meth:`Stabilize.signal`."""
        self._engine.signal(self.id, ref_id, name, data, persistent=persistent, user=user)

    def approve(self, ref_id: str, *, user: str = "", data: dict[str, Any] | None = None) -> None:
        """See :meth:`Stabilize.approve`."""
        self._engine.approve(self.id, ref_id, user=user, data=data)

    def reject(self, ref_id: str, *, user: str = "", data: dict[str, Any] | None = None) -> None:
        """See :meth:`Stabilize.reject`."""
        self._engine.reject(self.id, ref_id, user=user, data=data)


@dataclass(frozen=True)
class Verb:
    """A control of a run, as the command line and the HTTP API offer it.

    Attributes:
        name: of the command, and the last part of the address.
        do: the method of the run; about a stage, it takes the stage's ref_id first.
        help: a sentence for people; what else there is to say follows after an empty line.
        of_stage: whether it is about one stage.
        needs: what else must be given.
        takes: what else may be given.
    """

    name: str
    do: Callable[..., None]
    help: str
    of_stage: bool = False
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


VERBS = (
    Verb("pause", WorkflowRun.pause, "Pause a workflow.\n\nWhat runs finishes, nothing more starts."),
    Verb("resume", WorkflowRun.resume, "Let a paused workflow go on."),
    Verb(
        "cancel",
        WorkflowRun.cancel,
        "Cancel a workflow.\n\nWhat runs is asked to stop, nothing more starts.",
        takes=("reason", "force"),
    ),
    Verb(
        "cancel-stage",
        WorkflowRun.cancel_stage,
        "Cancel one stage; its branch ends with it.",
        of_stage=True,
        takes=("reason",),
    ),
    Verb(
        "skip",
        WorkflowRun.skip_stage,
        "End a stage as SKIPPED; what comes after it goes on.",
        of_stage=True,
        takes=("reason",),
    ),
    Verb(
        "restart",
        WorkflowRun.restart_stage,
        "Run a stage that has ended again, and everything after it.",
        of_stage=True,
    ),
    Verb(
        "signal",
        WorkflowRun.signal,
        "Send a signal to a stage that waits for one.\n\nIt is kept for a stage that does not wait yet.",
        of_stage=True,
        needs=("name",),
        takes=("data", "persistent"),
    ),
    Verb("approve", WorkflowRun.approve, "Let an approval stage succeed.", of_stage=True, takes=("data",)),
    Verb("reject", WorkflowRun.reject, "Let an approval stage fail.", of_stage=True, takes=("data",)),
)


def stage_errors(workflow: Workflow) -> dict[str, str]:
    """What each failed stage of a workflow reported, by ref_id (by name for synthetic stages)."""
    errors: dict[str, str] = {}
    for stage in workflow.stages:
        if not stage.status.is_failure:
            continue
        text = described_text(stage.context.get("exception")) or stage.context.get("error")
        if text:
            errors[stage.called] = str(text)
    return errors


def stage_tracebacks(workflow: Workflow) -> list[tuple[str, str]]:
    """The traceback of each failed stage, and of the last attempt at one that is being repeated."""
    found = []
    for stage in workflow.stages:
        kept = [stage.own_context.get("exception")] if stage.status.is_failure else []
        kept += [task.last_error for task in stage.tasks if not stage.status.is_complete]
        found += [(stage.called, text) for text in map(described_traceback, kept) if text]
    return found


def merged_outputs(workflow: Workflow) -> dict[str, Any]:
    """The outputs of its stages without the synthetic ones, in topological order: the last value of a key survives."""
    merged: dict[str, Any] = {}
    for stage in sorted(workflow.top_level_stages(), key=lambda s: s.rank):
        merged.update(stage.outputs)
    return merged
