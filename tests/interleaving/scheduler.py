"""Threads that stop before every statement, and a scheduler that says which of them runs its next one.

One participant runs at a time.  One that waits for a lock is seen in ``pg_blocking_pids`` and is passed by until
the lock is free; a circle of waiting ones is left to PostgreSQL, which ends one of their transactions.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, NoReturn, Protocol
from unittest.mock import patch

import psycopg
from psycopg.errors import DeadlockDetected
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, event

from stabilize_celery.persistence import pipeline
from tests.watch import watching

#: A participant that has not come to its next stop after so many seconds will not.
PATIENCE = 60.0
_GLANCE = 0.003
_WAITING = "SELECT pid, pg_blocking_pids(pid) FROM unnest(%s::int[]) AS pid"
#: More statements than any history has: beyond it something goes on for ever.
_MOST_STEPS = 4000

_this_thread = threading.local()
_reraise = pipeline.reraise


class StuckError(AssertionError):
    """A participant neither runs nor waits for another one."""


@dataclass
class Step:
    """One entry of a schedule: what a participant was let do."""

    participant: str
    statement: str
    #: It had to wait for others first.
    waited: bool = False


class Participant:
    """One of those that run at the same time: any number of transactions after each other, in a thread."""

    def __init__(self, number: int, name: str, action: Callable[[], Any]) -> None:
        self.number = number
        self.name = name
        self.result: Any = None
        self.error: BaseException | None = None
        #: Of the scheduler alone: running, ready, blocked, done.
        self.state = "running"
        #: What it does next.
        self.statement = "BEGIN"
        #: The session it uses, and whether its next statement is a transaction of its own.
        self.backend = 0
        self.alone = self.ran_alone = False
        self.idle = True
        self.step: Step | None = None
        self.connections: dict[int, Any] = {}
        #: Ids and types of the messages it has published.
        self.published: list[tuple[str, str]] = []
        #: How often the server has given up a transaction of it to end a deadlock.
        self.deadlocks = 0
        self._committing = False
        self._go = threading.Semaphore(0)
        self._action = action
        self._arrivals: _Arrivals | None = None
        self._thread = threading.Thread(target=self._run, name=f"participant {name}", daemon=True)

    def start(self, arrivals: _Arrivals) -> None:
        self._arrivals = arrivals
        self._thread.start()

    def resume(self) -> None:
        self.state = "running"
        self._go.release()

    def join(self) -> None:
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        assert self._arrivals is not None
        _this_thread.participant = self
        self._stop("BEGIN")
        try:
            self.result = self._action()
        except BaseException as error:
            self.error = error
        self.idle = True
        self._arrivals.put((self, "done"))

    def _stop(self, statement: str) -> None:
        assert self._arrivals is not None
        self.statement = statement
        self._arrivals.put((self, "ready"))
        self._go.acquire()

    # ------------------------------------------------------------------ called in its own thread

    def about_to(self, connection: Connection, statement: str) -> None:
        """It is about to run a statement."""
        pooled: Any = connection.connection
        driver = pooled.driver_connection
        self.connections = {key: each for key, each in self.connections.items() if _is_open(each)}
        self.idle = not self.connections and not _is_open(driver)
        self.connections[id(driver)] = driver
        self.backend = driver.info.backend_pid
        if statement == "COMMIT":
            if self._committing or not _is_open(driver):
                return
            self._committing = True
        else:
            self._committing = False
        wire = pooled.info.get("stabilize_wire")
        self.alone = driver.autocommit or (wire is not None and not wire.begins)
        self._stop(statement)

    @property
    def in_transaction(self) -> bool:
        """Whether anything it has written is not committed yet."""
        return any(map(_is_open, self.connections.values()))


def _is_open(driver: Any) -> bool:
    return not driver.closed and driver.info.transaction_status != TransactionStatus.IDLE


def this_participant() -> Participant | None:
    """The participant whose thread this is."""
    return getattr(_this_thread, "participant", None)


#: Participants that have come to their next stop, ``ready``, or to their end, ``done``.
_Arrivals = queue.SimpleQueue[tuple[Participant, str]]


class Policy(Protocol):
    """Says who goes on."""

    def choose(self, ready: Sequence[Participant], steps: int) -> Participant:
        """One of those that can, given how many steps were made."""


class Anyone:
    """Each with the same chance, at every statement."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, ready: Sequence[Participant], steps: int) -> Participant:
        return self._random.choice(ready)


