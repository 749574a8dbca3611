"""Lists: workflows, how many there are, what waits for a slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, literal, or_, select, union_all

from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence import rows
from stabilize_celery.persistence.pages.reading import reading
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import slots, workflows

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
