"""Deleting what is old, in short transactions, without ever touching what is alive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select

from stabilize_celery.clock import MAX_SECONDS
from stabilize_celery.errors import RecoveryError
from stabilize_celery.models.status import COMPLETED_STATUSES, WorkflowStatus
from stabilize_celery.persistence.audit import LIVE
from stabilize_celery.persistence.database import repeated
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import dead_letters, messages, workflows

_OLDEST = timedelta(seconds=MAX_SECONDS)
_parents = workflows.alias("parents")
_children = workflows.alias("children")


def _is_old(before: datetime, statuses: Sequence[WorkflowStatus]) -> ColumnElement[bool]:
    """It has ended before that time, and nothing alive has to do with it.

    A message may be a hook that is still to be called, or a restart that is on its way.
    """
    return and_(
        workflows.c.status.in_(statuses),
        workflows.c.end_time < before,
        ~exists().where(messages.c.workflow_id == workflows.c.id),
        ~exists().where(_parents.c.id == workflows.c.parent_workflow_id, _parents.c.status.in_(LIVE)),
        ~exists().where(_children.c.parent_workflow_id == workflows.c.id, _children.c.status.in_(LIVE)),
    )


def _is_stray(before: datetime) -> ColumnElement[bool]:
    """A dead letter of long ago about no workflow, or about one that is gone."""
    known = exists().where(workflows.c.id == dead_letters.c.workflow_id)
    return and_(dead_letters.c.died_at < before, or_(dead_letters.c.workflow_id.is_(None), ~known))


def count_old(
    store: WorkflowStore, before: datetime, statuses: Sequence[WorkflowStatus]
) -> tuple[dict[WorkflowStatus, int], int]:
    """How many workflows of each status would be deleted, and how many dead letters."""
    with store.database.autocommit() as connection:
        counted = connection.execute(
            select(workflows.c.status, func.count().label("n"))
            .where(_is_old(before, statuses))
            .group_by(workflows.c.status)
        )
        by_status = {row.status: int(row.n) for row in counted}
    with store.database.autocommit() as connection:
        theirs = exists().where(workflows.c.id == dead_letters.c.workflow_id, _is_old(before, statuses))
        letters = connection.execute(
            select(func.count()).select_from(dead_letters).where(or_(theirs, _is_stray(before)))
        ).scalar_one()
    return by_status, int(letters)


def delete_old(
    store: WorkflowStore, before: datetime, status: WorkflowStatus, after: str, limit: int
) -> tuple[list[str], int, str | None]:
    """Delete up to ``limit`` workflows of a status with everything about them: one transaction.

    Args:
        store: where.
        before: they ended before that time.
        status: how they ended.
        after: look at ids above this one only.
        limit: at most so many.

    Returns:
        The ids, the number of dead letters that went with them, and where to go on; ``None`` at the end.
    """
    chosen = (
        select(workflows.c.id)
        .where(_is_old(before, (status,)), workflows.c.id > after)
        .order_by(workflows.c.id)
        .limit(limit)
    )
    with store.database.begin() as connection:
        found = list(connection.execute(chosen).scalars())
        if not found:
            return [], 0, None
        # One that a transaction is at is left for the next time.
        free = select(workflows.c.id).where(workflows.c.id.in_(found)).order_by(workflows.c.id)
        locked = list(connection.execute(free.with_for_update(skip_locked=True)).scalars())
        # A transaction that sends a message to one of them locks it first: what was sent until now is
        # seen by this second look, and from here on nothing is.
        again = select(workflows.c.id).where(workflows.c.id.in_(locked), _is_old(before, (status,)))
        ids = list(connection.execute(again).scalars())
        letters = connection.execute(delete(dead_letters).where(dead_letters.c.workflow_id.in_(ids))).rowcount
        connection.execute(delete(workflows).where(workflows.c.id.in_(ids)))
    return ids, letters, found[-1] if len(found) == limit else None


def delete_stray_letters(store: WorkflowStore, before: datetime, limit: int) -> int:
    """Delete up to ``limit`` dead letters of long ago that belong to no workflow; returns how many."""
    chosen = select(dead_letters.c.id).where(_is_stray(before)).order_by(dead_letters.c.id).limit(limit)
    with store.database.begin() as connection:
        ids = list(connection.execute(chosen).scalars())
        if not ids:
            return 0
        return connection.execute(delete(dead_letters).where(dead_letters.c.id.in_(ids))).rowcount


#: How a workflow can end.
ENDS = (WorkflowStatus.SUCCEEDED, WorkflowStatus.TERMINAL, WorkflowStatus.CANCELED)


@dataclass
class Pruned:
    """What was deleted, or would be.

    Attributes:
        workflows: how many of each status, with their stages and their history.
        dead_letters: those about these workflows, and old ones about none.
        dry_run: nothing was deleted.
    """

    workflows: Counter[WorkflowStatus] = field(default_factory=Counter)
    dead_letters: int = 0
    dry_run: bool = False

    @property
    def total(self) -> int:
        """How many workflows."""
        return self.workflows.total()

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "workflows": {str(status): number for status, number in sorted(self.workflows.items(), key=str)},
            "dead_letters": self.dead_letters,
            "dry_run": self.dry_run,
        }


def prune(
    store: WorkflowStore,
    older_than: timedelta,
    statuses: Collection[WorkflowStatus],
    *,
    dry_run: bool,
    batch: int,
    on_progress: Callable[[Pruned], None] | None,
) -> Pruned:
    """Delete what ended longer ago than that; see :meth:`stabilize_celery.maintenance.Maintenance.prune`."""
    _refuse(older_than, statuses, batch)
    before = store.now() - older_than
    # The same order each time, whatever order they are given in.
    chosen = [status for status in WorkflowStatus if status in statuses]
    pruned = Pruned(dry_run=dry_run)
    if dry_run:
        counted, pruned.dead_letters = count_old(store, before, chosen)
        pruned.workflows.update(counted)
        return pruned
    for status in chosen:
        after: str | None = ""
        while after is not None:
            ids, letters, after = repeated(partial(delete_old, store, before, status, after, batch))
            pruned.workflows[status] += len(ids)
            pruned.dead_letters += letters
            if on_progress is not None and ids:
                on_progress(pruned)
    while deleted := repeated(partial(delete_stray_letters, store, before, batch)):
        pruned.dead_letters += deleted
    pruned.workflows += Counter()
    return pruned


def _refuse(older_than: Any, statuses: Collection[WorkflowStatus], batch: Any) -> None:
    if not isinstance(older_than, timedelta):
        raise RecoveryError(f"older_than is a timedelta, such as timedelta(days=30), not {older_than!r:.80}")
    if not timedelta() <= older_than <= _OLDEST:
        raise RecoveryError(
            f"older_than cannot be negative, or longer than {_OLDEST.days} days, as {older_than} is"
        )
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise RecoveryError(f"a batch has at least one workflow, a whole number, not {batch!r:.80}")
    live = [str(status) for status in statuses if status not in COMPLETED_STATUSES]
    if live:
        raise RecoveryError(
            f"only workflows that have ended can be deleted; {', '.join(live)} is none of "
            f"{', '.join(map(str, ENDS))}"
        )
