"""One database for all histories: engines on it, a state of it that can be put back, and what has come of a history."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import psycopg
from sqlalchemy import create_engine, func, select

from stabilize_celery import (
    FakeClock,
    Stabilize,
    StageDefinitionBuilder,
    StageExecution,
    SyntheticStageOwner,
    Task,
    TaskExecution,
    TaskResult,
    TransientError,
    Workflow,
    current_run,
)
from stabilize_celery.dag.graph import StageGraphBuilder
from stabilize_celery.models import ids
from stabilize_celery.persistence import tables
from stabilize_celery.persistence.rows import Outgoing
from tests.interleaving.scheduler import this_participant
from tests.services import plain_address
from tests.simulation.invariants import AT_REST, Evidence

#: More messages than any history leaves.
_MOST_STEPS = 500
_IDS = 10**6
_TABLES = [table.name for table in tables.metadata.sorted_tables]
_DUMP = "SELECT " + ", ".join(
    f"(SELECT coalesce(json_agg(each), '[]')::text FROM {name} AS each)" for name in _TABLES
)


#: What no transaction raises, only a mistake in the engine or in a situation.
_MISTAKES = (AttributeError, NameError, TypeError, AssertionError, ImportError)


class Scripted(Task):
    """Does what the stage's own context says under ``do``."""

    def __init__(self, bodies: Counter[tuple[str, int]]) -> None:
        self._bodies = bodies

    def execute(self, stage: StageExecution) -> TaskResult:
        self._bodies[stage.name, stage.generation] += 1
        kind, _, argument = str(stage.own_context.get("do", "ok")).partition(":")
        run = current_run()
        assert run is not None
        if kind == "fail":
            return TaskResult.terminal("boom")
        if kind == "transient" and run.attempt < 2:
            raise TransientError("not now", retry_after=5)
        if kind == "suspend" and "_signal_name" not in stage.context:
            return TaskResult.suspend()
        if kind == "jump" and not stage.execution.context.get("_jump_history"):
            return TaskResult.jump_to(argument)
        return TaskResult.success(outputs={stage.name: stage.generation})


class PlannedBuilder(StageDefinitionBuilder):
    """Plans the synthetic stages that the stage's own context names."""

    @property
    def type(self) -> str:
        return "planned"

    def before_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        self._plan(stage, graph, "before", SyntheticStageOwner.STAGE_BEFORE)

    def after_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        self._plan(stage, graph, "after", SyntheticStageOwner.STAGE_AFTER)

    def on_failure_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        self._plan(stage, graph, "on_failure", SyntheticStageOwner.STAGE_AFTER)

    def _plan(
        self, stage: StageExecution, graph: StageGraphBuilder, phase: str, owner: SyntheticStageOwner
    ) -> None:
        for number, context in enumerate(stage.own_context.get("plan", {}).get(phase, [])):
            name = f"{stage.name}/{phase}{number}"
            child = StageExecution.create_synthetic("planned", name, stage, owner, dict(context))
            child.tasks = [TaskExecution.create("t", "scripted")]
            (graph.append if context.get("chained") else graph.add)(child)


class Recorder:
    """A publisher that keeps what it is given, and sees whether that was committed."""

    def __init__(self) -> None:
        self.published: list[Outgoing] = []
        self.early: list[str] = []

    def publish(self, outgoing: list[Outgoing]) -> None:
        self.published += outgoing
        participant = this_participant()
        if participant is not None:
            participant.published += [(each.id, each.type) for each in outgoing]
            if participant.in_transaction:
                self.early += [f"{participant.name} published {each.type} too early" for each in outgoing]

    def wake(self, due: Any) -> None:
        """Nothing sleeps here."""


