"""The statements of messages, each with a sentence that says what it is for: taking, claiming, settling, sending again.

The gate of a workflow and then the message are what a transaction locks first, see :mod:`queries` for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Select,
    Text,
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
from stabilize_celery.persistence.queries import HEADER_PREFIX
from stabilize_celery.persistence.rows import WAITS_IN
from stabilize_celery.persistence.tables import messages, stages, workflows

_STAGE_PREFIX = "st_"

_waits = messages.c.lease_owner.startswith(WAITS_IN)


#: Types whose rows are claimed under a lease; the others are taken.  The wrong one finds nothing.
_CLAIMED: list[Any] = [
    literal_column(f"'{name}'") for name, cls in MESSAGE_TYPES.items() if cls.runs_user_code
]


#: Rows are looked up by their keys, also while the tables are small or have just grown: a plan is kept for the session, and
#: one that reads a table of a hundred rows from end to end still does so when there are a million.
_BY_KEY = [
    func.set_config(setting, "off", True).label(setting)
    for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit")
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
        self.gate_exclusive = select(func.pg_advisory_xact_lock(gate_key(bindparam("workflow_id"))))

    def _take(self) -> ReturningDelete[Any]:
        """Take a due message without a lease: enter its workflow's gate, delete the row, return it.

        The gate is part of the condition, so that it is entered before the row is locked and in the same round trip.
        """
        condition = and_(
            messages.c.id == bindparam("message_id"),
            messages.c.type.not_in(_CLAIMED),
            messages.c.due_at <= bindparam("latest"),
            or_(messages.c.lease_owner.is_(None), messages.c.send_at <= bindparam("now")),
        )
        return delete(messages).where(condition, *self._gate()).returning(*messages.c, *self._settings())

    def _settings(self) -> Sequence[ColumnElement[Any]]:
        """What the first statement of a transaction sets for the others."""
        return _BY_KEY if self.is_postgresql else []

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
        """Take the row of a task that this worker was given last: the fencing token must still match.

        Whether its lease has run out does not matter, as long as no other claim has taken the message.
        """
        return (
            delete(messages)
            .where(
                messages.c.id == bindparam("message_id"),
                messages.c.claims == bindparam("token"),
                *self._gate(),
            )
            .returning(*messages.c, *self._settings())
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


def _with_what_it_sees(claimed: CTE) -> Select[Any]:
    """A claimed message with its stage, its workflow, and the outputs of the stages that its stage's sources name."""
    producers = stages.alias("producers")
    entry = func.json_each(stages.c.sources).table_valued("key", "value", name="entry")
    named = (
        select(entry.c.value.op("->>")(literal_column("0")).label("id"))
        .distinct()
        .correlate(stages)
        .subquery("named")
    )
    # Each by itself, not a join: the planner cannot know how few there are.
    output = select(producers.c.outputs).where(producers.c.id == named.c.id).scalar_subquery()
    outputs = select(
        func.json_object_agg(named.c.id, output, type_=producers.c.outputs.type)
    ).scalar_subquery()
    return (
        select(
            *claimed.c,
            *(c.label(_STAGE_PREFIX + c.name) for c in stages.c),
            *(c.label(HEADER_PREFIX + c.name) for c in workflows.c),
            outputs.label("seen_outputs"),
        )
        .select_from(claimed)
        .outerjoin(stages, stages.c.id == claimed.c.stage_id)
        .outerjoin(workflows, workflows.c.id == stages.c.workflow_id)
    )


def claimed_stage(row: dict[str, Any]) -> dict[str, Any] | None:
    """The stage in the row of a claim on PostgreSQL, with its workflow's columns as in :data:`queries.read_stage_whole`."""
    if row[_STAGE_PREFIX + "id"] is None:
        return None
    whole = {c.name: row[_STAGE_PREFIX + c.name] for c in stages.c}
    return whole | {HEADER_PREFIX + c.name: row[HEADER_PREFIX + c.name] for c in workflows.c}


#: Renew a lease if no other claim has taken the message, and hear whether the work is still wanted.
renew_lease = (
    update(messages)
    .where(
        messages.c.id == bindparam("message_id"),
        messages.c.claims == bindparam("token"),
        or_(messages.c.lease_owner.is_not(None), bindparam("owner", type_=Text).is_not(None)),
    )
    .values(
        send_at=bindparam("lease_end"),
        lease_owner=func.coalesce(messages.c.lease_owner, bindparam("owner", type_=Text)),
    )
    .returning(messages.c.cancel)
)

#: End a lease early, if it is still ours; an attempt that was ended with its process does not count.
hand_back = (
    update(messages)
    .where(
        messages.c.id == bindparam("message_id"),
        messages.c.claims == bindparam("token"),
        messages.c.lease_owner.is_not(None),
    )
    .values(
        send_at=case(
            (messages.c.send_at < bindparam("lease_end"), messages.c.send_at), else_=bindparam("lease_end")
        ),
        attempts=messages.c.attempts - bindparam("uncounted"),
    )
    .returning(messages.c.id)
)

#: What the relay has to send, oldest first.
read_due = (
    select(*messages.c)
    .where(messages.c.send_at <= bindparam("now"))
    .order_by(messages.c.send_at, messages.c.id)
    .limit(bindparam("most"))
)

#: The same, for one of several relays.
lock_due = read_due.with_for_update(skip_locked=True)

#: When the relay has something to send next.
read_next_due = select(func.min(messages.c.send_at).label("send_at"))

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
    """Those of some messages (``ids``) that no transaction has locked, locked.

    A relay changes many at once, in an order of its own: it skips what others have locked, and so blocks no transaction.
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
