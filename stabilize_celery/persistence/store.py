"""The store: workflows in and out of the database, and the statements of the relay and of leases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from stabilize_celery.clock import Clock
from stabilize_celery.context.stage_context import get_merged_ancestor_outputs
from stabilize_celery.errors import WorkflowNotFoundError, WorkflowStateError
from stabilize_celery.messages import CompleteWorkflow
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence import queries, rows, schema
from stabilize_celery.persistence.bell import Bell
from stabilize_celery.persistence.database import Database
from stabilize_celery.persistence.outbox import message_of
from stabilize_celery.persistence.tables import (
    dead_letters,
    edges,
    history,
    messages,
    slots,
    stages,
    workflows,
)
from stabilize_celery.persistence.unit_of_work import Surroundings, UnitOfWork
from stabilize_celery.persistence.views import read_inherited
from stabilize_celery.tasks.outcome import Attempt


class WorkflowStore:
    """Workflows in PostgreSQL or SQLite.

    Args:
        url: see :class:`~stabilize_celery.persistence.database.Database`.
        create_tables: make the tables if they do not exist.
    """

    def __init__(
        self,
        url: str,
        create_tables: bool = False,
        *,
        clock: Clock | None = None,
        pool_size: int = 5,
        prepare_statements: bool = True,
    ) -> None:
        self.database = Database(url, clock=clock, pool_size=pool_size, prepare_statements=prepare_statements)
        self.queries = queries.Queries(self.database.is_postgresql)
        self.url = url
        if create_tables:
            self.create_tables()

    @property
    def clock(self) -> Clock:
        """Where times come from."""
        return self.database.clock

    def now(self) -> datetime:
        """The current time."""
        return self.clock.now()

    def create_tables(self) -> None:
        """Make the tables if they do not exist."""
        schema.create_all(self.database)

    def check_schema(self) -> None:
        """Refuse a database whose tables are missing or of another version."""
        schema.check(self.database)

    def close(self) -> None:
        """Close all connections."""
        self.database.dispose()

    # ------------------------------------------------------------------ workflows

    def store(self, workflow: Workflow) -> None:
        """Write a workflow that is not in the database yet; one that is there is left alone."""
        with self.database.begin() as connection:
            known = connection.execute(select(workflows.c.id).where(workflows.c.id == workflow.id)).first()
            if known is None:
                self.insert_workflows(connection, [workflow])

    def insert_workflows(self, connection: Connection, many: Sequence[Workflow]) -> None:
        """Insert new workflows with their stages and edges.

        Raises:
            WorkflowStateError: an id is taken: the object was started before.
        """
        now = self.now()
        try:
            connection.execute(insert(workflows), [rows.workflow_row(w, now) for w in many])
        except IntegrityError as error:
            ids = ", ".join(w.id for w in many[:3])
            raise WorkflowStateError(
                f"workflow {ids} is in the database already; make a new Workflow for each start"
            ) from error
        connection.execute(
            insert(stages), [rows.stage_row(stage, w.id, i) for w in many for i, stage in enumerate(w.stages)]
        )
        graph = [edge for workflow in many for edge in _edges(workflow)]
        if graph:
            connection.execute(insert(edges), graph)

    def find_dedup(self, connection: Connection, application: str, key: str) -> str | None:
        """The id of the execution that was started with this key."""
        found = select(workflows.c.id).where(
            workflows.c.application == application, workflows.c.dedup_key == key
        )
        result: str | None = connection.execute(found).scalar_one_or_none()
        return result

    def retrieve(self, workflow_id: str) -> Workflow:
        """A workflow with all its stages and tasks, as it stands.

        Raises:
            WorkflowNotFoundError: there is none of that id.
        """
        parameters = {"workflow_id": workflow_id}
        with self.database.begin() as connection:
            found = connection.execute(queries.read_workflow, parameters).one_or_none()
            if found is None:
                raise WorkflowNotFoundError(
                    f"there is no workflow {workflow_id} in {self.database.name}", execution_id=workflow_id
                )
            stage_rows = connection.execute(queries.read_all_stages, parameters).all()
            edge_rows = connection.execute(queries.read_edges, parameters).all()
        workflow = rows.workflow_from_row(dict(found._mapping))
        by_id: dict[str, StageExecution] = {}
        for row in stage_rows:
            stage = rows.stage_from_row(dict(row._mapping))
            stage.execution = workflow
            by_id[stage.id] = stage
        workflow.stages = list(by_id.values())
        for edge in edge_rows:
            if edge.upstream_id in by_id and edge.downstream_id in by_id:
                by_id[edge.downstream_id].requisite_stage_ref_ids.add(by_id[edge.upstream_id].ref_id)
        return workflow

    def head(self, workflow_id: str) -> Workflow:
        """A workflow without its stages: cheap, for asking after its status.

        Raises:
            WorkflowNotFoundError: there is none of that id.
        """
        with self.database.autocommit() as connection:
            found = connection.execute(queries.read_workflow, {"workflow_id": workflow_id}).one_or_none()
        if found is None:
            raise WorkflowNotFoundError(
                f"there is no workflow {workflow_id} in {self.database.name}", execution_id=workflow_id
            )
        return rows.workflow_from_row(dict(found._mapping))

    def find(
        self,
        *,
        application: str | None = None,
        name: str | None = None,
        status: WorkflowStatus | None = None,
        since: datetime | None = None,
        before: str | None = None,
        limit: int = 100,
    ) -> list[Workflow]:
        """Heads of workflows, newest first; ``before`` is the id of the last one of the page before."""
        statement = select(*workflows.c).order_by(workflows.c.id.desc()).limit(limit)
        conditions = {
            workflows.c.application: application,
            workflows.c.name: name,
            workflows.c.status: status,
        }
        for column, value in conditions.items():
            if value is not None:
                statement = statement.where(column == value)
        if since is not None:
            statement = statement.where(workflows.c.created_at >= since)
        if before is not None:
            statement = statement.where(workflows.c.id < before)
        with self.database.autocommit() as connection:
            return [rows.workflow_from_row(dict(row._mapping)) for row in connection.execute(statement)]

    def list_workflows(self, application: str, limit: int = 100) -> list[Workflow]:
        """The newest workflows of an application, without their stages."""
        return self.find(application=application, limit=limit)

    def exists(self, workflow_id: str) -> bool:
        """Whether there is a workflow of that id."""
        with self.database.autocommit() as connection:
            return (
                connection.execute(select(workflows.c.id).where(workflows.c.id == workflow_id)).first()
                is not None
            )

    def delete(self, workflow_id: str) -> None:
        """Remove a workflow and everything about it."""
        with self.database.begin() as connection:
            connection.execute(delete(messages).where(messages.c.workflow_id == workflow_id))
            connection.execute(delete(workflows).where(workflows.c.id == workflow_id))

    def retrieve_stage(self, stage_id: str) -> StageExecution:
        """A stage within its whole workflow.

        Raises:
            WorkflowNotFoundError: there is none of that id.
        """
        with self.database.autocommit() as connection:
            found = connection.execute(
                select(stages.c.workflow_id).where(stages.c.id == stage_id)
            ).scalar_one_or_none()
        if found is None:
            raise WorkflowNotFoundError(f"there is no stage {stage_id} in {self.database.name}")
        return self.retrieve(found).stage_by_id(stage_id)

    def get_upstream_stages(self, workflow_id: str, ref_id: str) -> list[StageExecution]:
        """The stages a stage directly requires."""
        stage = self.retrieve(workflow_id).stage_by_ref_id(ref_id)
        return [] if stage is None else stage.upstream_stages()

    def get_downstream_stages(self, workflow_id: str, ref_id: str) -> list[StageExecution]:
        """The stages that directly require a stage."""
        stage = self.retrieve(workflow_id).stage_by_ref_id(ref_id)
        return [] if stage is None else stage.downstream_stages()

    def get_synthetic_stages(self, workflow_id: str, stage_id: str) -> list[StageExecution]:
        """The synthetic stages of a stage."""
        return self.retrieve(workflow_id).stage_by_id(stage_id).synthetic_stages()

    def get_merged_ancestor_outputs(self, workflow_id: str, ref_id: str) -> dict[str, Any]:
        """The outputs of all ancestors of a stage; of a key given twice the topologically last survives."""
        stage = self.retrieve(workflow_id).stage_by_ref_id(ref_id)
        return {} if stage is None else get_merged_ancestor_outputs(stage)

    def history(self, workflow_id: str) -> list[dict[str, Any]]:
        """Every transition of a workflow, in order."""
        statement = (
            select(history)
            .where(history.c.workflow_id == workflow_id)
            .order_by(history.c.at, history.c.step, history.c.id)
        )
        with self.database.autocommit() as connection:
            return [dict(row._mapping) for row in connection.execute(statement)]

    # ------------------------------------------------------------------ running tasks

    def claim(
        self, message_id: str, owner: str, lease: float
    ) -> tuple[dict[str, Any], StageExecution | None] | None:
        """Claim a task for this worker.

        Returns:
            The claimed row and the stage with what it sees in ``context`` (``None`` if it is gone); nothing if the
            message was handled already, is not due, or another worker holds it.
        """
        now = self.now()
        parameters = {
            "message_id": message_id,
            "owner": owner,
            "now": now,
            "lease_end": now + timedelta(seconds=lease),
        }
        with self.database.autocommit() as connection:
            claimed = connection.execute(self.queries.claim, parameters).one_or_none()
            if claimed is None:
                return None
            row = dict(claimed._mapping)
            return row, self._read_for_running(connection, row["stage_id"])

    def _read_for_running(self, connection: Connection, stage_id: str) -> StageExecution | None:
        stage, workflow = self._read_stage(connection, stage_id)
        if stage is None or workflow is None:
            return None
        parents: list[StageExecution] = []
        step = stage
        while step.parent_stage_id is not None:
            parent, _ = self._read_stage(connection, step.parent_stage_id)
            if parent is None:
                break
            parents.append(parent)
            step = parent
        for each in (stage, *parents):
            each.execution = workflow
        workflow.stages = [*reversed(parents), stage]
        inherited = read_inherited(connection, stage, parents)
        stage._own_context = stage.context
        stage.context = {**inherited, **stage.context}
        return stage

    def _read_stage(
        self, connection: Connection, stage_id: str
    ) -> tuple[StageExecution | None, Workflow | None]:
        row = connection.execute(queries.read_stage_whole, {"stage_id": stage_id}).one_or_none()
        if row is None:
            return None, None
        return rows.stage_from_row(dict(row._mapping)), rows.workflow_from_row(
            queries.whole_header_of(row._mapping)
        )

    def heartbeat(self, leases: Mapping[str, int], lease: float) -> dict[str, str | None]:
        """Renew leases, given as message id -> fencing token.

        Returns:
            For each lease that is still held whether its work is wanted: ``None``, ``"ask"`` or ``"kill"``.
        """
        held: dict[str, str | None] = {}
        end = self.now() + timedelta(seconds=lease)
        with self.database.autocommit() as connection:
            for message_id, token in leases.items():
                row = connection.execute(
                    queries.renew_lease, {"message_id": message_id, "token": token, "lease_end": end}
                ).one_or_none()
                if row is not None:
                    held[message_id] = row.cancel
        return held

    # ------------------------------------------------------------------ the relay

    def due(self, limit: int) -> list[dict[str, Any]]:
        """Messages whose time to be sent (again) has come, oldest first; nothing is changed."""
        with self.database.autocommit() as connection:
            found = connection.execute(queries.read_due, {"now": self.now(), "most": limit})
            return [dict(row._mapping) for row in found]

    def take_due(self, limit: int, next_send: Any) -> list[dict[str, Any]]:
        """Messages to be sent now; each is marked with when it is to be sent again if nothing comes of it.

        Args:
            limit: at most that many.
            next_send: from a row to the delay in seconds until its next sending.
        """
        now = self.now()
        with self.database.begin() as connection:
            found = connection.execute(queries.lock_due, {"now": now, "most": limit}).all()
            taken = [dict(row._mapping) for row in found]
            if taken:
                connection.execute(
                    queries.mark_sent,
                    [
                        {
                            "_id": row["id"],
                            "next": now + timedelta(seconds=next_send(row)),
                        }
                        for row in taken
                    ],
                )
        return taken

    def send_soon(self, message_ids: list[str], delay: float) -> None:
        """Sending failed: try again in ``delay`` seconds."""
        soon = self.now() + timedelta(seconds=delay)
        with self.database.begin() as connection:
            for batch in queries.chunks(message_ids):
                connection.execute(
                    update(messages)
                    .where(messages.c.id.in_(batch), messages.c.lease_owner.is_(None))
                    .values(send_at=soon)
                )

    def bell(self) -> Bell:
        """What wakes the relays."""
        return Bell(self.database)

    def next_due(self) -> datetime | None:
        """When the relay has something to send next."""
        with self.database.autocommit() as connection:
            result: datetime | None = connection.execute(select(func.min(messages.c.send_at))).scalar()
            return result

    def count_messages(self) -> int:
        """How many messages are not finished."""
        with self.database.autocommit() as connection:
            return int(connection.execute(select(func.count()).select_from(messages)).scalar_one())

    def message(self, message_id: str) -> dict[str, Any] | None:
        """The row of a message."""
        with self.database.autocommit() as connection:
            row = connection.execute(select(messages).where(messages.c.id == message_id)).one_or_none()
            return None if row is None else dict(row._mapping)

    def record_failure(self, message_id: str, error: dict[str, Any], delay: float) -> int | None:
        """Note that handling a message failed, and put it off.

        Returns:
            How often it has failed; ``None`` if it is gone.
        """
        again = self.now() + timedelta(seconds=delay)
        statement = (
            update(messages)
            .where(messages.c.id == message_id)
            .values(
                attempts=messages.c.attempts + 1,
                last_error=error,
                due_at=again,
                send_at=again,
                sends=0,
                lease_owner=None,
            )
            .returning(messages.c.attempts)
        )
        with self.database.begin() as connection:
            result: int | None = connection.execute(statement).scalar_one_or_none()
            return result

    def put_back(self, message_id: str, delay: float) -> None:
        """Leave a message that this release cannot read to a newer one."""
        later = self.now() + timedelta(seconds=delay)
        with self.database.begin() as connection:
            connection.execute(
                update(messages).where(messages.c.id == message_id).values(send_at=later, lease_owner=None)
            )

    # ------------------------------------------------------------------ handling messages

    def insert_messages(self, new: list[dict[str, Any]], connection: Connection | None = None) -> None:
        """Write message rows, in the caller's transaction if there is one."""
        if connection is not None:
            connection.execute(insert(messages), new)
            return
        with self.database.begin() as own:
            own.execute(insert(messages), new)

    @contextmanager
    def take(
        self,
        message_id: str,
        token: int | None,
        surroundings: Surroundings,
        inline: bool | None = None,
        attempt: Attempt | None = None,
    ) -> Iterator[UnitOfWork | None]:
        """Take a message and handle it within the block: one transaction.

        Args:
            message_id: the row.
            token: for the result of a task the fencing token of its lease, which must still be held.
            surroundings: what handlers are given.
            inline: whether follow-ons are handled in place; ``None`` asks the settings.
            attempt: for the result of a task, the attempt.

        Yields:
            The unit of work; ``None`` if the message was handled already, is not due, or the lease is lost.

        Raises:
            UnknownMessageError, InvalidMessageError: the row cannot be read.
        """
        now = self.now()
        if token is None:
            statement, parameters = self.queries.take, {"message_id": message_id, "now": now}
        else:
            statement, parameters = self.queries.settle, {"message_id": message_id, "token": token}
        with self.database.begin() as connection:
            taken = connection.execute(statement, parameters).one_or_none()
            if taken is None:
                yield None
                return
            row = dict(taken._mapping)
            unit = UnitOfWork(
                connection,
                now,
                surroundings,
                row=row,
                message=message_of(row),
                inline=inline,
                attempt=attempt,
            )
            yield unit
            with self.database.batch(connection, commit=True):
                unit.flush()

    @contextmanager
    def bury(
        self, message_id: str, error: dict[str, Any], surroundings: Surroundings
    ) -> Iterator[UnitOfWork | None]:
        """Move a message to the dead letters; what is done within the block goes into the same transaction.

        The transaction has the workflow for itself.  Yields ``None`` if there is no workflow to deal with.
        """
        found = self.message(message_id)
        if found is None:
            yield None
            return
        with self.database.begin() as connection:
            if found["workflow_id"] is not None and self.database.is_postgresql:
                connection.execute(self.queries.gate_exclusive, {"workflow_id": found["workflow_id"]})
            taken = connection.execute(
                delete(messages).where(messages.c.id == message_id).returning(*messages.c)
            ).one_or_none()
            if taken is None:
                yield None
                return
            row = dict(taken._mapping)
            kept = {k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items()}
            letter = {name: row[name] for name in _LETTER_COLUMNS}
            connection.execute(
                insert(dead_letters), {**letter, "row": kept, "error": error, "died_at": self.now()}
            )
            if row["workflow_id"] is None or row["type"] == "RunHook":
                yield None
                return
            subject = CompleteWorkflow(workflow_id=row["workflow_id"])
            yield UnitOfWork(
                connection,
                self.now(),
                surroundings,
                row={**row, "exclusive": True},
                message=subject,
                inline=False,
            )

    def slot_overview(self) -> list[dict[str, Any]]:
        """Configurations with a limit."""
        with self.database.autocommit() as connection:
            return [dict(row._mapping) for row in connection.execute(select(slots))]


_LETTER_COLUMNS = ("id", "type", "workflow_id", "stage_id", "task_id", "label", "attempts")


def _edges(workflow: Workflow) -> Iterable[dict[str, Any]]:
    ids = {(stage.parent_stage_id, stage.ref_id): stage.id for stage in workflow.stages}
    for stage in workflow.stages:
        for ref in stage.requisite_stage_ref_ids:
            yield {
                "upstream_id": ids[stage.parent_stage_id, ref],
                "downstream_id": stage.id,
                "workflow_id": workflow.id,
            }


class SqliteWorkflowStore(WorkflowStore):
    """A store on SQLite, under the name the seed documents use."""


class PostgresWorkflowStore(WorkflowStore):
    """A store on PostgreSQL."""
