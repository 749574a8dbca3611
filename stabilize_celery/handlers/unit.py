"""What a handler may ask of the transaction it runs in.

Handlers know neither SQL nor Celery: they see the database through this protocol, which
:class:`stabilize_celery.persistence.unit_of_work.UnitOfWork` implements.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Protocol

from stabilize_celery.messages import Message
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import ParentTask, Workflow
from stabilize_celery.settings import Settings
from stabilize_celery.stages.builder import StageDefinitionBuilderFactory
from stabilize_celery.tasks.outcome import Attempt
from stabilize_celery.tasks.registry import TaskRegistry


class Slots(Protocol):
    """The slots of one configuration, locked."""

    taken: int
    #: ``None`` without a limit.
    limit: int | None
    keep_waiting: bool

    def observe(self, workflow: Workflow) -> None:
        """Let the limit of this execution count if it is the newest of its configuration."""


class Unit(Protocol):
    """One transaction on one workflow."""

    now: datetime
    settings: Settings
    registry: TaskRegistry
    redact_keys: tuple[str, ...]
    builders: StageDefinitionBuilderFactory
    #: Set while the result of a task is recorded.
    attempt: Attempt | None

    # -- loading; stages and workflows are locked until the end of the transaction

    def workflow(self, workflow_id: str) -> Workflow | None:
        """A workflow without its stages, locked."""

    def whole(self, workflow_id: str) -> Workflow | None:
        """A workflow with all its stages, locked; only behind an exclusive gate."""

    def stage(self, stage_id: str) -> StageExecution | None:
        """A stage, locked, with the head of its workflow; ``None`` if there is none."""

    def stage_by_ref(self, workflow: Workflow, ref_id: str) -> StageExecution | None:
        """A stage of a workflow by its ref_id, locked; ``None`` if there is none."""

    #: How many stages should be started in one transaction; ``None`` where each has a transaction of its own anyway.
    batch: int | None

    def stages(self, workflow_id: str, stage_ids: list[str]) -> list[StageExecution]:
        """Some stages of a workflow, locked, read at once with what their start needs to know."""

    def initial_stages(self, workflow: Workflow) -> list[StageExecution]:
        """The stages a workflow starts with, locked."""

    def downstream(self, stage: StageExecution) -> list[StageExecution]:
        """The stages directly after one, locked."""

    def behind(self, stage: StageExecution) -> list[StageExecution]:
        """The stages after one, directly or not, that may still wait for it: locked, upstream before downstream.

        ``requisite_stage_ref_ids`` of each has those of its requirements through which it is reached.
        """

    def upstreams(self, stage: StageExecution) -> list[StageExecution]:
        """The stages directly before one: id, ref_id, status, rank and sources only, not locked."""

    def children(self, stage: StageExecution) -> list[StageExecution]:
        """Its synthetic stages: how they stand, not locked."""

    def sees(self, stage: StageExecution) -> dict[str, Any]:
        """Everything a stage sees of others, as values."""

    def stage_names(self, stage: StageExecution) -> dict[str, Any]:
        """For conditions: the outputs of the stages directly before one, by ref_id."""

    def statuses(self, workflow: Workflow) -> dict[WorkflowStatus, int]:
        """How many of the workflow's own stages are in which status."""

    def sub_workflows(self, workflow: Workflow) -> list[str]:
        """The ids of the workflows that its tasks started and that have not ended."""

    def inner_workflows(self, stage: StageExecution) -> list[str]:
        """The ids of the workflows that tasks of a stage started and that have not ended."""

    def waiting_task(self, workflow: Workflow) -> ParentTask | None:
        """The task that waits for a workflow by now, read under the lock of the workflow's row."""

    def outer_is_paused(self, workflow: Workflow) -> bool:
        """Whether the workflow whose task started this one is paused now; read, not locked."""

    def is_wanted(self, workflow: Workflow) -> bool:
        """Whether the stage whose task started a workflow has neither ended nor been reset; its row is locked."""

    # -- changing

    def change(self, entity: Workflow | StageExecution, **values: Any) -> None:
        """Set attributes and write them at the end of the transaction."""

    def taken_refs(self, workflow: Workflow, refs: set[str]) -> set[str]:
        """Those of some ref_ids that other stages of a workflow have."""

    def insert_children(self, parent: StageExecution, stages: Iterable[StageExecution]) -> None:
        """Add synthetic stages, in topological order."""

    def keep_for_hooks(self, stage: StageExecution) -> None:
        """Hooks of a stage that have not been called yet are given the stage as it is now."""

    def delete_children(self, stages: Iterable[StageExecution]) -> None:
        """Remove synthetic stages, and the synthetic stages of those."""

    def add_branches(self, workflow: Workflow, count: int) -> None:
        """More branches are under way."""

    def release_branches(self, workflow: Workflow, count: int) -> int:
        """Branches have ended; locks the workflow.  Returns how many are left."""

    def record(
        self,
        event: str,
        workflow_id: str,
        *,
        stage: StageExecution | None = None,
        task_id: str | None = None,
        old: WorkflowStatus | None = None,
        new: WorkflowStatus | None = None,
        reason: str = "",
        actor: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        """Append to the history."""

    # -- messages

    def send(self, message: Message, *, delay: float = 0.0) -> None:
        """Send a message: handled in place where possible, else through a row and the broker."""

    def requeue(
        self,
        *,
        delay: float,
        counted: bool,
        error: dict[str, Any] | None = None,
        waits_in: str | None = None,
    ) -> None:
        """Put the message being handled back, to be due in ``delay`` seconds; ``counted`` keeps the attempt.

        One that ``waits_in`` a queue can be started at once by the process that finds its work there; ``delay`` is
        when the relay looks after it.
        """

    def stop_running(self, stage: StageExecution, *, force: bool) -> None:
        """Cancel the leases of a stage's tasks, and drop what is queued for it."""

    def is_at_work(self, stage: StageExecution) -> bool:
        """Whether a worker runs a task of the stage, as far as its lease tells."""

    def drop_timers(self, workflow: Workflow, stage: StageExecution | None = None) -> None:
        """Forget the messages that stand for time limits of its stages and suspensions."""

    # -- signals and slots

    def keep_signal(self, stage: StageExecution, name: str, data: dict[str, Any], user: str) -> None:
        """Keep a persistent signal until a task of the stage suspends."""

    def next_signal(self, stage: StageExecution) -> tuple[str, dict[str, Any], str] | None:
        """Take the oldest kept signal: name, data, user."""

    def drop_signals(self, stage: StageExecution) -> None:
        """Forget signals kept for a stage."""

    def slots(self, config_id: str) -> Slots:
        """The slots of a configuration, locked; to be asked for before any workflow is locked."""

    def waiting(self, config_id: str, most: int) -> list[Workflow]:
        """Executions that wait for a slot, oldest first, locked."""

    def hold_slot(self, workflow: Workflow, held: bool) -> None:
        """A slot is taken or given back by a workflow."""

    def holds_slot(self, workflow: Workflow) -> bool:
        """Whether a workflow, locked, holds a slot."""