class Priorities:
    """Whoever comes first in a random order runs on; at a few random moments the one that runs falls to its end.

    With ``d`` such moments every fault that takes ``d`` preemptions is met with a known chance (Burckhardt et al., "A
    Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", 2010).
    """

    def __init__(self, random: Random, participants: int, length: int, changes: int) -> None:
        self._order = list(range(participants))
        random.shuffle(self._order)
        self._changes = {random.randrange(1, max(2, length)) for _ in range(changes)}

    def choose(self, ready: Sequence[Participant], steps: int) -> Participant:
        first = min(ready, key=lambda each: self._order.index(each.number))
        if steps in self._changes and len(ready) > 1:
            self._order.remove(first.number)
            self._order.append(first.number)
            first = min(ready, key=lambda each: self._order.index(each.number))
        return first


class Preempted:
    """The first participant for some pipeline, then the second for some, then the first to its end."""

    def __init__(self, first: int, *lengths: int) -> None:
        self._turns = [(number, length) for length, number in zip(lengths, (first, 1 - first), strict=False)]
        self._rest = first if len(lengths) % 2 == 0 else 1 - first

    def choose(self, ready: Sequence[Participant], steps: int) -> Participant:
        while self._turns and self._turns[0][1] <= 0:
            self._turns.pop(0)
        wanted = self._turns[0][0] if self._turns else self._rest
        found = next((each for each in ready if each.number == wanted), None)
        if found is None:
            return ready[0]
        if self._turns:
            self._turns[0] = (wanted, self._turns[0][1] - 1)
        return found


class Serially:
    """One whole transaction after the other, in a given order of participants; what is left over at the end."""

    def __init__(self, order: Sequence[int]) -> None:
        self._order = list(order)
        self.done = 0

    def choose(self, ready: Sequence[Participant], steps: int) -> Participant:
        while self.done < len(self._order):
            wanted = self._order[self.done]
            found = next((each for each in ready if each.number == wanted), None)
            if found is not None:
                return found
            self.done += 1
        # Nobody is left in the middle of a transaction for another one.
        return next((each for each in ready if not each.idle), ready[0])


@dataclass
class Schedule:
    """What was done in which order."""

    steps: list[Step] = field(default_factory=list)
    #: The participants in the order in which their transactions were committed.
    commits: list[int] = field(default_factory=list)
    #: Participants of which a transaction was given up by the server to end a deadlock.
    deadlocks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{number:4} {step.participant:28} {step.statement}{'   (had to wait)' if step.waited else ''}"
            for number, step in enumerate(self.steps)
        ]
        return "\n".join(lines)


