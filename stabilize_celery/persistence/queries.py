"""Every statement of the hot path, made once per dialect, each with a sentence that says what it is for.

Rows are always locked in the same order: the gate of the workflow, the message, stages from upstream to downstream
(children before their parent), the workflow row last.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Select,
    Update,
    and_,
    bindparam,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.sql.dml import ReturningDelete, ReturningUpdate

from stabilize_celery.messages import MESSAGE_TYPES
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.persistence.outbox import WAITS_IN
from stabilize_celery.persistence.tables import edges, messages, slots, stages, workflows

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
_HEADER_PREFIX = "wf_"
_STAGE_PREFIX = "st_"


_waits = messages.c.lease_owner.startswith(WAITS_IN)


#: Types whose rows are claimed under a lease; the others are taken.  Whoever mixes them up finds nothing.
_CLAIMED: list[Any] = [
    literal_column(f"'{name}'") for name, cls in MESSAGE_TYPES.items() if cls.runs_user_code
]


def gate_key(workflow_id: Any) -> ColumnElement[int]:
    """The advisory lock of a workflow."""
    return func.hashtextextended(workflow_id, literal_column("0"), type_=BigInteger)


class Queries:
    """The statements for one kind of database."""

    def __init__(self, is_postgresql: bool) -> None:
        self.is_postgresql = is_postgresql
        self.take = self._take()
        self.settle = self._settle()
        self.claim = self._claim()
        self.begin = self._claim(handed_over=True)
        self.gate_shared = select(func.pg_advisory_xact_lock_shared(gate_key(bindparam("workflow_id"))))
        self.gate_exclusive = select(func.pg_advisory_xact_lock(gate_key(bindparam("workflow_id"))))

    def _take(self) -> ReturningDelete[Any]:
        """Take a due message that nobody holds: enter its workflow's gate, delete the row, return it.

        The gate is part of the condition, so that it is entered before the row is locked and in the same round trip.
        """
        condition = and_(
            messages.c.id == bindparam("message_id"),
            messages.c.type.not_in(_CLAIMED),
            messages.c.due_at <= bindparam("latest"),
            or_(messages.c.lease_owner.is_(None), messages.c.send_at <= bindparam("now")),
        )
        return delete(messages).where(condition, *self._gate()).returning(*messages.c)

    def _gate(self) -> list[ColumnElement[bool]]:
        if not self.is_postgresql:
            return []
        key = gate_key(func.coalesce(messages.c.workflow_id, messages.c.id))
        entered = case(
            (messages.c.exclusive, func.pg_advisory_xact_lock(key)),
            else_=func.pg_advisory_xact_lock_shared(key),
        )
        return [entered.is_not(None)]

    def _settle(self) -> ReturningDelete[Any]:
        """Take the row of a task whose lease this worker holds: the fencing token must still match."""
        return (
            delete(messages)
            .where(
                messages.c.id == bindparam("message_id"),
                messages.c.claims == bindparam("token"),
                messages.c.lease_owner.is_not(None),
                *self._gate(),
            )
            .returning(*messages.c)
        )

    def _claim(self, handed_over: bool = False) -> ReturningUpdate[Any] | Select[Any]:
        """Claim a task: count the claim, start the lease, return the row.  One that waits in a queue is ``handed_over``.

        On PostgreSQL its stage, workflow and the outputs its stage sees come along, see :func:`claimed_stage`.  The
        commit does not wait for the disk: a claim lost in a crash of the database is a task run once more.
        """
        free = or_(messages.c.lease_owner.is_(None), messages.c.send_at <= bindparam("now"))
        if handed_over:
            free = and_(messages.c.type == "RunTask", or_(free, _waits))
        claim = (
            update(messages)
            .where(
                messages.c.id == bindparam("message_id"),
                messages.c.type.in_(_CLAIMED),
                messages.c.due_at <= bindparam("latest"),
                free,
            )
            .values(
                lease_owner=bindparam("owner"),
                claims=messages.c.claims + 1,
                attempts=messages.c.attempts + 1,
                send_at=bindparam("lease_end"),
            )
        )
        if not self.is_postgresql:
            return claim.returning(*messages.c)
        asynchronous = func.set_config("synchronous_commit", "off", True).label("asynchronous")
        return _with_what_it_sees(claim.returning(*messages.c, asynchronous).cte("claimed"))


def _with_header(statement: Select[Any]) -> Select[Any]:
    return statement.add_columns(*(c.label(_HEADER_PREFIX + c.name) for c in WORKFLOW_HEADER))


def header_of(row: Any) -> dict[str, Any]:
    """The workflow's columns of a row that was loaded with them."""
    return {c.name: row[_HEADER_PREFIX + c.name] for c in WORKFLOW_HEADER}


