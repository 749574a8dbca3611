"""What can be done to a running workflow from outside: each is a message with a handler.

What makes no sense is refused here, at the call, where it can be seen; what becomes senseless before the message is
handled is dropped by its handler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stabilize_celery.delivery.dispatcher import Dispatcher
from stabilize_celery.errors import (
    InvalidMessageError,
    InvalidWorkflowError,
    StageNotFoundError,
    WorkflowStateError,
)
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
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.suggestions import did_you_mean
from stabilize_celery.tasks.approval import APPROVE, REJECT

#: In place of what every message about a stage carries.
_STAND_IN = {"stage_id": "-", "task_id": "-", "generation": 0}


class Control:
    """The controls of :class:`stabilize_celery.engine.Stabilize`."""

    if TYPE_CHECKING:

        @property
        def store(self) -> WorkflowStore: ...
        @property
        def dispatcher(self) -> Dispatcher: ...

    def cancel(self, workflow_id: str, *, user: str = "", reason: str = "", force: bool = False) -> None:
        """Cancel everything that has not ended.

        Running tasks are told to stop; ``force`` ends the pool process of one that does not.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
            WorkflowStateError: it has ended.
        """
        workflow = self._active(workflow_id, "cancel")
        self._send(CancelWorkflow(workflow_id=workflow_id, user=user, reason=reason, force=force), workflow)

    def cancel_stage(self, workflow_id: str, ref_id: str, *, user: str = "", reason: str = "") -> None:
        """Cancel one stage; its branch ends with it.

        Raises:
            StageNotFoundError: the workflow has no such stage.
            WorkflowStateError: it has ended.
        """
        workflow, stage = self._active_stage(workflow_id, ref_id, "cancel")
        self._send(CancelStage(**_ids(stage), user=user, reason=reason), workflow)

    def pause(self, workflow_id: str, *, user: str = "") -> None:
        """Start nothing more until :meth:`resume`; task bodies that run finish.

        Raises:
            WorkflowStateError: it has ended, or is paused already.
        """
        workflow = self._active(workflow_id, "pause")
        if workflow.status is S.PAUSED:
            raise WorkflowStateError(f"workflow {workflow_id} is paused already", execution_id=workflow_id)
        self._send(PauseWorkflow(workflow_id=workflow_id, user=user, mark=workflow.pause_mark), workflow)

    def resume(self, workflow_id: str, *, user: str = "") -> None:
        """Go on after a pause.

        Raises:
            WorkflowStateError: it is not paused.
        """
        workflow = self._active(workflow_id, "resume")
        if workflow.status is not S.PAUSED:
            raise WorkflowStateError(
                f"workflow {workflow_id} is {workflow.status}, not PAUSED; there is nothing to resume",
                execution_id=workflow_id,
            )
        self._send(
            ResumeWorkflow(
                workflow_id=workflow_id,
                user=user,
                pipeline_config_id=workflow.pipeline_config_id,
                mark=workflow.pause_mark,
            ),
            workflow,
        )

    def restart_stage(self, workflow_id: str, ref_id: str, *, user: str = "") -> None:
        """Run a stage that has ended again, and everything downstream of it.

        Raises:
            StageNotFoundError: the workflow has no such stage.
            WorkflowStateError: the stage has not ended, or the workflow was canceled.
        """
        workflow, stage = self._stage(workflow_id, ref_id)
        if workflow.is_canceled:
            raise WorkflowStateError(
                f"workflow {workflow_id} was canceled and cannot be restarted; start a new one",
                execution_id=workflow_id,
            )
        if not stage.status.is_complete:
            raise WorkflowStateError(
                f"stage {ref_id} is {stage.status}; only a stage that has ended can be restarted",
                execution_id=workflow_id,
            )
        self._send(
            RestartStage(**_ids(stage), user=user, pipeline_config_id=workflow.pipeline_config_id), workflow
        )

    def skip_stage(self, workflow_id: str, ref_id: str, *, user: str = "", reason: str = "") -> None:
        """End a stage as SKIPPED; what comes after it goes on.

        Raises:
            StageNotFoundError: the workflow has no such stage.
            WorkflowStateError: it has ended.
        """
        workflow, stage = self._active_stage(workflow_id, ref_id, "skip")
        self._send(SkipStage(**_ids(stage), user=user, reason=reason), workflow)

    def signal(
        self,
        workflow_id: str,
        ref_id: str,
        name: str,
        data: dict[str, Any] | None = None,
        *,
        persistent: bool = True,
        user: str = "",
    ) -> None:
        """Wake the task of a stage that waits for a signal.

        Args:
            workflow_id: the workflow.
            ref_id: the stage.
            name: what the signal says; the task finds it in its context as ``_signal_name``.
            data: goes with it, as ``_signal_data``.
            persistent: keep it for the next suspension if nobody waits now; otherwise it is lost.
            user: who sends it.

        Raises:
            StageNotFoundError: the workflow has no such stage.
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
        workflow, stage = self._active_stage(workflow_id, ref_id, "signal")
        self._send(
            SignalStage(
                **_ids(stage),
                signal_name=name,
                signal_data=dict(data or {}),
                persistent=persistent,
                user=user,
            ),
            workflow,
        )

    def approve(
        self, workflow_id: str, ref_id: str, *, user: str = "", data: dict[str, Any] | None = None
    ) -> None:
        """Let an approval stage succeed: the signal "approve", kept if the stage does not wait for it yet.

        Raises:
            StageNotFoundError: the workflow has no such stage.
            WorkflowStateError: the stage has ended.
            InvalidWorkflowError: the data is not JSON.
        """
        self.signal(workflow_id, ref_id, APPROVE, data, user=user)

    def reject(
        self, workflow_id: str, ref_id: str, *, user: str = "", data: dict[str, Any] | None = None
    ) -> None:
        """Let an approval stage fail: the signal "reject".

        Raises:
            StageNotFoundError: the workflow has no such stage.
            WorkflowStateError: the stage has ended.
            InvalidWorkflowError: the data is not JSON.
        """
        self.signal(workflow_id, ref_id, REJECT, data, user=user)

    # ------------------------------------------------------------------ looking before sending

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
        self.dispatcher.send(message, workflow.name, to_existing=True)

    def _active(self, workflow_id: str, verb: str) -> Workflow:
        workflow = self.store.head(workflow_id)
        _refuse_ended(workflow.status, f"workflow {workflow_id}", verb, workflow_id)
        return workflow

    def _stage(self, workflow_id: str, ref_id: str) -> tuple[Workflow, StageExecution]:
        workflow = self.store.retrieve(workflow_id)
        if not isinstance(ref_id, str):
            raise StageNotFoundError(f"a stage is named by its ref_id, not by {ref_id!r:.100}")
        stage = workflow.stage_by_ref_id(ref_id)
        if stage is None:
            # Synthetic stages have made-up ref_ids; people know them by name.
            named = [s for s in workflow.stages if s.is_synthetic and s.name == ref_id]
            if len(named) != 1:
                known = [s.ref_id for s in workflow.top_level_stages()]
                raise StageNotFoundError(
                    f"workflow {workflow_id} has no stage {ref_id!r}{did_you_mean(ref_id, known)}"
                )
            stage = named[0]
        return workflow, stage

    def _active_stage(self, workflow_id: str, ref_id: str, verb: str) -> tuple[Workflow, StageExecution]:
        workflow, stage = self._stage(workflow_id, ref_id)
        _refuse_ended(workflow.status, f"workflow {workflow_id}", verb, workflow_id)
        _refuse_ended(stage.status, f"stage {ref_id}", verb, workflow_id)
        return workflow, stage


def _refuse_ended(status: S, what: str, verb: str, workflow_id: str) -> None:
    if status.is_complete:
        raise WorkflowStateError(f"cannot {verb} {what}: it ended {status}", execution_id=workflow_id)


def _ids(stage: StageExecution) -> dict[str, Any]:
    return {"workflow_id": stage.execution.id, "stage_id": stage.id, "generation": stage.generation}
