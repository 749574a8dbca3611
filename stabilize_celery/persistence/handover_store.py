"""Tasks whose work waits in a queue of its own: taking them over, and finding what is not there any more."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from stabilize_celery.persistence import message_queries, queries
from stabilize_celery.persistence.lease_store import Claimed, LeaseStore


class HandOverStore(LeaseStore):
    """The part of the store that processes use which begin the work of another one's message."""

    def claim(self, message_id: str, owner: str, lease: float) -> Claimed | None:
        return self._readable(super().claim(message_id, owner, lease))

    def begin(self, message_id: str, owner: str, lease: float) -> Claimed | None:
        """Take over a handed-over task; ``None`` if it is gone, or begun by somebody who still lives."""
        return self._readable(self._claim(self.queries.begin, message_id, owner, lease))

    def _readable(self, found: Claimed | None) -> Claimed | None:
        """Let the stage read the outputs of others."""
        if found is not None and found.stage is not None:
            found.stage.outputs_reader = partial(self.outputs_by_ref, found.stage.execution.id)
        return found

    def outputs_by_ref(self, workflow_id: str, ref_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The outputs of those of some stages of a workflow that have ended, by ref_id."""
        found: dict[str, dict[str, Any]] = {}
        with self.database.autocommit() as connection:
            for batch in queries.chunks(sorted(set(ref_ids))):
                parameters = {"workflow_id": workflow_id, "ref_ids": batch}
                rows = connection.execute(queries.read_outputs_by_ref, parameters)
                found.update((row.ref_id, row.outputs) for row in rows)
        return found

    def take_back(self, message_ids: list[str]) -> None:
        """What waited in a queue is not there any more: the next to claim it hands it over again."""
        with self.database.begin() as connection:
            for batch in queries.chunks(message_ids):
                connection.execute(message_queries.take_back, {"ids": batch})