def _with_what_it_sees(claimed: CTE) -> Select[Any]:
    """A claimed message with its stage, its workflow, and the outputs of the stages that its stage's sources name."""
    producers = stages.alias("producers")
    entry = func.json_each(stages.c.sources).table_valued("key", "value", name="entry")
    # An array, not a join: the planner cannot know how few there are.
    named = func.array(select(entry.c.value.op("->>")(literal_column("0"))).distinct().scalar_subquery())
    outputs = (
        select(func.json_object_agg(producers.c.id, producers.c.outputs, type_=producers.c.outputs.type))
        .where(producers.c.id == func.any(named))
        .correlate(stages)
        .scalar_subquery()
    )
    return (
        select(
            *claimed.c,
            *(c.label(_STAGE_PREFIX + c.name) for c in stages.c),
            *(c.label(_HEADER_PREFIX + c.name) for c in workflows.c),
            outputs.label("seen_outputs"),
        )
        .select_from(claimed)
        .outerjoin(stages, stages.c.id == claimed.c.stage_id)
        .outerjoin(workflows, workflows.c.id == stages.c.workflow_id)
    )


def claimed_stage(row: dict[str, Any]) -> dict[str, Any] | None:
    """The stage in the row of a claim on PostgreSQL, with its workflow's columns as in :data:`read_stage_whole`."""
    if row[_STAGE_PREFIX + "id"] is None:
        return None
    whole = {c.name: row[_STAGE_PREFIX + c.name] for c in stages.c}
    return whole | {_HEADER_PREFIX + c.name: row[_HEADER_PREFIX + c.name] for c in workflows.c}


#: One stage with its workflow's header, the stage locked.
lock_stage = (
    _with_header(select(*stages.c))
    .join_from(stages, workflows, workflows.c.id == stages.c.workflow_id)
    .where(stages.c.id == bindparam("stage_id"))
    .with_for_update(of=stages)
)

#: The same without a lock, for running its task.
read_stage = (
    _with_header(select(*stages.c))
    .join_from(stages, workflows, workflows.c.id == stages.c.workflow_id)
    .where(stages.c.id == bindparam("stage_id"))
)

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
    select(*stages.c, *(c.label(_HEADER_PREFIX + c.name) for c in workflows.c))
    .join_from(stages, workflows, workflows.c.id == stages.c.workflow_id)
    .where(stages.c.id == bindparam("stage_id"))
)


def whole_header_of(row: Any) -> dict[str, Any]:
    """The workflow's columns of a row of :data:`read_stage_whole`."""
    return {c.name: row[_HEADER_PREFIX + c.name] for c in workflows.c}


#: Renew a lease if it is still ours, and hear whether the work is still wanted.
renew_lease = (
    update(messages)
    .where(
        messages.c.id == bindparam("message_id"),
        messages.c.claims == bindparam("token"),
        messages.c.lease_owner.is_not(None),
    )
    .values(send_at=bindparam("lease_end"))
    .returning(messages.c.cancel)
)

#: What the relay has to send, oldest first.
read_due = (
    select(*messages.c)
    .where(messages.c.send_at <= bindparam("now"))
    .order_by(messages.c.send_at, messages.c.id)
    .limit(bindparam("most"))
)

#: When the relay has something to send next.
read_next_due = select(func.min(messages.c.send_at).label("send_at"))

#: The same, for one of several relays.
lock_due = read_due.with_for_update(skip_locked=True)

#: Sent once more; the relay looks at it again later.  A lease that has run out is taken away: its holder counts as dead.
#: What waits in a queue may still be there.
mark_sent = (
    update(messages)
    .where(messages.c.id == bindparam("_id"))
    .values(
        sends=messages.c.sends + 1,
        send_at=bindparam("next"),
        lease_owner=case((_waits, messages.c.lease_owner), else_=None),
    )
)


def free_among(*conditions: ColumnElement[bool]) -> Select[Any]:
    """Those of some messages (``ids``) that nobody has locked, locked.

    A relay changes many at once, in an order of its own: it passes by what others are at, and so is in nobody's way.
    """
    return (
        select(messages.c.id)
        .where(messages.c.id.in_(bindparam("ids", expanding=True)), *conditions)
        .with_for_update(skip_locked=True)
    )


#: What waited in a queue is not there any more: it is to be handed over again.
take_back = update(messages).where(messages.c.id.in_(free_among(_waits))).values(lease_owner=None)

#: The broker did not take some messages: they are sent again soon, as if that had not been tried.
send_again = (
    update(messages)
    .where(messages.c.id.in_(free_among(or_(messages.c.lease_owner.is_(None), _waits), messages.c.sends > 0)))
    .values(send_at=bindparam("soon"), sends=messages.c.sends - 1)
)

#: Outputs of stages of a workflow that have ended, by ref_id.
read_outputs_by_ref = select(stages.c.ref_id, stages.c.outputs).where(
    stages.c.workflow_id == bindparam("workflow_id"),
    stages.c.ref_id.in_(bindparam("ref_ids", expanding=True)),
    stages.c.status.in_([status for status in WorkflowStatus if status.is_complete]),
)