class _Complaints(logging.Handler):
    """Errors that the engine survives must not happen here at all."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            self.told.append(f"{record.getMessage()}: {type(error).__name__}: {str(error)[:300]}")


@dataclass
class _Watch:
    """What the invariants of the simulator need of a history."""

    executions: Any
    released: Any
    problems: list[str] = field(default_factory=list)

    def violate(self, invariant: str, told: str) -> None:
        self.problems.append(f"{invariant}: {told}")


class _Any(dict[Any, int]):
    """Every task was called, every stage may have been released: that is seen elsewhere."""

    def __missing__(self, _: Any) -> int:
        return 1

    def __contains__(self, _: Any) -> bool:
        return True


@dataclass(frozen=True)
class Result:
    """What has come of a history: comparable, and what is wrong with it whatever it is compared with."""

    outcome: tuple[Any, ...]
    problems: tuple[str, ...]


class World:
    """A database with our tables that nobody else uses, and engines on it."""

    def __init__(self, url: str) -> None:
        self.clock = FakeClock()
        self.bodies: Counter[tuple[str, int]] = Counter()
        self.recorder = Recorder()
        self.complaints = _Complaints()
        self.server: psycopg.Connection[Any] = psycopg.connect(plain_address(url), autocommit=True)
        name = self.server.info.dbname
        self.server.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '20ms'")
        self.theirs = create_engine(url, pool_size=6)
        self._url = url
        self._engines = {inline: self._engine(inline) for inline in (True, False)}
        self.engine = self._engines[True]
        self._ids = _IDS

    def _engine(self, inline: bool) -> Stabilize:
        made = self._made(inline, 1)
        made.__dict__["publisher"] = self.recorder
        return made

    def crowd(self, inline: bool) -> Stabilize:
        """One more engine, which handles four messages at a time as they come; the caller closes it."""
        return self._made(inline, 4)

    def _made(self, inline: bool, concurrency: int) -> Stabilize:
        made = Stabilize.embedded(
            self._url,
            concurrency=concurrency,
            create_tables=False,
            clock=self.clock,
            inline=inline,
            database_pool_size=8,
            lease=36000.0,
            heartbeat=6000.0,
            retry_delay=1.0,
            retry_delay_max=1.0,
            max_attempts=3,
            control_max_attempts=2,
        )
        made.registry.register("scripted", Scripted(self.bodies))
        made.register_builder(PlannedBuilder())
        return made

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self.theirs.dispose()
        self.server.close()

    @property
    def engines(self) -> list[Stabilize]:
        """All of them."""
        return list(self._engines.values())

    def turn_to(self, inline: bool) -> None:
        """Histories from here on are of the engine that does, or does not, continue in place."""
        self.engine = self._engines[inline]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Ids are the same each time, and complaints are heard."""
        # Not what tasks raise, which workers log: what handlers raise.
        log = logging.getLogger("stabilize_celery.delivery.dispatcher")
        level, propagate = log.level, log.propagate
        log.addHandler(self.complaints)
        log.setLevel(logging.DEBUG)
        log.propagate = False
        try:
            with patch.object(ids, "_numbers", iter(self._next_number, None)):
                yield
        finally:
            log.removeHandler(self.complaints)
            log.setLevel(level)
            log.propagate = propagate

    def _next_number(self) -> int:
        self._ids += 1
        return self._ids

    # ------------------------------------------------------------------ the state

    def clear(self) -> None:
        """An empty database."""
        # Few rows: quicker than TRUNCATE.
        with self.server.transaction(), self.server.pipeline():
            for name in reversed(_TABLES):
                self.server.execute(f"DELETE FROM {name}")
        self._ids = _IDS
        self._forget()

    def _forget(self) -> None:
        """Nothing has happened yet."""
        self.bodies.clear()
        self.recorder.published.clear()
        self.recorder.early.clear()
        self.complaints.told.clear()

    def dump(self) -> tuple[Any, ...]:
        """The state, to be put back."""
        row = self.server.execute(_DUMP).fetchone()
        assert row is not None
        return (*row, self.clock.now(), self._ids, Counter(self.bodies))

    def put_back(self, state: tuple[Any, ...]) -> None:
        """Everything is as it was."""
        *contents, now, self._ids, bodies = state
        self.clock._now = now
        self._forget()
        self.bodies.update(bodies)
        with self.server.transaction(), self.server.pipeline():
            for name in reversed(_TABLES):
                self.server.execute(f"DELETE FROM {name}")
            for name, content in zip(_TABLES, contents, strict=True):
                if content != "[]":
                    self.server.execute(
                        f"INSERT INTO {name} SELECT * FROM json_populate_recordset(NULL::{name}, %s)",
                        (content,),
                    )

    # ------------------------------------------------------------------ going on

    def waiting(self) -> list[dict[str, Any]]:
        """The messages that could be handled now, in an order that is the same in every history."""
        messages = tables.messages
        with self.theirs.connect() as connection:
            rows = connection.execute(
                select(
                    messages.c.id, messages.c.type, messages.c.label, messages.c.generation,
                    messages.c.workflow_id, messages.c.stage_id, messages.c.payload,
                ).where(messages.c.due_at <= self.clock.now(), messages.c.lease_owner.is_(None))
            ).all()  # fmt: skip
        found = [dict(row._mapping) for row in rows]
        return sorted(
            found,
            key=lambda row: (row["label"], row["type"], row["generation"], str(row["payload"]), row["id"]),
        )

    def process(self, row: Any) -> bool:
        """Handle one message and what it leaves to this process."""
        return self.engine.dispatcher.process(row["id"], row["type"])

    def drain(self) -> list[str]:
        """Handle everything that is left, one after the other; returns complaints."""
        for _ in range(_MOST_STEPS):
            rows = self.waiting()
            for row in rows:
                self.process(row)
            if rows:
                continue
            with self.theirs.connect() as connection:
                due = connection.execute(select(func.min(tables.messages.c.due_at))).scalar_one()
            if due is None or due <= self.clock.now():
                return []
            self.clock.advance_to(due)
        return ["nothing_goes_on_for_ever: it does"]

    def result(self, participants: list[Any]) -> Result:
        """Let what is left come to its end, and look at it."""
        problems = list(self.recorder.early)
        problems += self._unpublished()
        problems += self._over_granted()
        problems += self.drain()
        problems += [f"no_handler_fails: {told}" for told in self.complaints.told]
        with self.theirs.connect() as connection:
            heads = connection.execute(select(tables.workflows.c.id, tables.workflows.c.holds_slot)).all()
            signals = connection.execute(select(func.count()).select_from(tables.signals)).scalar_one()
        watch = _Watch(_Any(), _Any())
        evidence = Evidence(self.engine.store, watch, [row.id for row in heads])  # type: ignore[arg-type]
        for invariant in AT_REST:
            problems += [f"{invariant.__name__}: {told}" for told in invariant(evidence)]
        holds = {row.id: row.holds_slot for row in heads}
        outcome = (
            tuple(sorted(_workflow(each, holds[each.id]) for each in evidence.workflows)),
            signals,
            tuple(sorted(self.bodies.items())),
            tuple(_result(each) for each in participants),
        )
        return Result(outcome, tuple(problems))

    def _unpublished(self) -> list[str]:
        """A message that is due and was not sent waits for the relay, though nothing went wrong."""
        sent = {each.id for each in self.recorder.published} | self.known
        return [
            f"nothing_is_lost: {row['type']} of {row['label']} was never published"
            for row in self.waiting()
            if row["id"] not in sent
        ]

    def _over_granted(self) -> list[str]:
        """All executions of a configuration have the same limit here."""
        found = self.server.execute(
            "SELECT pipeline_config_id, count(*), max_concurrent FROM stabilize_workflows "
            "JOIN stabilize_slots USING (pipeline_config_id) WHERE holds_slot GROUP BY 1, 3"
        )
        return [
            f"slots_are_never_over_granted: {taken} executions of {config} hold a slot of {limit}"
            for config, taken, limit in found
            if limit is not None and taken > limit
        ]

    #: Messages that were there before the participants began.
    known: frozenset[str] = frozenset()


def _result(participant: Any) -> str:
    if participant.error is not None:
        if isinstance(participant.error, _MISTAKES):
            # The same in every order, it would be taken for right.
            raise participant.error
        return type(participant.error).__name__
    return str(participant.result) if isinstance(participant.result, str) else ""


def _workflow(workflow: Workflow, holds_slot: bool) -> tuple[Any, ...]:
    return (
        workflow.name,
        str(workflow.status),
        workflow.is_canceled,
        holds_slot,
        tuple(sorted(map(_stage, workflow.stages))),
    )


def _stage(stage: StageExecution) -> tuple[Any, ...]:
    return (
        stage.name,
        str(stage.status),
        stage.generation,
        stage.blocked,
        stage.open_upstreams,
        tuple((str(task.status), task.attempts) for task in stage.tasks),
        tuple(sorted(map(str, stage.outputs.items()))),
        tuple(sorted(key for key in stage.own_context if not key.startswith("_"))),
    )


Action = Callable[[World], Any]
