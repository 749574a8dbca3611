"""Writing a workflow that starts, in a transaction of its own or of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from stabilize_celery.crash_points import reach
from stabilize_celery.errors import CommitUnknownError, RepeatTransactionError, StoreError
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence import tables
from stabilize_celery.persistence.database import (
    is_dedup_key,
    is_retryable,
    missing_tables_explained,
    repeated,
)
from stabilize_celery.persistence.joining import Executor, Joined
from stabilize_celery.persistence.outbox import Outgoing, outgoing
from stabilize_celery.persistence.statements import add_rows, batch
from stabilize_celery.persistence.store import WorkflowStore, taken_ids_explained


def insert_started(
    store: WorkflowStore,
    workflows: list[Workflow],
    rows: Mapping[str, dict[str, Any]],
    transaction: Joined | None,
    publish: Callable[[list[Outgoing], bool], None],
) -> tuple[list[str], list[dict[str, Any]]]:
    """Insert workflows and the messages that start them.

    Args:
        store: where to.
        workflows: the workflows; one whose application and dedup_key are known already is not inserted.
        rows: the StartWorkflow row of each, by workflow id.
        transaction: the caller's, or ``None`` for one of its own.
        publish: called after the caller's commit with what is to be sent, and whether others see it.

    Returns:
        The ids of the runs, in order, and the message rows that were written.

    Raises:
        WorkflowStateError: an id is taken: the object was started before.
        RepeatTransactionError: another transaction was in the way of the caller's.
        CommitUnknownError: the database went away during the commit, and did not come back at once.
    """
    if transaction is None:
        return _insert_alone(store, workflows, rows)
    with (
        transaction.writing() as theirs,
        _conflicts_explained(),
        missing_tables_explained(store.database.name),
        taken_ids_explained(workflows),
    ):
        ids, written = _insert(store, theirs, workflows, rows)
    if written:
        ready = [outgoing(row) for row in written]
        transaction.after_commit(lambda: publish(ready, transaction.is_over()))
    return ids, written


@contextmanager
def _conflicts_explained() -> Iterator[None]:
    """Say what to do about a conflict of the caller's transaction with another one.

    In a transaction that sees the database as it was when it began, the lock on a dedup key is no help: the start that had
    it before is not seen, and found by the unique key only.

    Raises:
        RepeatTransactionError: there is one.
    """
    try:
        yield
    except DBAPIError as error:
        if not is_retryable(error) and not (isinstance(error, IntegrityError) and is_dedup_key(error)):
            raise
        raise RepeatTransactionError(
            "repeat your transaction: another one was in its way, as happens in a REPEATABLE READ or SERIALIZABLE "
            f"transaction, or by a deadlock; nothing was started ({' '.join(str(error.orig).split())})"
        ) from error


def _insert_alone(
    store: WorkflowStore, workflows: list[Workflow], rows: Mapping[str, dict[str, Any]]
) -> tuple[list[str], list[dict[str, Any]]]:
    def insert() -> tuple[list[str], list[dict[str, Any]]]:
        with taken_ids_explained(workflows), store.database.begin() as own, batch(own, commit=True):
            written = _insert(store, own, workflows, rows)
            reach("start.written")
        return written

    try:
        return repeated(insert)
    except CommitUnknownError as error:
        try:
            return _find_committed(store, workflows, rows) or repeated(insert)
        except StoreError as again:
            ids = ", ".join(workflow.id for workflow in workflows[:3])
            raise CommitUnknownError(
                f"the database went away while workflow {ids} was being started, so it is not known whether it was. Start "
                f"it again with the same id or dedup_key, or ask for it by its id: {again}"
            ) from error


def _find_committed(
    store: WorkflowStore, workflows: list[Workflow], rows: Mapping[str, dict[str, Any]]
) -> tuple[list[str], list[dict[str, Any]]] | None:
    """What a start has written whose commit was lost sight of: all of it, or nothing."""
    chosen = select(tables.workflows.c.id).where(tables.workflows.c.id.in_([w.id for w in workflows]))
    with store.database.begin() as connection:
        written = set(connection.execute(chosen).scalars())
        if not written:
            return None
        others = {
            w.id: store.find_dedup(connection, w.application, w.dedup_key)
            for w in workflows
            if w.id not in written and w.dedup_key is not None
        }
    return [others.get(w.id) or w.id for w in workflows], [rows[w.id] for w in workflows if w.id in written]


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
        add_rows(connection, tables.messages, [rows[workflow.id] for workflow in new])
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
