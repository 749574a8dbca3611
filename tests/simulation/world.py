"""The world of one history: an engine, a broker, a clock, and what goes wrong with them.

Everything happens in one thread.  A process that hangs is a call further up the stack: at a crash point the others go
on from within it.  A process that dies is an exception that leaves the engine there and then.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from stabilize_celery.crash_points import POINTS, reach, watching
from stabilize_celery.engine import Stabilize
from stabilize_celery.errors import WorkflowNotFoundError
from stabilize_celery.messages import MESSAGE_TYPES
from stabilize_celery.models.ids import numbered_ids
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence.rows import Outgoing, outgoing
from stabilize_celery.run import WorkflowRun
from tests.inspection import empty
from tests.simulation.broker import SimulatedBroker
from tests.simulation.faults import Fault, Faults
from tests.simulation.simulated import BEGIN, Killed, SimulatedClock, SimulatedKeeper
from tests.simulation.story import Story
from tests.simulation.telling import Teller
from tests.simulation.watch import Violation, Watch

#: Seconds that handling a message takes.
_STEP = 0.01
_RELAY_BATCH = 20
#: How many processes may hang at the same time.
_DEEPEST = 3


class World:
    """One history from its beginning to its end.

    Args:
        engine: an embedded engine made :func:`simulated`; it is emptied when a world begins.
        faults: what goes wrong.
        limited: whether slots are looked at after every transaction.
        most_steps: beyond that many something goes on for ever.
        told: whether a story is written.
        before_step: called before each delivery with its number.
    """

    def __init__(
        self,
        engine: Stabilize,
        faults: Sequence[Fault] = (),
        *,
        limited: bool = False,
        most_steps: int = 1500,
        told: bool = False,
        before_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        clock = engine.store.clock
        assert isinstance(clock, SimulatedClock)
        self.engine = engine
        self.clock = clock
        self.faults = Faults(faults)
        self.watch = Watch(engine.store, limited)
        self.story = Story(BEGIN) if told else None
        self._teller = Teller(engine.store, self.watch, self.story)
        self.runs: list[WorkflowRun] = []
        self.steps = 0
        self._most_steps = most_steps
        self._before_step = before_step
        self._relay_at = BEGIN
        self._dead: Fault | None = None
        self._current: Outgoing | None = None
        #: Whoever runs the task of this message hangs for longer than the one who hangs now: as good as dead.
        self._outlasted: str | None = None
        self.broker = SimulatedBroker(clock, self.faults, self.watch.published, self._struck)

    # ------------------------------------------------------------------ beginning and ending

    @contextmanager
    def exists(self) -> Iterator[World]:
        """Within the block the engine lives in this world; what it came to can be read until the next one begins."""
        engine, state = self.engine, random.getstate()
        keeper = engine.dispatcher.keeper
        assert isinstance(keeper, SimulatedKeeper)
        publishers = engine.publisher, engine.dispatcher.publisher
        vars(engine)["publisher"] = engine.dispatcher.publisher = self.broker
        self.clock.reset()
        keeper.watch = self.watch
        empty(engine.store)
        random.seed(0)
        try:
            with numbered_ids(), self.watch.watching(), watching(self._at), self._listening():
                yield self
        finally:
            vars(engine)["publisher"], engine.dispatcher.publisher = publishers
            keeper.watch = None
            random.setstate(state)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """The engine's own words are of no use here, but for those about handlers that failed."""
        package = logging.getLogger("stabilize_celery")
        dispatch = logging.getLogger("stabilize_celery.delivery.dispatcher")
        before = package.level, dispatch.level, dispatch.propagate
        listener = _Listener(self)
        package.setLevel(logging.CRITICAL)
        dispatch.setLevel(logging.DEBUG)
        dispatch.propagate = False
        dispatch.addHandler(listener)
        try:
            yield
        finally:
            dispatch.removeHandler(listener)
            package.setLevel(before[0])
            dispatch.setLevel(before[1])
            dispatch.propagate = before[2]

    def note(self, text: str) -> None:
        """Put a line into the story."""
        self._teller.note(text)

    @property
    def violations(self) -> list[Violation]:
        """What did not hold so far."""
        return self.watch.violations

    # ------------------------------------------------------------------ things that happen

    def start(self, workflow: Workflow) -> WorkflowRun:
        """A client starts a workflow, and does it again if it dies before the workflow exists."""
        while True:
            try:
                run = self.engine.start(workflow)
            except Killed:
                with suppress(WorkflowNotFoundError):
                    run = self.engine.get(workflow.id)
                    break
            else:
                break
        self.runs.append(run)
        return run

    def drain(self, at_least: int = 0) -> None:
        """Go on until nothing is left to do, and at least until that many messages were delivered."""
        while not self.violations and (self.step() or self._wait() or self.steps <= at_least):
            pass

    def step(self) -> bool:
        """Deliver a message, or let the relay send; returns whether there was something to do."""
        if self.steps >= self._most_steps:
            self.watch.violate("nothing_goes_on_for_ever", f"{self.steps} messages were delivered")
            return False
        self._before_step(self.steps)
        self.steps += 1
        self.clock.advance(_STEP)
        if self.clock.now() >= self._relay_at:
            self.relay()
        message, pause = self.broker.take()
        if message is None:
            return self._soon()
        if pause:
            self.clock.advance(pause)
        self._handle(message)
        return True

    def _soon(self) -> bool:
        ready = self.broker.next_ready()
        return ready is not None and ready <= self.clock.now()

    def _wait(self) -> bool:
        """Nothing can be done now: the clock moves to when something can."""
        moments = [self.broker.next_ready(), self.engine.store.next_due()]
        next_moment = min((moment for moment in moments if moment is not None), default=None)
        if next_moment is None:
            return False
        self.clock.advance_to(next_moment)
        self._relay_at = self.clock.now()
        return True

    def relay(self) -> int:
        """Send what is due, as the relay of a worker does."""
        settings = self.engine.settings
        self._relay_at = self.clock.now()

        def next_send(row: dict[str, Any]) -> float:
            return float(settings.resend_delay)

        rows = self.engine.store.take_due(_RELAY_BATCH, next_send)
        if len(rows) < _RELAY_BATCH:
            self._relay_at += timedelta(seconds=settings.relay_interval)
        if not rows:
            return 0
        self._teller.tell(
            lambda: f"the relay sends {', '.join(self._teller.named(outgoing(row)) for row in rows)}"
        )
        with suppress(Killed):
            reach("relay.taken")
            self.broker.publish([outgoing(row) for row in rows])
            reach("relay.sent")
        return len(rows)

    def _handle(self, message: Outgoing) -> None:
        self._teller.tell(lambda: f"{self._teller.named(message)} is delivered")
        outer = self._current, self._dead
        self._current, self._dead = message, None
        try:
            if not self.engine.dispatcher.process(message.id, message.type):
                self._teller.tell(lambda: "  there is nothing to do for it")
            reach("message.done")
        except Killed:
            # What is acknowledged late is delivered again, unless the broker has lost it meanwhile.
            if not MESSAGE_TYPES[message.type].runs_user_code and self._redelivers():
                self.broker.publish([message])
        finally:
            self._current, self._dead = outer
        self._teller.commits()

    def _redelivers(self) -> bool:
        return self._dead is not None and self._dead.kind == "killed"

    # ------------------------------------------------------------------ things that go wrong

    def _at(self, point: str) -> None:
        """A process has come to a crash point."""
        fault = self.faults.strike(point)
        if point == "task.returned" and self._current is not None and self._current.id == self._outlasted:
            fault = Fault(point, 0, "killed silently")
        if fault is None:
            return
        self._teller.commits()
        if fault.kind.startswith("killed"):
            self._teller.tell(lambda: f"! at {point} ({POINTS[point]}) the process dies")
            self._dead = fault
            raise Killed
        if self._teller.depth < _DEEPEST:
            self._teller.tell(lambda: f"! {fault}")
            self._hang(fault)
            self._teller.tell(lambda: f"! the process that hung at {point} goes on")

    def _hang(self, fault: Fault) -> None:
        """A process hangs; the others go on from within it."""
        outer = self._outlasted
        if fault.kind in ("frozen", "outlasted"):
            self.clock.advance(self.engine.settings.lease + 1)
        if fault.kind == "outlasted" and self._current is not None:
            self._outlasted = self._current.id
        elif fault.kind == "doubled" and self._current is not None:
            self.broker.publish([self._current])
        self._teller.depth += 1
        try:
            for _ in range(fault.number):
                if not self.violations:
                    self.step()
        finally:
            self._teller.depth -= 1
            self._outlasted = outer

    def _struck(self, fault: Fault, message: Outgoing) -> None:
        self._teller.tell(lambda: f"! {self._teller.named(message)}: {fault}")


class _Listener(logging.Handler):
    """Notes handlers that raise, and tells of results that are refused."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.DEBUG)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            what = f"{record.getMessage()}: {record.exc_info[1]!r}"
            self._world.watch.violate("no_handler_fails", what)
        elif "was refused" in record.getMessage():
            self._world.note("  a result is refused: its lease was lost")
