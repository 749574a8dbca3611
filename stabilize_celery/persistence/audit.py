"""What an audit reads: many workflows at once, as they stand at one moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, case, delete, func, null, or_, select, text

from stabilize_celery.messages import CompleteWorkflow
from stabilize_celery.models.stage import DEADLINE_KEY, StageExecution
from stabilize_celery.models.status import COMPLETED_STATUSES, WorkflowStatus
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence import rows
from stabilize_celery.persistence.database import Database
from stabilize_celery.persistence.rows import WAITS_IN
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import (
    edges,
    messages,
    slots,
    stages,
    workflows,
)
from stabilize_celery.persistence.unit_of_work import Surroundings, UnitOfWork

LIVE = tuple(status for status in WorkflowStatus if not status.is_complete)
_ENDED = tuple(COMPLETED_STATUSES)
_ACTIVE = (WorkflowStatus.RUNNING, WorkflowStatus.SUSPENDED, WorkflowStatus.PAUSED)
#: An audit looks at no data, which may be large: of the context it sees when the time of a stage is over.
_DEADLINE: Any = stages.c.context[DEADLINE_KEY]
_STAGES = [
    *(c for c in stages.c if c.name not in ("context", "outputs", "sources", "output_reducers", "rank")),
    _DEADLINE.label("context"),
]
_WORKFLOWS = [c for c in workflows.c if c.name not in ("context", "trigger")]
#: Messages whose content an audit needs to see.
_OPENED = ("StartStages", "CompleteWorkflow", "ResumeWorkflow", "StartWaitingWorkflows")
_MESSAGES = [
    *(c for c in messages.c if c.name not in ("payload", "last_error")),
    case((messages.c.type.in_(_OPENED), messages.c.payload), else_=null()).label("payload"),
]
#: About workflows that have ended, and useful.
_LATE_WORK = (
    "RunHook",
    "RestartStage",
    "InvalidWorkflowId",
    "InvalidStageId",
    "InvalidTaskId",
    "InvalidTaskType",
)


@dataclass
class SubWorkflow:
    """A workflow that a task started, as far as that task waits for it."""

    id: str
    status: WorkflowStatus
    stage_id: str
    generation: int


@dataclass
class Standing:
    """A workflow with its stages and everything that may drive it.

    The stages are without their data, unless the workflow was loaded whole.
    """

    workflow: Workflow
    now: datetime
    holds_slot: bool = False
    #: Rows of the messages table.
    messages: list[dict[str, Any]] = field(default_factory=list)
    sub_workflows: list[SubWorkflow] = field(default_factory=list)


@dataclass
class Slots:
    """How the slots of a configuration stand."""

    config_id: str
    limit: int | None
    taken: int
    waiting: int
    #: A message is on its way that gives slots out.
    is_served: bool


@contextmanager
def one_moment(database: Database) -> Iterator[Connection]:
    """A transaction whose statements all see the database as it is at its first."""
    with database.begin() as connection:
        if database.is_postgresql:
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
        yield connection


def read_standing(
    connection: Connection, now: datetime, status: WorkflowStatus, after: str, limit: int
) -> list[Standing]:
    """Workflows of one status, by id, from the one after ``after``."""
    chosen = (
        select(*_WORKFLOWS)
        .where(workflows.c.status == status, workflows.c.id > after)
        .order_by(workflows.c.id)
        .limit(limit)
    )
    return _with_all(connection, now, chosen)


def read_one_standing(connection: Connection, now: datetime, workflow_id: str) -> Standing | None:
    """One workflow; ``None`` if there is none of that id."""
    found = _with_all(connection, now, select(*_WORKFLOWS).where(workflows.c.id == workflow_id))
    return found[0] if found else None


def _with_all(connection: Connection, now: datetime, chosen: Any) -> list[Standing]:
    standing: dict[str, Standing] = {}
    for row in connection.execute(chosen).mappings():
        standing[row["id"]] = Standing(rows.workflow_from_row(dict(row)), now, row["holds_slot"])
    ids = list(standing)
    if not ids:
        return []
    by_id: dict[str, StageExecution] = {}
    statement = select(*_STAGES).where(stages.c.workflow_id.in_(ids)).order_by(stages.c.position, stages.c.id)
    for row in connection.execute(statement).mappings():
        seen = {**row, "context": {DEADLINE_KEY: row["context"]}}
        stage = by_id[row["id"]] = rows.stage_from_row(seen)
        workflow = standing[row["workflow_id"]].workflow
        stage.execution = workflow
        workflow.stages.append(stage)
    graph = select(edges.c.upstream_id, edges.c.downstream_id).where(edges.c.workflow_id.in_(ids))
    for upstream_id, downstream_id in connection.execute(graph):
        if upstream_id in by_id and downstream_id in by_id:
            by_id[downstream_id].requisite_stage_ref_ids.add(by_id[upstream_id].ref_id)
    for workflow_id, found in read_sub_workflows(connection, ids).items():
        standing[workflow_id].sub_workflows = found
    for workflow_id, sent in read_messages(connection, ids).items():
        standing[workflow_id].messages = sent
    return list(standing.values())


def read_messages(connection: Connection, workflow_ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The messages of some workflows."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in connection.execute(
        select(*_MESSAGES).where(messages.c.workflow_id.in_(workflow_ids))
    ).mappings():
        found[row["workflow_id"]].append(dict(row))
    return found


def read_sub_workflows(connection: Connection, workflow_ids: Sequence[str]) -> dict[str, list[SubWorkflow]]:
    """The workflows that tasks of some workflows started."""
    found: dict[str, list[SubWorkflow]] = defaultdict(list)
    statement = select(
        workflows.c.id, workflows.c.status, workflows.c.parent, workflows.c.parent_workflow_id
    ).where(workflows.c.parent_workflow_id.in_(workflow_ids))
    for row in connection.execute(statement):
        parent = row.parent or {}
        found[row.parent_workflow_id].append(
            SubWorkflow(row.id, row.status, parent.get("stage_id", ""), parent.get("generation", 0))
        )
    return found


def read_slots(connection: Connection) -> list[Slots]:
    """Every configuration for which executions wait."""
    counted = connection.execute(
        select(
            workflows.c.pipeline_config_id,
            func.sum(case((workflows.c.holds_slot, 1), else_=0)).label("taken"),
            func.sum(case((and_(~workflows.c.holds_slot, ~workflows.c.is_canceled), 1), else_=0)).label(
                "waiting"
            ),
        )
        .where(
            workflows.c.pipeline_config_id.is_not(None),
            or_(workflows.c.holds_slot, workflows.c.status == WorkflowStatus.BUFFERED),
        )
        .group_by(workflows.c.pipeline_config_id)
    ).all()
    limited = connection.execute(select(slots.c.pipeline_config_id, slots.c.max_concurrent))
    limits = {row.pipeline_config_id: row.max_concurrent for row in limited}
    sent = select(messages.c.payload).where(messages.c.type == "StartWaitingWorkflows")
    served = {payload.get("pipeline_config_id") for payload in connection.execute(sent).scalars()}
    return [
        Slots(
            row.pipeline_config_id,
            limits.get(row.pipeline_config_id),
            int(row.taken),
            int(row.waiting),
            row.pipeline_config_id in served,
        )
        for row in counted
        if row.waiting
    ]


def read_leaked_slots(connection: Connection, limit: int) -> list[tuple[str, str]]:
    """Workflows, with their configuration, that hold a slot though they do not run."""
    idle = (*_ENDED, WorkflowStatus.PAUSED)
    found = (
        select(workflows.c.id, workflows.c.pipeline_config_id)
        .where(workflows.c.holds_slot, workflows.c.status.in_(idle))
        .order_by(workflows.c.id)
        .limit(limit)
    )
    return [(row.id, row.pipeline_config_id) for row in connection.execute(found)]


def read_left_behind(connection: Connection, limit: int) -> list[dict[str, Any]]:
    """Stages that are active in workflows that have ended."""
    found = (
        select(stages.c.id, stages.c.ref_id, stages.c.name, stages.c.parent_stage_id, stages.c.status)
        .add_columns(workflows.c.id.label("workflow_id"), workflows.c.status.label("workflow_status"))
        .join_from(stages, workflows, workflows.c.id == stages.c.workflow_id)
        .where(stages.c.status.in_(_ACTIVE), workflows.c.status.in_(_ENDED))
        .order_by(stages.c.id)
        .limit(limit)
    )
    return [dict(row) for row in connection.execute(found).mappings()]


def read_late(connection: Connection, before: datetime, limit: int) -> list[dict[str, Any]]:
    """Messages that should have been sent before that time, oldest first."""
    found = select(*_MESSAGES).where(messages.c.send_at < before).order_by(messages.c.send_at).limit(limit)
    return [dict(row) for row in connection.execute(found).mappings()]


def read_idle(connection: Connection, after: datetime, limit: int) -> list[dict[str, Any]]:
    """Messages of workflows that are gone, and those of ended ones that wait for a time after ``after``."""
    found = (
        select(*_MESSAGES, workflows.c.status.label("workflow_status"))
        .join_from(messages, workflows, workflows.c.id == messages.c.workflow_id, isouter=True)
        .where(
            messages.c.workflow_id.is_not(None),
            messages.c.type.not_in(_LATE_WORK),
            or_(
                workflows.c.id.is_(None),
                and_(
                    workflows.c.status.in_(_ENDED),
                    messages.c.due_at > after,
                    or_(messages.c.lease_owner.is_(None), messages.c.lease_owner.startswith(WAITS_IN)),
                ),
            ),
        )
        .order_by(messages.c.id)
        .limit(limit)
    )
    return [dict(row) for row in connection.execute(found).mappings()]


def read_config(connection: Connection, workflow_id: str) -> str | None:
    """The configuration of a workflow, if it has one."""
    found: str | None = connection.execute(
        select(workflows.c.pipeline_config_id).where(workflows.c.id == workflow_id)
    ).scalar_one_or_none()
    return found


@contextmanager
def alone(store: WorkflowStore, workflow_id: str, surroundings: Surroundings) -> Iterator[UnitOfWork]:
    """A transaction that has a workflow for itself; what it sends becomes rows, nothing is handled in place."""
    now = store.now()
    with store.database.begin() as connection:
        if store.database.is_postgresql:
            connection.execute(store.queries.gate_exclusive, {"workflow_id": workflow_id})
        unit = UnitOfWork(
            connection,
            now,
            surroundings,
            row={"workflow_id": workflow_id, "exclusive": True, "created_at": now},
            message=CompleteWorkflow(workflow_id=workflow_id),
            inline=False,
        )
        yield unit
        unit.flush()


def lock_standing(unit: UnitOfWork, workflow_id: str) -> Standing | None:
    """A workflow whole, locked, with everything that may drive it; ``None`` if there is none."""
    workflow = unit.whole(workflow_id)
    if workflow is None:
        return None
    # First the others: when one is seen to have ended, what it sent is there too.
    others = read_sub_workflows(unit.connection, [workflow_id])
    sent = read_messages(unit.connection, [workflow_id])
    return Standing(
        workflow,
        unit.now,
        unit.holds_slot(workflow),
        sent.get(workflow_id, []),
        others.get(workflow_id, []),
    )


def delete_idle(connection: Connection, message_id: str) -> bool:
    """Delete a message without a lease."""
    deleted = connection.execute(
        delete(messages).where(messages.c.id == message_id, messages.c.lease_owner.is_(None))
    )
    return deleted.rowcount > 0
