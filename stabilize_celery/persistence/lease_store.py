"""Leases: claiming a task for a worker, with what its stage sees, and staying its owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection

from stabilize_celery.context.view import apply_view
from stabilize_celery.errors import StabilizeError, StageError, UnknownReducerError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence import message_queries, queries, rows
from stabilize_celery.persistence.base import BaseStore
from stabilize_celery.persistence.statements import row_of
from stabilize_celery.persistence.tables import messages
from stabilize_celery.persistence.views import read_inherited


@dataclass
class Claimed:
    """A message that is this worker's now.

    Attributes:
        row: the message.
        stage: its stage, with what it sees in ``context``; ``None`` if it is gone.
        problem: why what it sees could not be put together; ``context`` is the stage's own then.
    """

    row: dict[str, Any]
    stage: StageExecution | None = None
    problem: StabilizeError | None = None


class LeaseStore(BaseStore):
    """The part of the store that workers use while they run user code."""

    def claim(self, message_id: str, owner: str, lease: float) -> Claimed | None:
        """Claim a task for this worker; nothing if it was handled already, is not due, or another worker holds it."""
        return self._claim(self.queries.claim, message_id, owner, lease)

    def _claim(self, statement: Any, message_id: str, owner: str, lease: float) -> Claimed | None:
        now = self.now()
        parameters = {
            "message_id": message_id,
            "owner": owner,
            "now": now,
            "latest": self.clock.latest(),
            "lease_end": now + timedelta(seconds=lease),
        }
        with self.database.alone() as connection:
            claimed = row_of(connection, statement, parameters)
            if claimed is None:
                return None
            found = Claimed({column.name: claimed[column.name] for column in messages.c})
            if self.database.is_postgresql:
                row = message_queries.claimed_stage(claimed)
            else:
                row = row_of(connection, queries.read_stage_whole, {"stage_id": claimed["stage_id"]})
            if row is not None:
                seen = claimed.get("seen_outputs") or {}
                # One that was planned anew since then has none.
                outputs = {stage_id: each for stage_id, each in seen.items() if each is not None}
                self._read_for_running(connection, found, row, outputs)
            return found

    def _read_for_running(
        self,
        connection: Connection,
        found: Claimed,
        row: dict[str, Any],
        outputs: dict[str, dict[str, Any]],
    ) -> None:
        stage, workflow = _stage_and_workflow(row)
        found.stage = stage
        parents: list[StageExecution] = []
        step = stage
        while step.parent_stage_id is not None:
            above = row_of(connection, queries.read_stage_whole, {"stage_id": step.parent_stage_id})
            if above is None:
                break
            step, _ = _stage_and_workflow(above)
            parents.append(step)
        for each in (stage, *parents):
            each.execution = workflow
        workflow.stages = [*reversed(parents), stage]
        try:
            inherited = read_inherited(connection, stage, parents, outputs)
        except (StageError, UnknownReducerError) as error:
            inherited, found.problem = {}, error
        apply_view(stage, inherited)

    def heartbeat(
        self, leases: Mapping[str, int], lease: float, owner: str | None = None
    ) -> dict[str, str | None]:
        """Renew leases, given as message id -> fencing token.

        Args:
            leases: those of one process.
            lease: their length from now on, in seconds.
            owner: the process, which takes back one that has run out if no other has claimed it since.

        Returns:
            For each lease that is still held whether its work is wanted: ``None``, ``"ask"`` or ``"kill"``.
        """
        held: dict[str, str | None] = {}
        end = self.now() + timedelta(seconds=lease)
        with self.database.alone() as connection:
            for message_id, token in leases.items():
                row = row_of(
                    connection,
                    message_queries.renew_lease,
                    {"message_id": message_id, "token": token, "lease_end": end, "owner": owner},
                )
                if row is not None:
                    held[message_id] = row["cancel"]
        return held

    def hand_back(self, message_id: str, token: int, delay: float, *, counted: bool = False) -> bool:
        """End a lease in ``delay`` seconds; returns false if it is not held any more.

        Args:
            message_id: the row.
            token: the fencing token of the lease.
            delay: in seconds; one that ends sooner does so.
            counted: the attempt counts.
        """
        parameters = {
            "message_id": message_id,
            "token": token,
            "lease_end": self.now() + timedelta(seconds=delay),
            "uncounted": 0 if counted else 1,
        }
        with self.database.alone() as connection:
            return row_of(connection, message_queries.hand_back, parameters) is not None


def _stage_and_workflow(row: dict[str, Any]) -> tuple[StageExecution, Workflow]:
    return rows.stage_from_row(row), rows.workflow_from_row(queries.whole_header_of(row))
