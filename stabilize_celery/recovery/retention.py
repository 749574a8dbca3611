"""How long what has ended is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from stabilize_celery.errors import RecoveryError
from stabilize_celery.models.status import COMPLETED_STATUSES, WorkflowStatus
from stabilize_celery.persistence import retention_store
from stabilize_celery.persistence.database import repeated
from stabilize_celery.persistence.store import WorkflowStore

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
        counted, pruned.dead_letters = retention_store.count_old(store, before, chosen)
        pruned.workflows.update(counted)
        return pruned
    for status in chosen:
        after: str | None = ""
        while after is not None:
            ids, letters, after = repeated(
                partial(retention_store.delete_old, store, before, status, after, batch)
            )
            pruned.workflows[status] += len(ids)
            pruned.dead_letters += letters
            if on_progress is not None and ids:
                on_progress(pruned)
    while deleted := repeated(partial(retention_store.delete_stray_letters, store, before, batch)):
        pruned.dead_letters += deleted
    pruned.workflows += Counter()
    return pruned


def _refuse(older_than: timedelta, statuses: Collection[WorkflowStatus], batch: int) -> None:
    if older_than < timedelta():
        raise RecoveryError(f"older_than cannot be negative, as {older_than} is")
    if batch < 1:
        raise RecoveryError(f"a batch has at least one workflow, not {batch}")
    live = [str(status) for status in statuses if status not in COMPLETED_STATUSES]
    if live:
        raise RecoveryError(
            f"only workflows that have ended can be deleted; {', '.join(live)} is none of "
            f"{', '.join(map(str, ENDS))}"
        )
