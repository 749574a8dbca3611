"""The slots of one pipeline configuration, behind the lock of its row."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, update
from sqlalchemy.dialects import postgresql, sqlite

from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence import queries
from stabilize_celery.persistence.pipeline import row_of
from stabilize_celery.persistence.tables import slots


@dataclass
class LockedSlots:
    """See :class:`stabilize_celery.handlers.unit.Slots`."""

    connection: Connection
    config_id: str
    taken: int
    limit: int | None
    keep_waiting: bool
    set_by: str

    def observe(self, workflow: Workflow) -> None:
        """Take over the limit of ``workflow`` if it is the newest execution seen."""
        if workflow.id < self.set_by:
            return
        newer = workflow.id > self.set_by
        changed = (self.limit, self.keep_waiting) != (workflow.limit, workflow.keep_waiting_pipelines)
        self.limit, self.set_by = workflow.limit, workflow.id
        if workflow.limit is not None:
            self.keep_waiting = workflow.keep_waiting_pipelines
        if changed or newer:
            self.connection.execute(
                update(slots)
                .where(slots.c.pipeline_config_id == self.config_id)
                .values(max_concurrent=self.limit, keep_waiting=self.keep_waiting, set_by=self.set_by)
            )


def lock_slots(connection: Connection, config_id: str) -> LockedSlots:
    """Lock the row of a configuration, making it if it is the first time."""
    parameters = {"config_id": config_id}
    row = row_of(connection, queries.lock_slots, parameters)
    if row is None:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(
            insert(slots)
            .values(pipeline_config_id=config_id, max_concurrent=None, keep_waiting=True, set_by="")
            .on_conflict_do_nothing()
        )
        row = row_of(connection, queries.lock_slots, parameters)
        assert row is not None
    # Counted after the lock is held, in a statement of its own, so that what others committed before is seen.
    taken = connection.execute(queries.count_slots, parameters).scalar_one()
    return LockedSlots(
        connection, config_id, taken, row["max_concurrent"], row["keep_waiting"], row["set_by"] or ""
    )
