"""Being part of the caller's transaction: what ``connection=`` takes, and transactions that are joined unasked.

SQLAlchemy connections and sessions are known here.  A web framework with a database layer of its own adds an
:data:`Adapter`, and a :data:`Finder` if a start within its open transaction is to join it by itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from sqlalchemy import Connection, Dialect, Executable, event
from sqlalchemy.orm import Session, scoped_session

from stabilize_celery.errors import ConfigurationError
from stabilize_celery.persistence.base import BaseStore


class Executor(Protocol):
    """What our statements need of a connection."""

    @property
    def dialect(self) -> Dialect:
        """Of which database."""

    def execute(self, statement: Executable, parameters: Any = None, /) -> Any:
        """Run a statement of SQLAlchemy Core, with one set of parameters or a list of them."""


class Joined(Protocol):
    """The caller's transaction."""

    def writing(self) -> AbstractContextManager[Executor]:
        """A block in which statements are executed: all of them, or none if it raises."""

    def after_commit(self, call: Callable[[], None]) -> None:
        """Call once it has committed; never if it is rolled back."""

    def is_over(self) -> bool:
        """Whether others see what was written, asked within such a call: test suites call it without a commit."""


#: The transaction behind a value of ``connection=``; ``None`` if it is of another kind.
Adapter = Callable[[Any, BaseStore], Joined | None]
#: The caller's open transaction on a store's database, if there is one that is to be joined unasked.
Finder = Callable[[BaseStore], Joined | None]

_adapters: list[Adapter] = []
_finders: list[Finder] = []


def register(adapter: Adapter, finder: Finder | None = None) -> None:
    """Teach ``start`` another kind of transaction; doing it twice changes nothing."""
    if adapter not in _adapters:
        _adapters.append(adapter)
    if finder is not None and finder not in _finders:
        _finders.append(finder)


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
