"""Writing a workflow that starts, in a transaction of its own or of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import func, select

from stabilize_celery.crash_points import reach
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence.database import missing_tables_explained
from stabilize_celery.persistence.joining import Executor, Joined
from stabilize_celery.persistence.outbox import Outgoing, outgoing
from stabilize_celery.persistence.statements import add_rows, batch
from stabilize_celery.persistence.store import WorkflowStore, taken_ids_explained
from stabilize_celery.persistence.tables import messages


def insert_started(
    store: WorkflowStore,
    workflows: list[Workflow],
    rows: Mapping[str, dict[str, Any]],
    transaction: Joined | None,
    publish: Callable[[list[Outgoing]], None],
) -> tuple[list[str], list[dict[str, Any]]]:
    """Insert workflows and the messages that start them.

    Args:
        store: where to.
        workflows: the workflows; one whose application and dedup_key are known already is not inserted.
        rows: the StartWorkflow row of each, by workflow id.
        transaction: the caller's, or ``None`` for one of its own.
        publish: called after the caller's commit with what is to be sent.

    Returns:
        The ids of the runs, in order, and the message rows that were written.

    Raises:
        WorkflowStateError: an id is taken: the object was started before.
    """
    if transaction is None:
        with taken_ids_explained(workflows), store.database.begin() as own, batch(own, commit=True):
            written_alone = _insert(store, own, workflows, rows)
            reach("start.written")
        return written_alone
    with (
        transaction.writing() as theirs,
        missing_tables_explained(store.database.name),
        taken_ids_explained(workflows),
    ):
        ids, written = _insert(store, theirs, workflows, rows)
    if written:
        ready = [outgoing(row) for row in written]
        transaction.after_commit(lambda: publish(ready))
    return ids, written


def _insert(
    store: WorkflowStore,
    connection: Executor,
    workflows: list[Workflow],
    rows: Mapping[str, dict[str, Any]],
) -> tuple[list[str], list[dict[str, Any]]]:
    ids: list[str] = []
    new: list[Workflow] = []
    by_key: dict[tuple[str, str], str] = {}
    _lock_keys(connection, workflows)
    for workflow in workflows:
        known = None
        if workflow.dedup_key is not None:
            place = (workflow.application, workflow.dedup_key)
            known = by_key.get(place) or store.find_dedup(connection, *place)
            by_key[place] = known or workflow.id
        ids.append(known or workflow.id)
        if known is None:
            new.append(workflow)
    if new:
        store.insert_workflows(connection, new)
        add_rows(connection, messages, [rows[workflow.id] for workflow in new])
    return ids, [rows[workflow.id] for workflow in new]


def _lock_keys(connection: Executor, workflows: list[Workflow]) -> None:
    """Until the transaction ends nobody else starts with these keys: whether a start counts is known only then."""
    if connection.dialect.name != "postgresql":
        return
    keys = {f"{w.application}/{w.dedup_key}" for w in workflows if w.dedup_key is not None}
    for key in sorted(keys):
        connection.execute(
            select(func.pg_advisory_xact_lock(func.hashtextextended(f"stabilize dedup {key}", 0)))
        )
