"""Lists: workflows, how many there are, what waits for a slot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, func, literal, or_, select, text, tuple_, union_all

from stabilize_celery.context.sources import merge_sources
from stabilize_celery.context.view import Origin, origins
from stabilize_celery.errors import StabilizeError, StageNotFoundError, StoreError, WorkflowNotFoundError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence import queries, rows
from stabilize_celery.persistence.database import is_canceled
from stabilize_celery.persistence.loading import read_inherited
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import edges, history, messages, signals, slots, stages, workflows

#: No page takes longer; a search through too much is given up (PostgreSQL).
LONGEST_STATEMENT = timedelta(seconds=8)


@contextmanager
def reading(store: WorkflowStore) -> Iterator[Connection]:
    """A transaction that only reads, all of it as of nearly the same moment.

    Raises:
        StoreError: the database cannot be reached, or a statement took too long.
    """
    try:
        with store.database.begin() as connection:
            if store.database.is_postgresql:
                longest = int(LONGEST_STATEMENT.total_seconds() * 1000)
                connection.execute(text(f"SET LOCAL statement_timeout = {longest}"))
            yield connection
    except StoreError as error:
        if is_canceled(error):
            raise StoreError(
                f"database {store.database.name} took longer than {LONGEST_STATEMENT.total_seconds():g} s; "
                "ask for less: choose an application, a status or an id"
            ) from error
        raise


#: A status with more workflows than that is shown as "more than".
MOST_COUNTED = 10_000

#: What of a workflow is shown without being asked for: everything but its context.
HEAD = [
    workflows.c[name]
    for name in (
        "id",
        "application",
        "name",
        "status",
        "created_at",
        "start_time",
        "end_time",
        "pipeline_config_id",
        "dedup_key",
        "is_canceled",
        "canceled_by",
        "cancellation_reason",
        "paused",
        "parent",
        "trigger",
    )
]


@dataclass(frozen=True)
class Filter:
    """Which workflows are wanted; what is ``None`` does not matter."""

    application: str | None = None
    name: str | None = None
    status: WorkflowStatus | None = None
    #: Part of a name, or the beginning or end of an id.
    search: str | None = None


def page_of_workflows(store: WorkflowStore, wanted: Filter, before: str | None, limit: int) -> list[Workflow]:
    """Heads of workflows, newest first; ``before`` is the id of the last one of the page before."""
    statement = select(*HEAD).where(*_conditions(wanted)).order_by(workflows.c.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(workflows.c.id < before)
    with reading(store) as connection:
        return [rows.workflow_from_row(dict(row._mapping)) for row in connection.execute(statement)]


def count_by_status(store: WorkflowStore, wanted: Filter) -> dict[WorkflowStatus, int]:
    """How many workflows there are in each status, up to one more than :data:`MOST_COUNTED`."""
    conditions = _conditions(Filter(wanted.application, wanted.name, None, wanted.search))

    def of(status: WorkflowStatus) -> Any:
        some = (
            select(workflows.c.id)
            .where(workflows.c.status == status, *conditions)
            .limit(MOST_COUNTED + 1)
            .subquery()
        )
        return select(literal(status.name).label("status"), func.count().label("n")).select_from(some)

    with reading(store) as connection:
        found = connection.execute(union_all(*map(of, WorkflowStatus)))
        return {WorkflowStatus[row.status]: row.n for row in found}


def known_applications(store: WorkflowStore, among: int = 1000) -> list[str]:
    """The applications of the newest workflows."""
    newest = select(workflows.c.application).order_by(workflows.c.id.desc()).limit(among).subquery()
    with reading(store) as connection:
        return sorted(connection.execute(select(newest.c.application).distinct()).scalars())


def _conditions(wanted: Filter) -> list[ColumnElement[bool]]:
    exact = {
        workflows.c.application: wanted.application,
        workflows.c.name: wanted.name,
        workflows.c.status: wanted.status,
    }
    conditions: list[ColumnElement[bool]] = [
        column == value for column, value in exact.items() if value is not None
    ]
    if wanted.search:
        part = wanted.search
        conditions.append(
            or_(
                workflows.c.name.icontains(part, autoescape=True),
                workflows.c.id.startswith(part.upper(), autoescape=True),
                workflows.c.id.endswith(part.upper(), autoescape=True),
            )
        )
    return conditions


def waiting_configurations(store: WorkflowStore, limit: int) -> list[dict[str, Any]]:
    """Configurations whose executions are counted: limit, slots taken, executions that wait, the oldest of them."""
    mine = workflows.c.pipeline_config_id == slots.c.pipeline_config_id
    waits = (workflows.c.status == WorkflowStatus.BUFFERED) & ~workflows.c.holds_slot
    taken = select(func.count()).where(mine, workflows.c.holds_slot).scalar_subquery()
    waiting = select(func.count()).where(mine, waits).scalar_subquery()
    oldest = select(func.min(workflows.c.id)).where(mine, waits).scalar_subquery()
    statement = (
        select(*slots.c, taken.label("taken"), waiting.label("waiting"), oldest.label("oldest"))
        .order_by(waiting.desc(), slots.c.pipeline_config_id)
        .limit(limit)
    )
    with reading(store) as connection:
        return [dict(row._mapping) for row in connection.execute(statement)]


#: Transitions are committed a little later than they say; so far back is looked for them.
_OVERLAP = timedelta(seconds=10)

#: What of a stage is drawn.
NODE = [
    stages.c[name]
    for name in (
        "id",
        "ref_id",
        "type",
        "name",
        "status",
        "generation",
        "tasks",
        "parent_stage_id",
        "synthetic_stage_owner",
        "phase",
        "start_time",
        "end_time",
    )
]


@dataclass(frozen=True)
class Graph:
    """A workflow as a page draws it: stages without contexts and outputs."""

    workflow: Workflow
    stages: list[StageExecution]
    #: (id of the upstream, id of the downstream)
    edges: list[tuple[str, str]]
    #: Where to go on asking for changes.
    mark: str
    #: The ids of all synthetic stages, which come and go; those of the workflow itself stay.
    synthetic_ids: list[str]


def graph_of(store: WorkflowStore, workflow_id: str) -> Graph:
    """All stages of a workflow, and the edges between them.

    Raises:
        WorkflowNotFoundError: there is none of that id.
    """
    with reading(store) as connection:
        mark = _mark(connection, workflow_id)
        workflow = read_head(connection, store, workflow_id)
        nodes = connection.execute(
            select(*NODE).where(stages.c.workflow_id == workflow_id).order_by(stages.c.position, stages.c.id)
        )
        found = [rows.stage_from_row(dict(row._mapping)) for row in nodes]
        inside = [stage.id for stage in found if stage.is_synthetic]
        return Graph(workflow, found, _edges(connection, workflow_id), mark, inside)


def changes_since(store: WorkflowStore, workflow_id: str, mark: str) -> Graph | None:
    """The stages that have changed since a :class:`Graph` was read, with their edges; ``None`` if nothing has.

    A little more than that may be told again.

    Costs one look at an index when nothing has.

    Raises:
        WorkflowNotFoundError: there is none of that id.
        ValueError: no mark was ever given out in that form.
    """
    since = _moment_of(mark)
    with reading(store) as connection:
        new_mark = _mark(connection, workflow_id)
        if new_mark == mark and not mark.startswith("0@"):
            return None
        workflow = read_head(connection, store, workflow_id)
        touched = select(history.c.stage_id).where(
            history.c.workflow_id == workflow_id, history.c.stage_id.is_not(None)
        )
        if since is not None:
            touched = touched.where(history.c.at >= since - _OVERLAP)
        ids = touched.scalar_subquery()
        nodes = connection.execute(
            select(*NODE)
            .where(
                stages.c.workflow_id == workflow_id,
                or_(stages.c.id.in_(ids), stages.c.parent_stage_id.in_(ids)),
            )
            .order_by(stages.c.position, stages.c.id)
        )
        found = [rows.stage_from_row(dict(row._mapping)) for row in nodes]
        shown = {stage.id for stage in found}
        joined = [edge for edge in _edges(connection, workflow_id) if edge[1] in shown]
        inside = connection.execute(
            select(stages.c.id).where(
                stages.c.workflow_id == workflow_id, stages.c.parent_stage_id.is_not(None)
            )
        )
        return Graph(workflow, found, joined, new_mark, list(inside.scalars()))


def _moment_of(mark: str) -> datetime | None:
    count, _, moment = mark.partition("@")
    int(count)
    since = datetime.fromisoformat(moment) if moment else None
    if since is not None and since.tzinfo is None:
        raise ValueError(f"{mark!r} has no timezone")
    return since


def _mark(connection: Connection, workflow_id: str) -> str:
    row = connection.execute(
        select(func.count(), func.max(history.c.at)).where(history.c.workflow_id == workflow_id)
    ).one()
    return f"{row[0]}@{'' if row[1] is None else row[1].isoformat()}"


def read_head(connection: Connection, store: WorkflowStore, workflow_id: str) -> Workflow:
    """A workflow without its stages.

    Raises:
        WorkflowNotFoundError: there is none of that id.
    """
    row = connection.execute(
        select(*HEAD, workflows.c.context).where(workflows.c.id == workflow_id)
    ).one_or_none()
    if row is None:
        raise WorkflowNotFoundError(
            f"there is no workflow {workflow_id} in {store.database.name}", execution_id=workflow_id
        )
    return rows.workflow_from_row(dict(row._mapping))


def _edges(connection: Connection, workflow_id: str) -> list[tuple[str, str]]:
    found = connection.execute(
        select(edges.c.upstream_id, edges.c.downstream_id).where(edges.c.workflow_id == workflow_id)
    )
    return [(row.upstream_id, row.downstream_id) for row in found]


def page_of_history(
    store: WorkflowStore, workflow_id: str, *, stage_id: str | None, after: str | None, limit: int
) -> list[dict[str, Any]]:
    """Transitions of a workflow, in order, ``after`` the one of that id; only those of a stage, if one is named."""
    place = (history.c.at, history.c.step, history.c.id)
    statement = select(history).where(history.c.workflow_id == workflow_id).order_by(*place).limit(limit)
    if stage_id is not None:
        statement = statement.where(history.c.stage_id == stage_id)
    with reading(store) as connection:
        if after is not None:
            last = connection.execute(
                select(*place).where(history.c.workflow_id == workflow_id, history.c.id == after)
            ).one_or_none()
            if last is not None:
                statement = statement.where(tuple_(*place) > tuple_(*last))
        return [dict(row._mapping) for row in connection.execute(statement)]


def check_exists(store: WorkflowStore, workflow_id: str) -> None:
    """Refuse an id that no workflow has.

    Raises:
        WorkflowNotFoundError: there is none of that id.
    """
    store.head(workflow_id)


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