class Scheduler:
    """Runs participants to their end, one statement at a time.

    Args:
        server: a connection of its own, to look who waits.
        policy: says who goes on.
    """

    def __init__(self, server: psycopg.Connection[Any], policy: Policy) -> None:
        self._server = server
        self._policy = policy
        self._arrivals: _Arrivals = queue.SimpleQueue()
        self._participants: Sequence[Participant] = ()
        self.schedule = Schedule()

    def run(self, participants: Sequence[Participant]) -> Schedule:
        """Run them; what they raised is left with them.

        Raises:
            StuckError: one never came back.
        """
        self._participants = participants
        for each in participants:
            each.start(self._arrivals)
        self._settle(participants)
        while waiting := [each for each in participants if each.state != "done"]:
            ready = [each for each in waiting if each.state == "ready"]
            if not ready:
                for each in waiting:
                    each.state = "running"
                self._settle(waiting)
                continue
            if len(self.schedule.steps) > _MOST_STEPS:
                raise StuckError(f"it goes on for ever:\n{self.schedule}")
            self._step(self._policy.choose(ready, len(self.schedule.steps)), participants)
        for each in participants:
            each.join()
            self.schedule.deadlocks += [each.name] * each.deadlocks
        return self.schedule

    def _step(self, chosen: Participant, participants: Sequence[Participant]) -> None:
        chosen.step = Step(chosen.name, " ".join(chosen.statement.split())[:110])
        self.schedule.steps.append(chosen.step)
        if chosen.statement == "COMMIT":
            self._committed(chosen)
        chosen.ran_alone = chosen.alone
        chosen.resume()
        self._settle([chosen])
        if chosen.state != "blocked" and chosen.idle:
            # It may hold nothing any more: those that waited are looked at again.
            freed = [each for each in participants if each.state == "blocked"]
            for each in freed:
                each.state = "running"
            self._settle(freed)

    def _committed(self, participant: Participant) -> None:
        self.schedule.commits.append(participant.number)
        if isinstance(self._policy, Serially) and self._policy.done < len(self._policy._order):
            self._policy.done += 1

    def _settle(self, running: Sequence[Participant]) -> None:
        """Wait until each has come to its next stop, or waits for another one."""
        glances = 0
        while left := [each for each in running if each.state == "running"]:
            if not self._arrived(_GLANCE):
                glances += 1
                for each in self._blocked(left):
                    each.state = "blocked"
                    assert each.step is not None
                    each.step.waited = True
                if glances * _GLANCE > PATIENCE:
                    raise StuckError(f"{[each.name for each in left]} never came back:\n{self.schedule}")

    def _arrived(self, timeout: float) -> bool:
        try:
            arrived, state = self._arrivals.get(timeout=timeout)
        except queue.Empty:
            return False
        arrived.state = state
        if arrived.ran_alone:
            arrived.ran_alone = False
            self._committed(arrived)
        return True

    def _blocked(self, running: Sequence[Participant]) -> list[Participant]:
        """Those that wait for another participant, unless they wait in a circle."""
        pids = {each.backend for each in self._participants if each.backend and each.state != "done"}
        found = self._server.execute(_WAITING, (list(pids),)).fetchall()
        blockers = {pid: set(those) & pids for pid, those in found}
        for pid in blockers:
            reached = blockers[pid]
            while (more := reached.union(*(blockers[each] for each in reached))) != reached:
                reached = more
            if pid in reached:
                # A circle: one of them is about to be given up.
                return []
        return [each for each in running if blockers.get(each.backend)]


@contextmanager
def stopping(ours: Engine, theirs: Engine) -> Iterator[None]:
    """Within the block threads of participants stop before every statement and every commit.

    Args:
        ours: of the engine.
        theirs: of the user, whose transactions the engine joins.
    """

    def statement(connection: Connection, sql: str, _parameters: Any = None) -> None:
        participant = this_participant()
        if participant is not None:
            participant.about_to(connection, sql)

    def cold(connection: Connection, _cursor: Any, sql: str, *_: Any) -> None:
        statement(connection, sql)

    def commit(connection: Connection) -> None:
        statement(connection, "COMMIT")

    def failed(error: BaseException | None) -> None:
        participant = this_participant()
        if participant is not None and isinstance(error, DeadlockDetected):
            participant.deadlocks += 1

    def reraise(connection: Connection, error: BaseException, sql: str = "") -> NoReturn:
        failed(error)
        _reraise(connection, error, sql)

    def handle_error(context: Any) -> None:
        failed(context.original_exception)

    listeners = [
        (ours, "handle_error", handle_error),
        (ours, "commit", commit),
        (theirs, "commit", commit),
        (theirs, "before_cursor_execute", cold),
    ]
    with watching(ours, statement, one_by_one=True), patch.object(pipeline, "reraise", reraise):
        for listener in listeners:
            event.listen(*listener)
        try:
            yield
        finally:
            for listener in listeners:
                event.remove(*listener)
