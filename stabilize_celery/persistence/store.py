"""The store: workflows in and out of the database, and the statements of the relay and of leases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError

from stabilize_celery.context.stage_context import get_merged_ancestor_outputs
from stabilize_celery.errors import StageNotFoundError, WorkflowNotFoundError, WorkflowStateError
from stabilize_celery.json_values import is_storable
from stabilize_celery.models.stage import Phase, StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import ParentTask, Workflow
from stabilize_celery.persistence import queries, rows
from stabilize_celery.persistence.database import Executor, is_dedup_key, is_duplicate
from stabilize_celery.persistence.leases import HandOverStore
from stabilize_celery.persistence.messages import MessageStore
from stabilize_celery.persistence.pipeline import add_rows, answer_of, batch, insert_rows
from stabilize_celery.persistence.tables import edges, history, messages, stages, workflows
from stabilize_celery.suggestions import did_you_mean


class WorkflowStore(MessageStore, HandOverStore):
    """Workflows in PostgreSQL or SQLite, with the messages and leases that move them.

    Args:
        url: see :class:`~stabilize_celery.persistence.database.Database`.
        create_tables: make the tables if they do not exist.
    """

    def __init__(self, url: str, create_tables: bool = False, **options: Any) -> None:
        super().__init__(url, **options)
        if create_tables:
            self.create_tables()

    def store(self, workflow: Workflow) -> None:
        """Write a workflow that is not in the database yet; one that is there is left alone."""
        with self.database.begin() as connection:
            known = connection.execute(select(workflows.c.id).where(workflows.c.id == workflow.id)).first()
            if known is None:
                with taken_ids_explained([workflow]), batch(connection):
                    self.insert_workflows(connection, [workflow])

    def insert_workflows(self, connection: Executor, many: Sequence[Workflow]) -> None:
        """Insert new workflows with their stages and edges."""
        now = self.now()
        add_rows(connection, workflows, [rows.workflow_row(w, now) for w in many])
        new_stages = [rows.stage_row(stage, w.id, i) for w in many for i, stage in enumerate(w.stages)]
        add_rows(connection, stages, new_stages)
        add_rows(connection, edges, [edge for workflow in many for edge in _edges(workflow)])

    def find_dedup(self, connection: Executor, application: str, key: str) -> str | None:
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
        parameters = {"workflow_id": self._possible(workflow_id)}
        with self.database.begin() as connection:
            found = connection.execute(queries.read_workflow, parameters).one_or_none()
            if found is None:
                raise self._unknown(workflow_id)
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

    def insert_order(self, row: dict[str, Any]) -> None:
        """Write a message to a workflow, which is kept from being deleted meanwhile.

        Raises:
            WorkflowNotFoundError: it has been deleted.
        """
        with self.database.begin() as connection:
            with batch(connection):
                kept = answer_of(connection, queries.keep_workflow, {"workflow_id": row["workflow_id"]})
                insert_rows(connection, messages, [row])
            if not kept.rows():
                raise self._unknown(row["workflow_id"])

    def head(self, workflow_id: str) -> Workflow:
        """A workflow without its stages: cheap, for asking after its status.

        Raises:
            WorkflowNotFoundError: there is none of that id.
        """
        parameters = {"workflow_id": self._possible(workflow_id)}
        with self.database.autocommit() as connection:
            found = connection.execute(queries.read_workflow, parameters).one_or_none()
        if found is None:
            raise self._unknown(workflow_id)
        return rows.workflow_from_row(dict(found._mapping))

    def adopt(self, workflow_id: str, parent: ParentTask) -> None:
        """Let a later pass of the stage that started a workflow wait for it; an earlier one changes nothing."""
        with self.database.begin() as connection:
            found = connection.execute(queries.lock_parent, {"workflow_id": workflow_id}).scalar_one_or_none()
            if found is not None and ParentTask(**found).generation < parent.generation:
                changed = update(workflows).where(workflows.c.id == workflow_id)
                connection.execute(changed.values(parent=asdict(parent)))

    def _possible(self, workflow_id: str) -> str:
        """Refuse what cannot be an id before the database's driver chokes on it."""
        if not is_storable(workflow_id):
            raise self._unknown(workflow_id)
        return workflow_id

    def _unknown(self, workflow_id: str) -> WorkflowNotFoundError:
        from stabilize_celery.persistence.transactions import unseen_hint

        shown = workflow_id if is_storable(workflow_id) else f"{workflow_id!r:.100}"
        return WorkflowNotFoundError(
            f"there is no workflow {shown} in {self.database.name}{unseen_hint(self)}",
            execution_id=workflow_id,
        )

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
        if not all(text is None or is_storable(text) for text in (application, name, before)):
            return []
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
        if not is_storable(workflow_id):
            return False
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

    def find_stage(self, workflow_id: str, ref_id: str) -> StageExecution:
        """A stage by its ref_id, or a synthetic one by its name if that is unique; its workflow knows no other stages.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
            StageNotFoundError: it has no such stage.
        """
        workflow = self.head(workflow_id)
        of_workflow = select(*stages.c).where(stages.c.workflow_id == workflow_id)
        is_own = stages.c.parent_stage_id.is_(None)
        found: Sequence[Any] = ()
        with self.database.autocommit() as connection:
            if is_storable(ref_id):
                # Synthetic stages have made-up ref_ids; people know them by name.
                named = of_workflow.where(~is_own, stages.c.name == ref_id)
                by_ref = connection.execute(of_workflow.where(stages.c.ref_id == ref_id)).all()
                found = by_ref or connection.execute(named).all()
            if len(found) != 1:
                refs = of_workflow.with_only_columns(stages.c.ref_id).where(is_own).order_by(stages.c.id)
                known = connection.execute(refs).scalars().all()
                raise StageNotFoundError(
                    f"workflow {workflow_id} has no stage {ref_id!r}{did_you_mean(ref_id, known)}"
                )
        stage = rows.stage_from_row(dict(found[0]._mapping))
        stage.execution = workflow
        return stage

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

    def instances(self, stage_id: str) -> list[tuple[WorkflowStatus, dict[str, Any]]]:
        """Status and outputs of the synthetic stages that ran before a stage, in the order planned."""
        with self.database.autocommit() as connection:
            found = connection.execute(
                queries.read_child_outputs, {"stage_id": stage_id, "phase": Phase.BEFORE}
            )
            return [(row.status, row.outputs) for row in found]

    def history(self, workflow_id: str) -> list[dict[str, Any]]:
        """Every transition of a workflow, in order."""
        statement = (
            select(history)
            .where(history.c.workflow_id == workflow_id)
            .order_by(history.c.at, history.c.step, history.c.id)
        )
        with self.database.autocommit() as connection:
            return [dict(row._mapping) for row in connection.execute(statement)]


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


@contextmanager
def taken_ids_explained(many: Sequence[Workflow]) -> Iterator[None]:
    """Say what to do about a workflow that is in the database already.

    Raises:
        WorkflowStateError: one is.
    """
    try:
        yield
    except IntegrityError as error:
        if not is_duplicate(error) or is_dedup_key(error) or workflows.name not in str(error.orig):
            raise
        ids = ", ".join(w.id for w in many[:3])
        raise WorkflowStateError(
            f"workflow {ids} is in the database already; make a new Workflow for each start"
        ) from error


def newest_ids(store: WorkflowStore, limit: int, end: str = "") -> list[str]:
    """The ids of the newest workflows, or of the newest whose ids end so."""
    statement = select(workflows.c.id).order_by(workflows.c.id.desc()).limit(limit)
    if end:
        statement = statement.where(workflows.c.id.endswith(end, autoescape=True))
    with store.database.autocommit() as connection:
        return list(connection.execute(statement).scalars())
