"""The statements of stages and workflows on the hot path, each with a sentence that says what it is for.

Rows are always locked in the same order: the gate of the workflow, the message, stages from upstream to downstream
(children before their parent), the workflow row last.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Select, Update, bindparam, func, select, update

from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.persistence.pipeline import Rows
from stabilize_celery.persistence.tables import edges, slots, stages, workflows

#: What handlers need of a workflow besides a stage of it; its context and trigger are read only when asked for.
WORKFLOW_HEADER = tuple(
    workflows.c[name]
    for name in (
        "id",
        "application",
        "name",
        "status",
        "is_canceled",
        "pipeline_config_id",
        "live_branches",
        "has_halted",
        "parent",
    )
)
#: Before the names of a workflow's columns where they stand beside those of something else.
HEADER_PREFIX = "wf_"


def _with_header(statement: Select[Any]) -> Select[Any]:
    return statement.add_columns(*(c.label(HEADER_PREFIX + c.name) for c in WORKFLOW_HEADER))


def header_of(row: Any) -> dict[str, Any]:
    """The workflow's columns of a row that was loaded with them."""
    return {c.name: row[HEADER_PREFIX + c.name] for c in WORKFLOW_HEADER}


#: One stage with its workflow's header, the stage locked.
_one_stage = _with_header(select(*stages.c)).join_from(
    stages, workflows, workflows.c.id == stages.c.workflow_id
)
lock_stage = _one_stage.where(stages.c.id == bindparam("stage_id")).with_for_update(of=stages)

#: The same, by its ref_id.
lock_stage_of_ref = _one_stage.where(
    stages.c.ref_id == bindparam("ref_id"), stages.c.workflow_id == bindparam("workflow_id")
).with_for_update(of=stages)

#: The stages directly after one, locked in topological order.
lock_downstream = (
    select(*stages.c)
    .join_from(edges, stages, stages.c.id == edges.c.downstream_id)
    .where(edges.c.upstream_id == bindparam("stage_id"))
    .order_by(stages.c.topo, stages.c.id)
    .with_for_update(of=stages)
)

#: Some stages of a workflow, locked in topological order.
lock_stages = (
    select(*stages.c)
    .where(
        stages.c.workflow_id == bindparam("workflow_id"),
        stages.c.id.in_(bindparam("stage_ids", expanding=True)),
    )
    .order_by(stages.c.topo, stages.c.id)
    .with_for_update(of=stages)
)

#: Where the stages directly before some have their data.
read_sources_of_many = (
    select(
        edges.c.downstream_id, stages.c.id, stages.c.ref_id, stages.c.status, stages.c.rank, stages.c.sources
    )
    .join_from(edges, stages, stages.c.id == edges.c.upstream_id)
    .where(edges.c.downstream_id.in_(bindparam("stage_ids", expanding=True)))
)

#: Where the stages directly before one have their data: never the data itself.
read_upstream_sources = (
    select(stages.c.id, stages.c.ref_id, stages.c.status, stages.c.rank, stages.c.sources)
    .join_from(edges, stages, stages.c.id == edges.c.upstream_id)
    .where(edges.c.downstream_id == bindparam("stage_id"))
)

#: Outputs of the stages directly before one, for reducers.
read_upstream_outputs = (
    select(stages.c.id, stages.c.rank, stages.c.outputs)
    .join_from(edges, stages, stages.c.id == edges.c.upstream_id)
    .where(edges.c.downstream_id == bindparam("stage_id"))
)

#: The outputs of the synthetic stages of a stage, in the order planned.
read_child_outputs = (
    select(stages.c.status, stages.c.outputs)
    .where(stages.c.parent_stage_id == bindparam("stage_id"), stages.c.phase == bindparam("phase"))
    .order_by(stages.c.topo, stages.c.id)
)

#: The outputs of one stage, the usual case, and of some.
read_one_output = select(stages.c.id, stages.c.outputs).where(stages.c.id == bindparam("stage_id"))
read_outputs = select(stages.c.id, stages.c.outputs).where(
    stages.c.id.in_(bindparam("stage_ids", expanding=True))
)

#: The stages a workflow starts with, locked.
lock_initial_stages = (
    select(*stages.c)
    .where(
        stages.c.workflow_id == bindparam("workflow_id"),
        stages.c.upstream_count == 0,
        stages.c.parent_stage_id.is_(None),
    )
    .order_by(stages.c.topo, stages.c.id)
    .with_for_update(of=stages)
)

#: Every stage of a workflow, locked; only behind an exclusive gate.
lock_all_stages = (
    select(*stages.c)
    .where(stages.c.workflow_id == bindparam("workflow_id"))
    .order_by(stages.c.position, stages.c.id)
    .with_for_update(of=stages)
)

read_all_stages = (
    select(*stages.c)
    .where(stages.c.workflow_id == bindparam("workflow_id"))
    .order_by(stages.c.position, stages.c.id)
)

read_edges = select(edges.c.upstream_id, edges.c.downstream_id).where(
    edges.c.workflow_id == bindparam("workflow_id")
)

#: How the synthetic stages of a stage stand.
read_children = (
    select(
        stages.c.id,
        stages.c.ref_id,
        stages.c.status,
        stages.c.phase,
        stages.c.rank,
        stages.c.sources,
        stages.c.open_upstreams,
        stages.c.blocked,
        stages.c.generation,
        stages.c.parent_stage_id,
    )
    .where(stages.c.parent_stage_id == bindparam("stage_id"))
    .order_by(stages.c.position, stages.c.id)
)

