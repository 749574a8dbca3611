"""Transactions that are led into each other: held where the test says, seen to wait where the server says.

A :class:`Contender` is a thread with an engine, and so connections, of its own, as another process would have.  It is
held at a crash point, holding its locks, while another one runs into them; that it really waits for a lock is
read from the server.  Nothing here sleeps and hopes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
from sqlalchemy import create_engine, event, select, update

from stabilize_celery import Stabilize, Workflow, WorkflowRun
from stabilize_celery.clock import Clock
from stabilize_celery.crash_points import watching
from stabilize_celery.persistence import tables
from stabilize_celery.persistence.tables import dumps
from tests.conformance import behaviours
from tests.processes import wait_until
from tests.services import plain_address

PATIENCE = 60.0
#: All locks of the handlers are taken, nothing of what they changed is committed.
HANDLED = "message.handled"
#: The message is taken and the gate entered; the result of a task has locked its stage and what follows it, too.
TAKEN = "message.taken"

SETTINGS: dict[str, Any] = {
    "retry_delay": 0.05,
    "retry_delay_max": 0.1,
    "control_retry_delay": 0.05,
    # Nothing is sent again, and no lease ends, unless the test says so.
    "resend_delay": 3600.0,
    "resend_delay_max": 3600.0,
    "lease": 3600.0,
    "heartbeat": 0.2,
}

Action = Callable[[Stabilize], Any]
_this_thread = threading.local()


class _OneClock(Clock):
    """All engines of a scene are on this machine: there is nothing to measure, and so no error in it."""

    def synchronise(self, *measured: Any, **more: Any) -> None:
        pass


def engine_on(url: str, **settings: Any) -> Stabilize:
    """An engine with connections of its own; nobody drives it but the test."""
    engine = Stabilize.embedded(
        url,
        concurrency=1,
        create_tables=False,
        database_pool_size=2,
        clock=_OneClock(),
        **{**SETTINGS, **settings},
    )
    behaviours.register(engine)
    event.listen(engine.store.database.engine, "begin", _note_backend)
    return engine


def _note_backend(connection: Any) -> None:
    contender = getattr(_this_thread, "contender", None)
    if contender is not None:
        contender.backend = connection.connection.driver_connection.info.backend_pid


class Contender:
    """One transaction, or several after each other, in a thread of its own."""

    def __init__(
        self,
        scene: Scene,
        engine: Stabilize,
        action: Action,
        hold_at: str | None,
        fails_with: BaseException | None = None,
    ) -> None:
        self._scene = scene
        self._engine = engine
        self._action = action
        self._hold_at = hold_at
        self._fails_with = fails_with
        self._go = threading.Event()
        self.held = threading.Event()
        self.backend: int | None = None
        self.waited = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        _this_thread.contender = self
        try:
            self.result = self._action(self._engine)
        except BaseException as error:
            self.error = error

    def reached(self, point: str) -> None:
        """Called by the thread itself at every crash point."""
        if point == self._hold_at and not self._go.is_set():
            self.hold()
            if self._fails_with is not None:
                raise self._fails_with

    def hold(self) -> None:
        """Called by the thread itself: wait here until the test lets it go."""
        self.held.set()
        assert self._go.wait(PATIENCE), "nobody let this transaction go on"

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def until_held(self) -> Contender:
        """Wait until it is where it is to be held, or has ended before."""
        wait_until(lambda: self.held.is_set() or self.done, PATIENCE, "a transaction to be held", pause=0.002)
        assert self.held.is_set(), f"it never came to {self._hold_at}: {self.error!r}"
        return self

    def until_stuck(self) -> Contender:
        """Wait until its backend waits for somebody else's lock; or until it has ended, or is held, without waiting."""

        def settled() -> bool:
            self.waited = self.waited or self._scene.waits(self.backend)
            return self.waited or self.done or self.held.is_set()

        wait_until(settled, PATIENCE, "a transaction to wait for a lock", pause=0.002)
        return self

    def let_go(self) -> Contender:
        """Let it go on."""
        self._go.set()
        return self

    def join(self) -> Contender:
        """Let it go on to its end; what it raised is raised here."""
        self._go.set()
        self._thread.join(PATIENCE)
        assert self.done, "a transaction never ended"
        if self.error is not None:
            raise self.error
        return self


