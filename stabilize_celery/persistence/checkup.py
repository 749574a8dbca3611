"""The doctor's look at the database; it reads, and changes nothing."""

from __future__ import annotations

import secrets
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import psycopg.pq
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from stabilize_celery.errors import StabilizeError
from stabilize_celery.persistence.finding import Finding, Level
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import dead_letters, messages
from stabilize_celery.settings import Settings

#: Older releases of PostgreSQL get no fixes any more.
_OLDEST = 13
#: Seconds.  The engine goes by the database's clock; people compare its times with those in logs.
_CLOCKS_APART = 2.0
#: A relay that is alive sends within this many of its intervals, and no sooner than after that many seconds.
_INTERVALS_LATE, _SECONDS_LATE = 10, 10.0


def examine_database(store: WorkflowStore, settings: Settings) -> list[Finding]:
    """Is it there, of the right kind, set up safely, with our tables, and is what is due being sent?"""
    found: list[Finding] = []
    try:
        version = _server_version(store)
    except (StabilizeError, SQLAlchemyError) as error:
        found.append(
            Finding(
                "database",
                Level.ERROR,
                f"not reachable: {' '.join(str(error).split())}",
                "check stabilize_database_url, and that the server runs and lets this user in",
                "All state is there: nothing can be started or continued without it.",
            )
        )
        return found
    found.append(Finding("database", Level.OK, f"{store.database.name} answers ({version})"))
    if store.database.is_postgresql:
        _examine_server(store, found)
        _examine_pooler(store, settings, found)
    try:
        store.check_schema()
    except StabilizeError as error:
        found.append(Finding("database", Level.ERROR, str(error), "run the `migrate` command"))
        return found
    found.append(Finding("database", Level.OK, "the tables are of the version this release needs"))
    _examine_messages(store, settings, found)
    return found


def _server_version(store: WorkflowStore) -> str:
    name = "PostgreSQL" if store.database.is_postgresql else "SQLite"
    statement = "SHOW server_version" if store.database.is_postgresql else "SELECT sqlite_version()"
    with store.database.autocommit() as connection:
        return f"{name} {connection.execute(text(statement)).scalar_one()}"


def _examine_server(store: WorkflowStore, found: list[Finding]) -> None:
    names = (
        "server_version_num",
        "default_transaction_read_only",
        "fsync",
        "synchronous_commit",
    )
    with store.database.autocommit() as connection:
        shown = {name: str(connection.execute(text(f"SHOW {name}")).scalar_one()) for name in names}
        standby = bool(connection.execute(text("SELECT pg_is_in_recovery()")).scalar_one())
        before = datetime.now(UTC)
        theirs: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        ours = before + (datetime.now(UTC) - before) / 2

    if int(shown["server_version_num"]) < _OLDEST * 10000:
        found.append(
            Finding(
                "database",
                Level.WARNING,
                f"PostgreSQL is older than {_OLDEST}",
                "upgrade the server",
                "The engine is tested with supported releases only.",
            )
        )
    if standby or shown["default_transaction_read_only"] == "on":
        found.append(
            Finding(
                "database",
                Level.ERROR,
                "it is a standby" if standby else "its transactions are read-only",
                "let stabilize_database_url name the primary",
                "Every step of a workflow is written.",
            )
        )
    if shown["fsync"] == "off":
        found.append(
            Finding(
                "database",
                Level.WARNING,
                "fsync is off",
                "set fsync = on",
                "A crash of the machine can destroy the database, and every workflow in it.",
            )
        )
    if shown["synchronous_commit"] == "off":
        found.append(
            Finding(
                "database",
                Level.WARNING,
                "synchronous_commit is off",
                "ALTER ROLE ... SET synchronous_commit = 'on' for the role of the workers",
                "A crash of the server forgets its last commits: what they recorded is done again, and a "
                "workflow that was just started may be gone.",
            )
        )
    apart = abs((ours - theirs).total_seconds())
    if apart > _CLOCKS_APART:
        found.append(
            Finding(
                "database",
                Level.WARNING,
                f"its clock and this machine's are {apart:.1f} s apart",
                "let both machines keep time (NTP)",
                "The engine goes by the database's clock, so it works; times in logs cannot be compared with "
                "those of workflows.",
            )
        )


