"""The orchestrator of the seed documents: puts what is wanted of a workflow into the queue."""

from __future__ import annotations

from stabilize_celery.errors import ConfigurationError
from stabilize_celery.messages import (
    CancelWorkflow,
    PauseWorkflow,
    RestartStage,
    ResumeWorkflow,
    StartWorkflow,
    WorkflowLevel,
)
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence.message_queue import MessageQueue
from stabilize_celery.persistence.store import WorkflowStore


class Orchestrator:
    """Starts and controls workflows; a processor of the same queue carries it out.

    Args:
        queue: where the messages go.
        store: with it, :meth:`start` stores a workflow that is not stored yet.
    """

    def __init__(self, queue: MessageQueue, store: WorkflowStore | None = None) -> None:
        self.queue = queue
        self.store = store

    def start(self, workflow: Workflow) -> None:
        """Start a workflow that is in the store."""
        if self.store is not None:
            self.store.store(workflow)
        self._push(
            StartWorkflow(workflow_id=workflow.id, pipeline_config_id=workflow.pipeline_config_id), workflow
        )

    def cancel(self, workflow: Workflow, user: str = "", reason: str = "") -> None:
        """Cancel everything that has not ended."""
        self._push(CancelWorkflow(workflow_id=workflow.id, user=user, reason=reason), workflow)

    def restart(self, workflow: Workflow, stage_id: str, user: str = "") -> None:
        """Run a stage that has ended again, and everything downstream of it.

        Raises:
            ValueError: the workflow has no such stage.
        """
        store = self._known_store
        # The caller's copy may be older than the stage's last reset.
        current = workflow if store is None else store.retrieve(workflow.id)
        stage = current.stage_by_id(stage_id)
        message = RestartStage(
            workflow_id=workflow.id,
            stage_id=stage.id,
            generation=stage.generation,
            user=user,
            pipeline_config_id=workflow.pipeline_config_id,
        )
        self._push(message, workflow)

    def pause(self, workflow: Workflow, user: str = "") -> None:
        """Start nothing more until :meth:`unpause`."""
        self._push(PauseWorkflow(workflow_id=workflow.id, user=user), workflow)

    def unpause(self, workflow: Workflow, user: str = "") -> None:
        """Go on after a pause."""
        message = ResumeWorkflow(
            workflow_id=workflow.id, user=user, pipeline_config_id=workflow.pipeline_config_id
        )
        self._push(message, workflow)

    def get_execution(self, workflow_id: str) -> Workflow:
        """A workflow as it stands.

        Raises:
            WorkflowNotFoundError: there is none of that id.
        """
        store = self._known_store
        if store is None:
            raise ConfigurationError(
                "this orchestrator knows no store: make it with Orchestrator(queue, store)"
            )
        return store.retrieve(workflow_id)

    @property
    def _known_store(self) -> WorkflowStore | None:
        return self.store or self.queue.store

    def _push(self, message: WorkflowLevel, workflow: Workflow) -> None:
        self.queue.push(message, label=workflow.name)
