"""Telling a message that the broker has lost from one that only waits there for its turn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from stabilize_celery.persistence.leases import count_sent, put_off
from stabilize_celery.persistence.rows import waits_in
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.settings import Settings

Row = dict[str, Any]
#: So many waiting messages double the time until they are looked at again.
_CROWD = 1000


class Backlog:
    """Chooses what is sent of what is due.

    A queue with fewer messages than rows that were sent to it has lost some: as many as it is short of are sent
    again, the oldest first, and never more, so that it does not grow however long its workers take.  The others are put
    off all at once: what is due behind them has not to wait until each was looked at.

    Args:
        store: where the messages are.
        settings: the engine's options.
        depth: how many messages wait in a queue of the broker.
    """

    def __init__(self, store: WorkflowStore, settings: Settings, depth: Callable[[str], int]) -> None:
        self._store = store
        self._settings = settings
        self._depth = depth

    def without(self, rows: list[Row]) -> list[Row]:
        """Those of some due messages, oldest first, that have to be sent."""
        fresh: list[Row] = []
        sent: dict[str, list[Row]] = defaultdict(list)
        handed_over: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            queue = waits_in(row)
            if queue is not None:
                handed_over[queue].append(row)
            elif row["sends"] > 0 and row["lease_owner"] is None:
                sent[row["queue"]].append(row)
            else:
                fresh.append(row)
        chosen = {row["id"] for row in fresh}
        for queue, overdue in sent.items():
            on_their_way = sum(row["queue"] == queue for row in fresh)
            chosen |= {row["id"] for row in self._missing(queue, overdue, on_their_way)}
        for queue, overdue in handed_over.items():
            chosen |= {row["id"] for row in self._vanished(queue, overdue)}
        return [row for row in rows if row["id"] in chosen]

    def _missing(self, queue: str, overdue: list[Row], on_their_way: int) -> list[Row]:
        depth = self._depth(queue)
        if depth == 0:
            return overdue
        wanted = depth + on_their_way + len(overdue)
        short = max(0, count_sent(self._store, queue, wanted) - depth - on_their_way)
        if short < len(overdue):
            put_off(self._store, queue, self._patience(depth))
        return overdue[:short]

    def _vanished(self, queue: str, overdue: list[Row]) -> list[Row]:
        """Their queue belongs to others as well: what is in it cannot be counted against ours."""
        depth = self._depth(queue)
        if depth == 0:
            return overdue
        put_off(self._store, queue, self._patience(depth), handed_over=True)
        return []

    def _patience(self, depth: int) -> float:
        settings = self._settings
        return min(settings.resend_delay_max, settings.resend_delay * (1 + depth / _CROWD))