def _examine_pooler(store: WorkflowStore, settings: Settings, found: list[Finding]) -> None:
    """Is there a pooler between us and the server that gives each transaction another session?"""
    url = store.database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        with (
            psycopg.connect(url, autocommit=True, connect_timeout=10) as ours,
            psycopg.connect(url, autocommit=True, connect_timeout=10) as other,
        ):
            keeps_statements = _moved_statement_works(ours, other)
    except psycopg.Error as error:
        what = f"a second session could not be used: {' '.join(str(error).split())}"
        found.append(Finding("database", Level.WARNING, what, "check the limits for connections"))
        return
    if keeps_statements is None:
        return
    if settings.database_listen_url is None:
        found.append(
            Finding(
                "database",
                Level.WARNING,
                "a pooler gives each transaction another session (transaction mode)",
                "none, or set stabilize_database_listen_url to the server itself",
                "The relay cannot hear NOTIFY through it, so shorter delays than stabilize_relay_interval take that long.",
            )
        )
    if settings.database_prepare and not keeps_statements:
        found.append(
            Finding(
                "database",
                Level.ERROR,
                "the pooler loses prepared statements, and stabilize_database_prepare is on",
                "set stabilize_database_prepare = False, or use PgBouncer 1.21 with max_prepared_statements",
                "A statement prepared in one session is unknown in the next: handling messages fails now and then.",
            )
        )


def _moved_statement_works(ours: psycopg.Connection[Any], other: psycopg.Connection[Any]) -> bool | None:
    """Whether a prepared statement survives a change of the session; ``None`` if the session cannot change."""

    def session(connection: psycopg.Connection[Any]) -> int:
        row = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
        assert row is not None
        return int(row[0])

    # By the protocol, as drivers do it; poolers know nothing of the PREPARE of SQL.
    name = f"stabilize_doctor_{secrets.token_hex(8)}"
    ours.pgconn.prepare(name.encode(), b"SELECT 1")
    first = session(ours)
    # Whoever begins a transaction now is given the session that we have just left.
    with other.transaction():
        if session(other) != first and session(ours) == first:
            return None
        answer = ours.pgconn.exec_prepared(name.encode(), [])
        kept = answer.status == psycopg.pq.ExecStatus.TUPLES_OK
        if not kept:
            with suppress(psycopg.Error):
                other.execute(f"DEALLOCATE {name}", prepare=False)
    return kept


def _examine_messages(store: WorkflowStore, settings: Settings, found: list[Finding]) -> None:
    late = max(_SECONDS_LATE, _INTERVALS_LATE * settings.relay_interval)
    threshold = store.now() - timedelta(seconds=late)
    overdue = select(messages.c.send_at).where(messages.c.send_at < threshold).limit(1001).subquery()
    with store.database.autocommit() as connection:
        count, oldest = connection.execute(select(func.count(), func.min(overdue.c.send_at))).one()
        dead = connection.execute(
            select(func.count()).select_from(select(dead_letters.c.id).limit(1001).subquery())
        ).scalar_one()
    if count:
        since = (store.now() - oldest).total_seconds()
        found.append(
            Finding(
                "database",
                Level.ERROR,
                f"{_many(count)} messages should have been sent, the first {since:.0f} s ago",
                "start a worker without --no-stabilize-relay, and look at its log",
                "The relay sends what is delayed, and what was lost on the way; their workflows stand still.",
            )
        )
    else:
        found.append(Finding("database", Level.OK, "no message is overdue"))
    if dead:
        found.append(
            Finding(
                "database",
                Level.WARNING,
                f"{_many(dead)} dead letters",
                "look at them with the command `dead-letters`",
                "Each is a message that failed for good, and mostly a workflow that ended with it.",
            )
        )


def _many(count: int) -> str:
    return "more than 1,000" if count > 1000 else f"{count:,}"
