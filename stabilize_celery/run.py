"""A started workflow, as its starter holds it: asking after it, waiting for it, and every control."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from stabilize_celery.clock import MAX_SECONDS, check_seconds
from stabilize_celery.delivery.dispatcher import Dispatcher
from stabilize_celery.delivery.embedded import EagerLoop
from stabilize_celery.errors import (
    InvalidMessageError,
    InvalidWorkflowError,
    StageNotFoundError,
    StoreError,
    WorkflowCanceledError,
    WorkflowFailedError,
    WorkflowStateError,
    WorkflowTimeoutError,
    described_text,
    described_traceback,
)
from stabilize_celery.handlers.base import stage_ids
from stabilize_celery.json_values import ensure_json
from stabilize_celery.messages import (
    CancelStage,
    CancelWorkflow,
    PauseWorkflow,
    RestartStage,
    ResumeWorkflow,
    SignalStage,
    SkipStage,
    WorkflowLevel,
    decode,
    payload_of,
)
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.validation import check_text
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence.database import is_unavailable, patiently
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.tasks.approval import APPROVE, REJECT

_SHORTEST_WAIT, _LONGEST_WAIT = 0.01, 0.5
#: In seconds: how long a question without a timeout waits for a database that is away, about as long as it takes to restart.
PATIENCE = 10.0
#: In place of what every message about a stage carries.
_STAND_IN = {"stage_id": "-", "task_id": "-", "generation": 0}


class Engine(Protocol):
    """What a run needs of the engine it belongs to."""

    @property
    def store(self) -> WorkflowStore: ...
    @property
    def dispatcher(self) -> Dispatcher: ...
    @property
    def eager(self) -> EagerLoop | None: ...
    def drive(self, timeout: float | None, until: Callable[[], bool]) -> bool: ...


class WorkflowRun:
    """A handle on one execution, like Celery's ``AsyncResult`` on a task."""

    def __init__(self, engine: Engine, workflow_id: str) -> None:
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
        """Cancel everything that has not ended; ``force`` ends the pool process of a task that does not stop.

        Raises:
            WorkflowNotFoundError: there is no such workflow; as all of these.
            WorkflowStateError: it has ended.
        """
        workflow = self._active("cancel")
        self._send(CancelWorkflow(workflow_id=self.id, user=user, reason=reason, force=force), workflow)

    def cancel_stage(self, ref_id: str, *, reason: str = "", user: str = "") -> None:
        """Cancel one stage; its branch ends with it.

        Raises:
            StageNotFoundError: the workflow has no such stage; as all that name one.
            WorkflowStateError: it has ended.
        """
        stage = self._active_stage(ref_id, "cancel")
        self._send(CancelStage(**stage_ids(stage), user=user, reason=reason), stage.execution)

    def pause(self, *, user: str = "") -> None:
        """Start nothing more until :meth:`resume`; task bodies that run finish.

        Raises:
            WorkflowStateError: it has ended, or is paused already.
        """
        workflow = self._active("pause")
        if workflow.status is S.PAUSED:
            raise WorkflowStateError(f"workflow {self.id} is paused already", execution_id=self.id)
        self._send(PauseWorkflow(workflow_id=self.id, user=user, mark=workflow.pause_mark), workflow)

    def resume(self, *, user: str = "") -> None:
        """Go on after a pause.

        Raises:
            WorkflowStateError: it is not paused.
        """
        workflow = self._active("resume")
        if workflow.status is not S.PAUSED:
            raise WorkflowStateError(
                f"workflow {self.id} is {workflow.status}, not PAUSED; there is nothing to resume",
                execution_id=self.id,
            )
        of_limit = workflow.pipeline_config_id
        message = ResumeWorkflow(
            workflow_id=self.id, user=user, pipeline_config_id=of_limit, mark=workflow.pause_mark
        )
        self._send(message, workflow)

    def restart_stage(self, ref_id: str, *, user: str = "") -> None:
        """Run a stage that has ended again, and everything downstream of it.

        Raises:
            WorkflowStateError: the stage has not ended, or the workflow was canceled.
        """
        stage = self._stage(ref_id)
        workflow = stage.execution
        if workflow.is_canceled:
            raise WorkflowStateError(
                f"workflow {self.id} was canceled and cannot be restarted; start a new one",
                execution_id=self.id,
            )
        if not stage.status.is_complete:
            raise WorkflowStateError(
                f"stage {ref_id} is {stage.status}; only a stage that has ended can be restarted",
                execution_id=self.id,
            )
        message = RestartStage(**stage_ids(stage), user=user, pipeline_config_id=workflow.pipeline_config_id)
        self._send(message, workflow)

    def skip_stage(self, ref_id: str, *, reason: str = "", user: str = "") -> None:
        """End a stage as SKIPPED; what comes after it goes on.

        Raises:
            WorkflowStateError: it has ended.
        """
        stage = self._active_stage(ref_id, "skip")
        self._send(SkipStage(**stage_ids(stage), user=user, reason=reason), stage.execution)

    def signal(
        self,
        ref_id: str,
        name: str,
        data: dict[str, Any] | None = None,
        *,
        persistent: bool = True,
        user: str = "",
    ) -> None:
        """Wake the task of a stage that waits for a signal.

        Args:
            ref_id: the stage.
            name: what the signal says; the task finds it in its context as ``_signal_name``.
            data: goes with it, as ``_signal_data``.
            persistent: keep it for the next suspension if no task waits now; otherwise it is lost.
            user: who sends it.

        Raises:
            WorkflowStateError: the stage has ended.
            InvalidWorkflowError: the data is not JSON, or the name is empty.
        """
        if not name:
            raise InvalidWorkflowError("a signal needs a name")
        if data is not None and not isinstance(data, dict):
            raise InvalidWorkflowError(
                f"the data of signal {name} must be a mapping, not of type {type(data).__name__}"
            )
        ensure_json(data or {}, f"signal {name}")
        stage = self._active_stage(ref_id, "signal")
        message = SignalStage(
            **stage_ids(stage),
            signal_name=name,
            signal_data=dict(data or {}),
            persistent=persistent,
            user=user,
        )
        self._send(message, stage.execution)

    def approve(self, ref_id: str, *, user: str = "", data: dict[str, Any] | None = None) -> None:
        """Let an approval stage succeed: the signal "approve", kept if the stage does not wait for it yet."""
        self.signal(ref_id, APPROVE, data, user=user)

    def reject(self, ref_id: str, *, user: str = "", data: dict[str, Any] | None = None) -> None:
        """Let an approval stage fail: the signal "reject"."""
        self.signal(ref_id, REJECT, data, user=user)

    # What makes no sense is refused here, at the call, where it can be seen; what becomes senseless before its message
    # is handled is dropped by the handler.

    def _send(self, message: WorkflowLevel, workflow: Workflow) -> None:
        payload = payload_of(message)
        for name, value in payload.items():
            if isinstance(value, str):
                check_text(value, f"{message.type}: {name}")
        try:
            decode(message.type, {"workflow_id": message.workflow_id, **_STAND_IN}, payload)
        except InvalidMessageError as error:
            # Found later, it would be a dead letter, and take the workflow with it.
            raise InvalidWorkflowError(str(error)) from None
        self._engine.dispatcher.send(message, workflow.name, to_existing=True)

    def _active(self, verb: str) -> Workflow:
        workflow = self._engine.store.head(self.id)
        _refuse_ended(workflow.status, f"workflow {self.id}", verb, self.id)
        return workflow

    def _stage(self, ref_id: str) -> StageExecution:
        if not isinstance(ref_id, str):
            raise StageNotFoundError(f"a stage is named by its ref_id, not by {ref_id!r:.100}")
        return self._engine.store.find_stage(self.id, ref_id)

    def _active_stage(self, ref_id: str, verb: str) -> StageExecution:
        stage = self._stage(ref_id)
        _refuse_ended(stage.execution.status, f"workflow {self.id}", verb, self.id)
        _refuse_ended(stage.status, f"stage {ref_id}", verb, self.id)
        return stage


