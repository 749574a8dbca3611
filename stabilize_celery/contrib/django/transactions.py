"""Starting workflows within Django's transactions, through Django's own connection.

Statements are compiled by SQLAlchemy and executed by Django's cursor.  A SQLAlchemy engine on top of Django's connection
would silently end the transaction it was meant to join.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from django.db import Error, connections, transaction
from sqlalchemy import Dialect, Executable, exc
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

from stabilize_celery.contrib.django.database import file_of
from stabilize_celery.errors import ConfigurationError
from stabilize_celery.persistence.base import BaseStore
from stabilize_celery.persistence.database import Executor
from stabilize_celery.persistence.tables import PREFIX, dumps
from stabilize_celery.persistence.transactions import Joined

_DIALECTS: dict[str, type[Dialect]] = {"postgresql": PGDialect, "sqlite": SQLiteDialect}
#: What tells whether two connections see the same tables, however they got there.
_IDENTITY = f"""
    SELECT extract(epoch FROM pg_postmaster_start_time())::text, current_database(), to_regclass('{PREFIX}workflows')::oid
"""


def transaction_of(connection: Any, store: BaseStore) -> Joined | None:
    """The transaction behind ``connection=``: an alias of ``DATABASES``, or ``django.db.connection``.

    Raises:
        ConfigurationError: there is no such alias, or the workflows live in another database.
    """
    alias = connection if isinstance(connection, str) else getattr(connection, "alias", None)
    if not isinstance(alias, str):
        return None
    if alias not in connections:
        known = ", ".join(connections)
        raise ConfigurationError(
            f"connection={connection!r}: Django has no database of that name, it has {known}"
        )
    wrapper = connections[alias]
    if not _is_database_of(wrapper, store):
        raise ConfigurationError(
            f"Django's database {alias!r} ({wrapper.settings_dict['NAME']}) is not the one that holds the workflows "
            f"({store.database.name}): its transactions cannot start any. Leave CELERY_STABILIZE_DATABASE_URL out to "
            "use Django's, or start with transaction.on_commit(lambda: stabilize.start(workflow))"
        )
    return _DjangoTransaction(wrapper)


def find_transaction(store: BaseStore) -> Joined | None:
    """The ``atomic`` block this thread is in, if it is one on the database that holds the workflows."""
    for wrapper in connections.all(initialized_only=True):
        if wrapper.in_atomic_block and _is_database_of(wrapper, store):
            return _DjangoTransaction(wrapper)
    return None


class _DjangoTransaction:
    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper

    @contextmanager
    def writing(self) -> Iterator[Executor]:
        try:
            # A savepoint, so that a start that is refused leaves the caller's transaction usable.
            with transaction.atomic(using=self._wrapper.alias):
                yield _DjangoExecutor(self._wrapper)
        except exc.DBAPIError as error:
            if isinstance(error.__cause__, Error):
                # Code that works with Django expects its errors.
                raise error.__cause__ from error.orig
            raise

    def after_commit(self, call: Callable[[], None]) -> None:
        transaction.on_commit(call, using=self._wrapper.alias)

    def is_over(self) -> bool:
        return not self._wrapper.in_atomic_block

    def never_commits(self) -> bool:
        return any(getattr(block, "_from_testcase", False) for block in self._wrapper.atomic_blocks)


class _DjangoExecutor:
    """Executes statements of SQLAlchemy Core on a Django connection."""

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self.dialect = _dialect(wrapper.vendor)

    def execute(self, statement: Executable, parameters: Any = None, /) -> _Rows:
        """See :class:`stabilize_celery.persistence.database.Executor`."""
        many = isinstance(parameters, Sequence)
        given = list(parameters) if many else [parameters or {}]
        compiled: Any = statement.compile(dialect=self.dialect, column_keys=list(given[0]) or None)  # type: ignore[attr-defined]
        processors = {
            name: processor
            for bind, name in compiled.bind_names.items()
            if (processor := bind.type.dialect_impl(self.dialect).bind_processor(self.dialect)) is not None
        }
        bound = [
            {
                name: processors[name](value) if name in processors else value
                for name, value in compiled.construct_params(each).items()
            }
            for each in given
        ]
        with self._wrapper.cursor() as cursor:
            try:
                if many:
                    cursor.executemany(compiled.string, bound)
                    return _Rows([])
                cursor.execute(compiled.string, bound[0])
                return _Rows(cursor.fetchall() if cursor.description else [])
            except Error as error:
                kind = getattr(exc, type(error).__name__, exc.DBAPIError)
                raise kind(compiled.string, None, error.__cause__ or error) from error


class _Rows:
    """The rows a statement returned."""

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self._rows = rows

    def scalar_one_or_none(self) -> Any:
        """The first column of the only row."""
        if len(self._rows) > 1:
            raise exc.MultipleResultsFound("more than one row")
        return self._rows[0][0] if self._rows else None


@cache
def _dialect(vendor: str) -> Dialect:
    return _DIALECTS[vendor](paramstyle="pyformat", json_serializer=dumps)  # type: ignore[call-arg]


# ---------------------------------------------------------------------- the same database?

_known: weakref.WeakKeyDictionary[BaseStore, dict[tuple[str, ...], bool]] = weakref.WeakKeyDictionary()


def _is_database_of(wrapper: Any, store: BaseStore) -> bool:
    if wrapper.vendor not in _DIALECTS or (wrapper.vendor == "postgresql") != store.database.is_postgresql:
        return False
    if wrapper.vendor == "sqlite":
        file, ours = file_of(wrapper), store.database.url.database
        return file is not None and ours is not None and file == Path(ours).resolve()
    settings = wrapper.settings_dict
    # Tests change the name of a database that is in use.
    place = (wrapper.alias, *(str(settings[key]) for key in ("NAME", "HOST", "PORT")))
    known = _known.setdefault(store, {})
    if place not in known:
        with wrapper.cursor() as cursor:
            cursor.execute(_IDENTITY)
            theirs = tuple(cursor.fetchone())
        with store.database.autocommit() as connection:
            ours_identity = tuple(connection.exec_driver_sql(_IDENTITY).one())
        if None in theirs or None in ours_identity:
            # Without the tables the answer may change; the start itself will say what is missing.
            return theirs[:2] == ours_identity[:2]
        known[place] = theirs == ours_identity
    return known[place]