class Scene:
    """One database, an engine that leads up to the moment that counts, and those that meet there."""

    def __init__(self, url: str, log: str, stack: ExitStack, settings: dict[str, Any]) -> None:
        self.url = url
        #: Where scripts of several steps keep count; goes into the context of the workflow as ``_log``.
        self.log = log
        self._stack = stack
        address = plain_address(url)
        self._server = stack.enter_context(psycopg.connect(address, autocommit=True))
        # What the test itself asks is not among what the engine asks.
        self._eyes = create_engine(url, json_serializer=dumps)
        stack.callback(self._eyes.dispose)
        self.engine = stack.enter_context(engine_on(url, **settings))
        stack.enter_context(watching(_watch))

    # ------------------------------------------------------------------ up to the moment

    def start(self, workflow: Workflow, *withheld: str) -> WorkflowRun:
        """Start a workflow and let it come to where only messages of the given kinds are left: see :meth:`proceed`."""
        workflow.context.setdefault("_log", self.log)
        run = self.engine.start(workflow)
        self.proceed(*withheld)
        return run

    def proceed(self, *withheld: str) -> None:
        """Handle everything that is due, but for messages of the kinds given: a type, or ``"RunTask ref"``."""
        while waiting := [row for row in self.messages() if not _matches(row, withheld)]:
            for row in waiting:
                self.engine.dispatcher.process(row["id"], row["type"])

    def messages(self) -> list[dict[str, Any]]:
        """The messages that could be handled now, oldest first, each with the ``ref`` of its stage."""
        messages, stages = tables.messages, tables.stages
        statement = (
            select(messages, stages.c.ref_id, stages.c.name, stages.c.parent_stage_id)
            .join_from(messages, stages, stages.c.id == messages.c.stage_id, isouter=True)
            .where(messages.c.due_at <= self.engine.store.now(), messages.c.lease_owner.is_(None))
            .order_by(messages.c.id)
        )
        with self._eyes.connect() as connection:
            rows = [dict(row._mapping) for row in connection.execute(statement)]
        for row in rows:
            row["ref"] = row["name"] if row["parent_stage_id"] else row["ref_id"]
        return rows

    def message(self, kind: str) -> Action:
        """Handling the one message of a kind: a type, or ``"RunTask ref"``."""
        found = [row for row in self.messages() if _matches(row, (kind,))]
        assert len(found) == 1, f"{len(found)} messages {kind!r} among {_names(self.messages())}"
        row = found[0]
        return lambda engine: engine.dispatcher.process(row["id"], row["type"])

    def ordered(self, order: Callable[[], object]) -> Action:
        """Handling the one message that a control such as ``run.cancel`` leaves."""
        before = {row["id"] for row in self.messages()}
        order()
        (row,) = [row for row in self.messages() if row["id"] not in before]
        return lambda engine: engine.dispatcher.process(row["id"], row["type"])

    # ------------------------------------------------------------------ the moment

    def contender(
        self, action: Action, hold_at: str | None = None, fails_with: BaseException | None = None
    ) -> Contender:
        """Begin something in a thread with connections of its own; where it is held it can be made to fail."""
        engine = self._stack.enter_context(engine_on(self.url))
        return Contender(self, engine, action, hold_at, fails_with)

    def until_ready(self, run: WorkflowRun) -> None:
        """Handle what falls due until a workflow has ended."""

        def ended() -> bool:
            self.proceed()
            return run.ready()

        self.until(ended)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for what another thread does."""
        wait_until(condition, PATIENCE, "what another thread does")

    def collide(self, first: Action, second: Action, at: str = HANDLED) -> tuple[Contender, Contender]:
        """Hold one transaction, let another run into it until it waits or has ended, then let both end."""
        one = self.contender(first, at).until_held()
        two = self.contender(second).until_stuck()
        one.join()
        two.join()
        return one, two

    def waits(self, backend: int | None) -> bool:
        """Whether a backend waits for a lock that another one holds."""
        if backend is None:
            return False
        row = self._server.execute("SELECT cardinality(pg_blocking_pids(%s))", (backend,)).fetchone()
        return row is not None and bool(row[0])

    def backends(self) -> int:
        """How many connections the engines have to this database."""
        row = self._server.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'stabilize'"
        ).fetchone()
        assert row is not None
        return int(row[0])

    def deadlocks(self) -> int:
        """How many deadlocks the server has seen in this database."""
        row = self._server.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
        assert row is not None
        return int(row[0])

    def execute(self, statement: Any) -> list[Any]:
        """A statement of the test's own, committed."""
        with self._eyes.begin() as connection:
            result = connection.execute(statement)
            return list(result) if result.returns_rows else []

    def let_leases_end(self) -> None:
        """As if so much time had passed that every lease has run out."""
        messages = tables.messages
        now = self.engine.store.now()
        self.execute(update(messages).where(messages.c.lease_owner.is_not(None)).values(send_at=now))


def _watch(point: str) -> None:
    contender = getattr(_this_thread, "contender", None)
    if contender is not None:
        contender.reached(point)


def this_contender() -> Contender:
    """The contender whose thread this is."""
    contender: Contender = _this_thread.contender
    return contender


def _matches(row: dict[str, Any], kinds: tuple[str, ...]) -> bool:
    return row["type"] in kinds or f"{row['type']} {row['ref']}" in kinds


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return [f"{row['type']} {row['ref']}" for row in rows]


@contextmanager
def scene_on(url: str, log: str, **settings: Any) -> Iterator[Scene]:
    """A scene on a database, with everything it opens closed at its end."""
    with ExitStack() as stack:
        yield Scene(url, log, stack, settings)
