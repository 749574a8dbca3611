"""One stage with everything about it: what it sees and from whom, what it gave, what it waits for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, select

from stabilize_celery.context.origins import Origin, origins
from stabilize_celery.context.sources import merge_sources
from stabilize_celery.errors import StabilizeError, StageNotFoundError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence import queries, rows
from stabilize_celery.persistence.pages.graph import NODE, read_head
from stabilize_celery.persistence.pages.reading import reading
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import edges, messages, signals, stages
from stabilize_celery.persistence.views import read_inherited


@dataclass(frozen=True)
class StageDetail:
    """One stage with everything about it."""

    workflow: Workflow
    stage: StageExecution
    #: Everything it sees.
    sees: dict[str, Any]
    origins: dict[str, Origin]
    #: The stages that are named in ``origins``, without data.
    others: dict[str, StageExecution]
    #: Why it does not say what the stage sees of others; empty if it does.
    problem: str
    #: Messages that wait or are being handled: retries with their due time, leases with their owner.
    messages: list[dict[str, Any]]
    signals: list[dict[str, Any]]


def detail_of_stage(store: WorkflowStore, workflow_id: str, stage_id: str) -> StageDetail:
    """A stage with its context, outputs, what it sees and what it waits for.

    Raises:
        WorkflowNotFoundError: there is no such workflow.
        StageNotFoundError: the workflow has no such stage.
    """
    with reading(store) as connection:
        workflow = read_head(connection, store, workflow_id)
        stage = _as_it_began(connection, _stage(connection, workflow, stage_id))
        parents: list[StageExecution] = []
        while (last := (parents or [stage])[-1]).parent_stage_id is not None:
            parents.append(_as_it_began(connection, _stage(connection, workflow, last.parent_stage_id)))
        combined = {each.id: _combined_keys(connection, each) for each in (stage, *parents)}
        found = origins(stage, parents, combined)
        sees, problem = _seen(connection, stage, parents)
        found = {key: origin for key, origin in found.items() if key in sees}
        return StageDetail(
            workflow,
            stage,
            {key: sees[key] for key in found},
            found,
            _nodes(connection, {origin.stage_id for origin in found.values()}),
            problem,
            _about(connection, messages, workflow_id, stage_id),
            _about(connection, signals, workflow_id, stage_id),
        )


def _stage(connection: Connection, workflow: Workflow, stage_id: str) -> StageExecution:
    row = connection.execute(
        select(*stages.c).where(stages.c.workflow_id == workflow.id, stages.c.id == stage_id)
    ).one_or_none()
    if row is None:
        raise StageNotFoundError(f"workflow {workflow.id} has no stage of the id {stage_id}")
    stage = rows.stage_from_row(dict(row._mapping))
    stage.execution = workflow
    return stage


def _as_it_began(connection: Connection, stage: StageExecution) -> StageExecution:
    """A stage that has ended names itself as the source of its outputs; what it saw there came from its upstreams."""
    own = [key for key, entry in stage.sources.items() if entry[0] == stage.id]
    if own:
        upstreams = connection.execute(
            select(stages.c.sources)
            .join(edges, edges.c.upstream_id == stages.c.id)
            .where(edges.c.downstream_id == stage.id)
        )
        before = merge_sources(upstreams.scalars())
        kept = {key: entry for key, entry in stage.sources.items() if entry[0] != stage.id}
        stage.sources = kept | {key: before[key] for key in own if key in before}
    return stage


def _seen(
    connection: Connection, stage: StageExecution, parents: list[StageExecution]
) -> tuple[dict[str, Any], str]:
    try:
        return {**read_inherited(connection, stage, parents), **stage.own_context}, ""
    except StabilizeError as error:
        # A reducer that this process does not know, or that fails: the rest is still worth seeing.
        return dict(stage.own_context), str(error)


def _combined_keys(connection: Connection, join: StageExecution) -> set[str]:
    if not join.output_reducers:
        return set()
    given = connection.execute(queries.read_upstream_outputs, {"stage_id": join.id})
    return {key for row in given for key in join.output_reducers if key in row.outputs}


def _nodes(connection: Connection, ids: set[str]) -> dict[str, StageExecution]:
    found = connection.execute(select(*NODE).where(stages.c.id.in_(ids)))
    return {row.id: rows.stage_from_row(dict(row._mapping)) for row in found}


def _about(connection: Connection, table: Table, workflow_id: str, stage_id: str) -> list[dict[str, Any]]:
    # The workflow is named for the sake of the index.
    ours = (table.c.workflow_id == workflow_id, table.c.stage_id == stage_id)
    statement = select(table).where(*ours).order_by(table.c.id).limit(100)
    return [dict(row._mapping) for row in connection.execute(statement)]


def ref_id_of(store: WorkflowStore, workflow_id: str, stage_id: str) -> str:
    """The name under which the engine's controls know a stage.

    Raises:
        WorkflowNotFoundError: there is no such workflow.
        StageNotFoundError: the workflow has no such stage.
    """
    with reading(store) as connection:
        return _stage(connection, read_head(connection, store, workflow_id), stage_id).ref_id
