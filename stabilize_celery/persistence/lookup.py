"""Finding workflows by part of their id, for people who type it."""

from __future__ import annotations

from sqlalchemy import or_, select

from stabilize_celery.jsonable import is_storable
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import workflows


def ids_matching(store: WorkflowStore, part: str, limit: int) -> list[str]:
    """Ids that end or begin with ``part``, newest first."""
    if not is_storable(part):
        return []
    statement = (
        select(workflows.c.id)
        .where(
            or_(
                workflows.c.id.endswith(part, autoescape=True),
                workflows.c.id.startswith(part, autoescape=True),
            )
        )
        .order_by(workflows.c.id.desc())
        .limit(limit)
    )
    with store.database.autocommit() as connection:
        return list(connection.execute(statement).scalars())


def newest_ids(store: WorkflowStore, limit: int) -> list[str]:
    """The ids of the newest workflows."""
    statement = select(workflows.c.id).order_by(workflows.c.id.desc()).limit(limit)
    with store.database.autocommit() as connection:
        return list(connection.execute(statement).scalars())
