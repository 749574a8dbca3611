"""Being part of the caller's transaction: what ``connection=`` takes, and transactions that are joined unasked.

SQLAlchemy connections and sessions are known here.  A web framework with a database layer of its own adds an
:data:`Adapter`, and a :data:`Finder` if a start within its open transaction is to join it by itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Protocol

from sqlalchemy import Connection, event, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session, scoped_session

from stabilize_celery.crash_points import reach
from stabilize_celery.errors import CommitUnknownError, ConfigurationError, RepeatTransactionError, StoreError
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence import tables
from stabilize_celery.persistence.base import BaseStore
from stabilize_celery.persistence.database import (
    Executor,
    is_dedup_key,
    is_retryable,
    missing_tables_explained,
    repeated,
)
from stabilize_celery.persistence.pipeline import add_rows, batch
from stabilize_celery.persistence.rows import Outgoing, outgoing
from stabilize_celery.persistence.store import WorkflowStore, taken_ids_explained


class Joined(Protocol):
    """The caller's transaction."""

    def writing(self) -> AbstractContextManager[Executor]:
        """A block in which statements are executed: all of them, or none if it raises."""

    def after_commit(self, call: Callable[[], None]) -> None:
        """Call once it has committed; never if it is rolled back."""

    def is_over(self) -> bool:
        """Whether others see what was written, asked within such a call: test suites call it without a commit."""

    def never_commits(self) -> bool:
        """Whether it is that of a test, which is rolled back in the end."""


#: The transaction behind a value of ``connection=``; ``None`` if it is of another kind.
Adapter = Callable[[Any, BaseStore], Joined | None]
#: The caller's open transaction on a store's database, if there is one that is to be joined unasked.
Finder = Callable[[BaseStore], Joined | None]

TESTS_NEVER_COMMIT = (
    "Django's TestCase never commits: use TransactionTestCase, or with pytest-django "
    "@pytest.mark.django_db(transaction=True)"
)
_adapters: list[Adapter] = []
_finders: list[Finder] = []


def register(adapter: Adapter, finder: Finder | None = None) -> None:
    """Teach ``start`` another kind of transaction; doing it twice changes nothing."""
    if adapter not in _adapters:
        _adapters.append(adapter)
    if finder is not None and finder not in _finders:
        _finders.append(finder)


def unseen_hint(store: BaseStore) -> str:
    """What to say of a workflow that is not found: where it was started may be a transaction that is still open."""
    # One that is broken already has other troubles.
    with suppress(Exception):
        if joined(None, store) is not None:
            return f"; one that was started in the open transaction is there only after its commit. {TESTS_NEVER_COMMIT}"
    return ""


def joined(connection: Any, store: BaseStore) -> Joined | None:
    """The transaction a start is to be part of; ``None`` for one of its own.

    Raises:
        ConfigurationError: ``connection`` is nothing that has a transaction.
    """
    if connection is None:
        found = (finder(store) for finder in _finders)
        return next((transaction for transaction in found if transaction is not None), None)
    if isinstance(connection, scoped_session):
        connection = connection()
    if isinstance(connection, Session):
        connection = connection.connection()
    if isinstance(connection, Connection):
        return _SqlAlchemyTransaction(connection)
    if type(connection).__module__.startswith("sqlalchemy.ext.asyncio"):
        raise ConfigurationError(
            f"connection= takes no {type(connection).__name__} directly; write "
            "`await connection.run_sync(lambda sync: stabilize.start(workflow, connection=sync))`"
        )
    for adapter in _adapters:
        transaction = adapter(connection, store)
        if transaction is not None:
            return transaction
    hint = ""
    if isinstance(connection, str) and not _adapters:
        hint = (
            "; for the alias of a Django database put 'stabilize_celery.contrib.django' into INSTALLED_APPS"
        )
    raise ConfigurationError(
        f"connection= takes a SQLAlchemy Connection or Session, not {type(connection).__name__}{hint}"
    )


class _SqlAlchemyTransaction:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def writing(self) -> AbstractContextManager[Executor]:
        return nullcontext(self._connection)

    def after_commit(self, call: Callable[[], None]) -> None:
        waiting = _waiting.get(self._connection)
        if waiting is None:
            waiting = _waiting[self._connection] = []
            event.listen(self._connection, "commit", _commit_and_call)
            event.listen(self._connection, "rollback", _forget)
        waiting.append(call)

    def is_over(self) -> bool:
        return True

    def never_commits(self) -> bool:
        return False


#: What is to be called after the commit of a connection's transaction.
_waiting: weakref.WeakKeyDictionary[Connection, list[Callable[[], None]]] = weakref.WeakKeyDictionary()


def _commit_and_call(connection: Connection) -> None:
    """SQLAlchemy says that it is about to commit, and not that it has: so this commits, and leaves it nothing to do.

    A message that is published before the commit finds no row, and is sent again only after a while.
    """
    waiting = _waiting.get(connection)
    if not waiting:
        return
    calls, waiting[:] = list(waiting), []
    if getattr(connection.connection.driver_connection, "in_transaction", True):
        connection.exec_driver_sql("COMMIT")
    for call in calls:
        call()


def _forget(connection: Connection) -> None:
    _waiting.get(connection, []).clear()


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
    """Until the transaction ends no other transaction starts with these keys: whether a start counts is known only then."""
    if connection.dialect.name != "postgresql":
        return
    keys = {f"{w.application}/{w.dedup_key}" for w in workflows if w.dedup_key is not None}
    for key in sorted(keys):
        connection.execute(
            select(func.pg_advisory_xact_lock(func.hashtextextended(f"stabilize dedup {key}", 0)))
        )