def _refuse_ended(status: S, what: str, verb: str, workflow_id: str) -> None:
    if status.is_complete:
        raise WorkflowStateError(f"cannot {verb} {what}: it ended {status}", execution_id=workflow_id)


#: Name on the command line and in the HTTP API -> the method, and what it does: a sentence for a list of verbs, then more.
VERBS: Mapping[str, tuple[Callable[..., None], str]] = {
    "pause": (WorkflowRun.pause, "Pause a workflow. What runs finishes, nothing more starts."),
    "resume": (WorkflowRun.resume, "Let a paused workflow go on."),
    "cancel": (
        WorkflowRun.cancel,
        "Cancel a workflow. Tasks that run are asked to stop, nothing more starts.",
    ),
    "cancel-stage": (WorkflowRun.cancel_stage, "Cancel one stage; its branch ends with it."),
    "skip": (WorkflowRun.skip_stage, "End a stage as SKIPPED; what comes after it goes on."),
    "restart": (
        WorkflowRun.restart_stage,
        "Run a stage that has ended again, and everything after it.",
    ),
    "signal": (
        WorkflowRun.signal,
        "Send a signal to a stage that waits for one. It is kept if the stage does not wait yet.",
    ),
    "approve": (WorkflowRun.approve, "Let an approval stage succeed."),
    "reject": (WorkflowRun.reject, "Let an approval stage fail."),
}


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
