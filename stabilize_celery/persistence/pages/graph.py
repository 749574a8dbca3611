"""A workflow as a graph, what has changed in it, and its history."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, or_, select, tuple_

from stabilize_celery.errors import WorkflowNotFoundError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence import rows
from stabilize_celery.persistence.pages.lists import HEAD
from stabilize_celery.persistence.pages.reading import reading
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import edges, history, stages, workflows

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
    """Refuse an id that nobody has.

    Raises:
        WorkflowNotFoundError: there is none of that id.
    """
    store.head(workflow_id)
