"""Mending from outside any message: transactions that have a workflow, or a configuration, for themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, delete

from stabilize_celery.messages import CompleteWorkflow
from stabilize_celery.persistence.audit_store import Standing, read_messages, read_sub_workflows
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import messages
from stabilize_celery.persistence.unit_of_work import Surroundings, UnitOfWork


@contextmanager
def alone(store: WorkflowStore, workflow_id: str, surroundings: Surroundings) -> Iterator[UnitOfWork]:
    """A transaction that has a workflow for itself; what it sends becomes rows, nothing is handled in place."""
    now = store.now()
    with store.database.begin() as connection:
        if store.database.is_postgresql:
            connection.execute(store.queries.gate_exclusive, {"workflow_id": workflow_id})
        unit = UnitOfWork(
            connection,
            now,
            surroundings,
            row={"workflow_id": workflow_id, "exclusive": True, "created_at": now},
            message=CompleteWorkflow(workflow_id=workflow_id),
            inline=False,
        )
        yield unit
        unit.flush()


def lock_standing(unit: UnitOfWork, workflow_id: str) -> Standing | None:
    """A workflow whole, locked, with everything that may drive it; ``None`` if there is none."""
    workflow = unit.whole(workflow_id)
    if workflow is None:
        return None
    # First the others: when one is seen to have ended, what it sent is there too.
    others = read_sub_workflows(unit.connection, [workflow_id])
    sent = read_messages(unit.connection, [workflow_id])
    return Standing(
        workflow,
        unit.now,
        unit.holds_slot(workflow),
        sent.get(workflow_id, []),
        others.get(workflow_id, []),
    )


def delete_idle(connection: Connection, message_id: str) -> bool:
    """Delete a message that nobody holds."""
    deleted = connection.execute(
        delete(messages).where(messages.c.id == message_id, messages.c.lease_owner.is_(None))
    )
    return deleted.rowcount > 0