#: The sub-workflows that tasks of a workflow started.
read_sub_workflows = select(workflows.c.id).where(
    workflows.c.parent_workflow_id == bindparam("workflow_id"), workflows.c.end_time.is_(None)
)

#: A workflow's row, locked.
lock_workflow = (
    select(*workflows.c).where(workflows.c.id == bindparam("workflow_id")).with_for_update(of=workflows)
)

read_workflow = select(*workflows.c).where(workflows.c.id == bindparam("workflow_id"))

#: Keep a workflow from being deleted, without blocking other transactions.
keep_workflow = (
    select(workflows.c.id)
    .where(workflows.c.id == bindparam("workflow_id"))
    .with_for_update(read=True, key_share=True)
)

#: A branch of a workflow has ended (or several): count down, and say how many are left.
release_branches = (
    update(workflows)
    .where(workflows.c.id == bindparam("workflow_id"))
    .values(live_branches=workflows.c.live_branches - bindparam("ended"))
    .returning(workflows.c.live_branches, workflows.c.has_halted)
)

#: How the stages of the workflow itself stand, counted.
count_statuses = (
    select(stages.c.status, func.count().label("n"))
    .where(stages.c.workflow_id == bindparam("workflow_id"), stages.c.parent_stage_id.is_(None))
    .group_by(stages.c.status)
)

#: Lock the row under which the slots of a configuration are given out.
lock_slots = (
    select(*slots.c).where(slots.c.pipeline_config_id == bindparam("config_id")).with_for_update(of=slots)
)

#: How many executions of a configuration hold a slot.
count_slots = select(func.count()).where(
    workflows.c.pipeline_config_id == bindparam("config_id"), workflows.c.holds_slot
)

#: Executions of a configuration that wait for a slot, oldest first.
lock_waiting = (
    select(*workflows.c)
    .where(
        workflows.c.pipeline_config_id == bindparam("config_id"),
        workflows.c.status == WorkflowStatus.BUFFERED,
        # One that was let in or sent away already is on its way out of the queue.
        ~workflows.c.holds_slot,
        ~workflows.c.is_canceled,
    )
    .order_by(workflows.c.id)
    .limit(bindparam("most"))
    .with_for_update(of=workflows)
)


@lru_cache(maxsize=256)
def update_stage(columns: frozenset[str]) -> Update:
    """Write some columns of stages, many rows in one round trip."""
    return (
        update(stages)
        .where(stages.c.id == bindparam("_id"))
        .values({c: bindparam(c) for c in sorted(columns)})
    )


@lru_cache(maxsize=64)
def update_workflow(columns: frozenset[str]) -> Update:
    """Write some columns of a workflow."""
    values: dict[str, Any] = {c: bindparam(c) for c in sorted(columns)}
    return update(workflows).where(workflows.c.id == bindparam("_id")).values(values)


#: More branches of a workflow are under way.
add_branches = (
    update(workflows)
    .where(workflows.c.id == bindparam("_id"))
    .values(live_branches=workflows.c.live_branches + bindparam("started"))
)


def chunks(items: Iterable[Any], size: int = 1000) -> Iterable[list[Any]]:
    """Lists of at most ``size``: databases limit the number of parameters of a statement."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


#: One stage with its whole workflow row, for running its task.
read_stage_whole = (
    select(*stages.c, *(c.label(HEADER_PREFIX + c.name) for c in workflows.c))
    .join_from(stages, workflows, workflows.c.id == stages.c.workflow_id)
    .where(stages.c.id == bindparam("stage_id"))
)


def whole_header_of(row: Any) -> dict[str, Any]:
    """The workflow's columns of a row of :data:`read_stage_whole`."""
    return {c.name: row[HEADER_PREFIX + c.name] for c in workflows.c}


#: Outputs of stages of a workflow that have ended, by ref_id.
read_outputs_by_ref = select(stages.c.ref_id, stages.c.outputs).where(
    stages.c.workflow_id == bindparam("workflow_id"),
    stages.c.ref_id.in_(bindparam("ref_ids", expanding=True)),
    stages.c.status.in_([status for status in WorkflowStatus if status.is_complete]),
)


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
    for batch in chunks([stage_id for _, stage_id in places]):
        parameters = {"workflow_id": workflow_id, "stage_ids": batch}
        locked += [dict(row._mapping) for row in connection.execute(lock_stages, parameters)]
    return locked, [(row.upstream_id, row.downstream_id) for row in found]


#: The workflows that tasks of a workflow started and that have not ended, each with the task that started it.
read_inner = select(workflows.c.id, workflows.c.parent).where(
    workflows.c.parent_workflow_id == bindparam("workflow_id"), workflows.c.end_time.is_(None)
)

#: The task that waits for a workflow, the workflow locked.
lock_parent = (
    select(workflows.c.parent).where(workflows.c.id == bindparam("workflow_id")).with_for_update(of=workflows)
)

#: How the workflow stands whose task started another.
read_outer = select(workflows.c.status).where(workflows.c.id == bindparam("workflow_id"))

#: The state of the stage whose task started a workflow, locked against change: a transaction that ends this stage may
#: have looked for the workflows within it before this one was there.  No transaction of the outer workflow waits for a
#: row of an inner one.
lock_outer_stage = (
    select(stages.c.status, stages.c.generation)
    .where(stages.c.id == bindparam("stage_id"))
    .with_for_update(read=True)
)
