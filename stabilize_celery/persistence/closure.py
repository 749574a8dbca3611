"""Everything that waits behind a stage, locked in one order however many ways lead there."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, bindparam, select

from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.persistence import queries
from stabilize_celery.persistence.prepared import Rows
from stabilize_celery.persistence.tables import edges, stages

#: One that does not wait any more never waits again while the workflow is not rewired, so a look without a lock
#: can only find too many.
_waits = (
    stages.c.status == WorkflowStatus.NOT_STARTED,
    stages.c.open_upstreams > 0,
    stages.c.blocked.is_(False),
)
_first = (
    select(edges.c.upstream_id, edges.c.downstream_id, stages.c.topo)
    .join_from(edges, stages, stages.c.id == edges.c.downstream_id)
    .where(edges.c.upstream_id == bindparam("stage_id"), *_waits)
    .cte("behind", recursive=True)
)
_behind = _first.union(
    select(edges.c.upstream_id, edges.c.downstream_id, stages.c.topo)
    .join_from(_first, edges, edges.c.upstream_id == _first.c.downstream_id)
    .join(stages, stages.c.id == edges.c.downstream_id)
    .where(*_waits)
)
read_behind = select(_behind)


def lock_behind(
    connection: Connection, workflow_id: str, stage_id: str
) -> tuple[Rows, Iterable[tuple[str, str]]]:
    """The stages behind one that may still wait, upstream before downstream, and the edges among them.

    Walking from stage to stage would lock a deep one before a shallow one that is reached later.
    """
    found = connection.execute(read_behind, {"stage_id": stage_id}).all()
    places = sorted({(row.topo, row.downstream_id) for row in found})
    locked: Rows = []
    for batch in queries.chunks([stage_id for _, stage_id in places]):
        parameters = {"workflow_id": workflow_id, "stage_ids": batch}
        locked += [dict(row._mapping) for row in connection.execute(queries.lock_stages, parameters)]
    return locked, [(row.upstream_id, row.downstream_id) for row in found]
