"""Drives random workflows on an embedded engine, message by message, and judges what came of them.

Messages are handled in an order the example chooses, controls are used between any two of them, and task bodies can
let others be handled before they return: what several workers do at the same time happens here one after the other,
and the same way again when hypothesis shrinks it.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sqlalchemy import delete, func, select

from stabilize_celery import (
    FakeClock,
    PermanentError,
    Stabilize,
    StabilizeError,
    StageExecution,
    Task,
    TaskExecution,
    TaskResult,
    TransientError,
    Workflow,
    WorkflowRun,
    current_run,
)
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.crash_points import ProcessDiedError
from stabilize_celery.dag.branches import recount
from stabilize_celery.models import ids
from stabilize_celery.persistence import tables
from stabilize_celery.tasks.outcome import Attempt
from tests.simulation.scripted import STAGE_TYPE, TASK_TYPE, PlannedBuilder

MAX_ATTEMPTS = 3
LEASE = 30.0
#: More messages than any example needs: beyond it something goes on for ever.
MOST_STEPS = 4000
CONFIG = "limited"
PHASES = ("before", "after", "on_failure")
#: Outcomes of which each status of a task may come.
CAUSES = {
    S.SUCCEEDED: {"ok", "yield", "lose"},
    S.TERMINAL: {
        "fail",
        "raise",
        "transient",
        "crash",
        "lose",
        "suspend_timeout",
        "jump",
        "running",
        "yield",
    },
    S.REDIRECT: {"jump"},
}
#: Outcomes after which the same task is executed again.
AGAIN = ("transient", "running", "suspend", "suspend_timeout", "lose", "crash")


@dataclass(frozen=True)
class Control:
    """Something done to a workflow from outside before the ``at``-th message is handled."""

    at: int
    verb: str
    workflow: int
    target: int
    flag: bool


@dataclass(frozen=True)
class Plan:
    """One example."""

    #: Per workflow its stages: ``{"ref", "requires", "scripts", "options", "children"}``.
    workflows: list[list[dict[str, Any]]]
    max_jumps: int = 2
    limit: int | None = None
    keep_waiting: bool = True
    inline: bool = True
    #: Whether results are recorded some time after the task bodies have returned.
    late: bool = False
    controls: list[Control] = field(default_factory=list)
    #: Which of the ready messages is handled next.
    order: list[int] = field(default_factory=list)


@lru_cache
def engine(inline: bool) -> Stabilize:
    """One engine for all examples: making tables and compiling statements takes longer than running a workflow."""
    made = Stabilize.embedded(
        "sqlite://",
        concurrency=1,
        clock=FakeClock(),
        inline=inline,
        max_attempts=MAX_ATTEMPTS,
        control_max_attempts=2,
        lease=LEASE,
        # Without jitter: the same example does the same each time.
        retry_delay=1.0,
        retry_delay_max=1.0,
    )
    made.register_builder(PlannedBuilder())
    return made


class Machine:
    """Runs a plan to its end."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.engine = engine(plan.inline)
        self.clock = self.engine.store.clock
        self.engine.registry.register(TASK_TYPE, Scripted(self))
        self.engine.dispatcher.worker.settle = self.settle_late
        self.runs: list[WorkflowRun] = []
        self.steps = 0
        self.depth = 0
        self.counts: Counter[tuple[Any, ...]] = Counter()
        self.executions: dict[tuple[str, int], list[str]] = defaultdict(list)
        self.hooks: Counter[tuple[str, str, int]] = Counter()
        self.last: tuple[list[str], int] | None = None
        self.leases_lost = False
        self.errors: list[str] = []
        self._listener = _Errors(self.errors)

    # ------------------------------------------------------------------ running

    def run(self) -> None:
        """Run the plan, then let everything that waits go on until it has ended."""
        with ids.numbered_ids():
            self._run()

    def _run(self) -> None:
        log = logging.getLogger("stabilize_celery")
        level = log.level
        log.addHandler(self._listener)
        log.setLevel(logging.DEBUG)
        log.propagate = False
        try:
            for number, stages in enumerate(self.plan.workflows):
                self.runs.append(self.engine.start(self._workflow(number, stages)))
            self._drain()
            self.check()
            self._release()
            self.check()
            self.check_ended()
        finally:
            log.removeHandler(self._listener)
            log.setLevel(level)
            log.propagate = True
            self._clear()

    def _clear(self) -> None:
        """The next example finds an empty database."""
        self.engine.publisher.ready.clear()
        with self.engine.store.database.begin() as connection:
            for table in reversed(tables.metadata.sorted_tables):
                connection.execute(delete(table))

    def _workflow(self, number: int, stages: list[dict[str, Any]]) -> Workflow:
        config = None
        if self.plan.limit is not None:
            config = {
                "id": CONFIG,
                "limitConcurrent": True,
                "maxConcurrentExecutions": self.plan.limit,
                "keepWaitingPipelines": self.plan.keep_waiting,
            }
        context = {"_max_jumps": self.plan.max_jumps, "number": number}
        made = [self._stage(stage) for stage in stages]
        return Workflow.create("property", f"w{number}", made, context=context, config=config)

    @staticmethod
    def _stage(plan: dict[str, Any]) -> StageExecution:
        stage = StageExecution.create(
            STAGE_TYPE, plan["ref"], plan["ref"], {**plan["options"], "plan": plan}, plan["requires"]
        )
        stage.tasks = [TaskExecution.create(f"t{n}", TASK_TYPE) for n in range(len(plan["scripts"]))]
        return stage

    def _drain(self) -> None:
        last = max([control.at for control in self.plan.controls], default=0)
        while self.step() or self._advance() or self.steps <= last:
            pass

    def _advance(self) -> bool:
        """Move the clock to the next message that waits for its time."""
        due = self.engine.store.next_due()
        if due is not None:
            self.clock.advance_to(due)
        return due is not None

    def step(self) -> bool:
        """Handle one message that is ready."""
        for control in self.plan.controls:
            if control.at == self.steps:
                self._do(control)
        self.steps += 1
        assert self.steps < MOST_STEPS, "it goes on for ever"
        ready = self.engine.publisher.ready
        if len(ready) > 1 and self.plan.order:
            ready.rotate(-self.plan.order[self.steps % len(self.plan.order)])
        try:
            handled = self.engine.processor.step()
        except ProcessDiedError:
            handled = True
        assert not self.errors, self.errors
        self._check_permits()
        return handled

    def _do(self, control: Control) -> None:
        run = self.runs[control.workflow % len(self.runs)]
        stages = run.workflow().stages
        stage = stages[control.target % len(stages)]
        ref = stage.name if stage.is_synthetic else stage.ref_id
        verbs = {
            "cancel": lambda: run.cancel(user="kim", reason="enough", force=control.flag),
            "pause": lambda: run.pause(user="kim"),
            "resume": lambda: run.resume(user="kim"),
            "cancel_stage": lambda: run.cancel_stage(ref, user="kim"),
            "skip_stage": lambda: run.skip_stage(ref, user="kim"),
            "restart_stage": lambda: run.restart_stage(ref, user="kim"),
            "signal": lambda: run.signal(ref, "go", {"n": 1}, persistent=control.flag),
            "duplicate": self._duplicate,
        }
        try:
            verbs[control.verb]()
        except StabilizeError:
            # It makes no sense just now, and was refused.
            return

    def _duplicate(self) -> None:
        ready = self.engine.publisher.ready
        ready.extend(list(ready))

    def settle_late(self, message_id: str, token: int, attempt: Attempt) -> bool:
        """Between a task body's return and the recording of its result others may go on too."""
        execution, self.last = self.last, None
        if self.plan.late:
            self.interleave(2)
        settle = type(self.engine.dispatcher)._settle
        accepted = settle(self.engine.dispatcher, message_id, token, attempt)
        if execution is not None and not accepted:
            outcomes, place = execution
            outcomes[place] = "lose"
        return accepted

    def interleave(self, most: int) -> None:
        """Within a task body: others go on."""
        if self.depth < 3:
            self.depth += 1
            for _ in range(most):
                self.step()
            self.depth -= 1

    def _release(self) -> None:
        """Resume what is paused and signal what waits, until everything has ended."""
        for _ in range(40):
            waiting = [run for run in self.runs if not run.ready()]
            if not waiting:
                return
            for run in waiting:
                workflow = run.workflow()
                if workflow.status is S.PAUSED:
                    run.resume(user="kim")
                for stage in workflow.stages:
                    if stage.status is S.SUSPENDED:
                        run.signal(stage.name if stage.is_synthetic else stage.ref_id, "go", {"n": 2})
            self._drain()

    # ------------------------------------------------------------------ judging

    def check(self) -> None:
        """No message is left, and every workflow has ended or waits for something that has a name."""
        with self.engine.store.database.begin() as connection:
            left = connection.execute(select(tables.messages)).all()
            dead = connection.execute(select(tables.dead_letters)).all()
        assert not left, [(row.type, row.label) for row in left]
        assert not dead, [(row.type, row.error) for row in dead]
        for run in self.runs:
            workflow = run.workflow()
            self._check_waits(workflow)
            self._check_counters(workflow)
            self._check_history(run, workflow)
            self._check_children(workflow)
        self._check_executions()

    def _check_waits(self, workflow: Workflow) -> None:
        told = f"{workflow.status} {[(s.name, str(s.status)) for s in workflow.stages]}"
        active = [s for s in workflow.stages if s.status in (S.RUNNING, S.SUSPENDED, S.PAUSED)]
        if workflow.status.is_complete:
            assert workflow.end_time is not None
            assert not active, f"left behind: {told}"
            return
        assert workflow.status in (S.RUNNING, S.PAUSED, S.BUFFERED), told
        if workflow.status is S.BUFFERED:
            assert self._holders() >= (self.plan.limit or 0), f"a slot is free: {told}"
        for stage in active:
            if stage.status is S.SUSPENDED:
                assert [t for t in stage.tasks if t.status is S.SUSPENDED], told
            elif stage.status is S.PAUSED:
                assert workflow.status in (S.PAUSED, S.BUFFERED), f"nothing resumes it: {told}"
            else:
                assert any(
                    c.status in (S.RUNNING, S.SUSPENDED, S.PAUSED) for c in stage.synthetic_stages()
                ), f"nothing drives {stage.name}: {told}"
        if workflow.status is S.RUNNING:
            assert any(s.status is S.SUSPENDED for s in active), f"nothing drives it: {told}"

    def _check_counters(self, workflow: Workflow) -> None:
        top = workflow.top_level_stages()
        if workflow.status.is_complete or workflow.start_time is None or any(s.ends_workflow for s in top):
            # Nothing counts any more: it ends as soon as it may.
            return
        count = recount(top)
        if workflow.status is S.RUNNING:
            assert workflow.live_branches == count.live
            assert not count.ready, "a stage that is ready was not started"
        for stage in top:
            if stage.id in count.arrivals and not stage.released:
                counted = (stage.open_upstreams, stage.blocked)
                assert counted == count.arrivals[stage.id], (stage.ref_id, counted, count.arrivals[stage.id])

    def _check_history(self, run: WorkflowRun, workflow: Workflow) -> None:
        """Every status follows from the one before, and the last one is the stored one."""
        known: dict[tuple[str, str | None, int], S] = {}
        starts: Counter[tuple[str, int]] = Counter()
        for event in run.history():
            if event["to_status"] is None:
                continue
            kind, generation = event["event"], event["generation"]
            if kind in ("workflow", "revive"):
                subject = (workflow.id, None, 0)
            elif kind == "task":
                subject = (event["stage_id"], event["task_id"], generation)
            elif kind == "reset":
                subject = (event["stage_id"], None, 0)
                before = known.get(subject, S.NOT_STARTED)
                assert event["from_status"] is before, event
                known[subject] = S.NOT_STARTED
                continue
            else:
                subject = (event["stage_id"], None, 0)
                if event["to_status"] is S.RUNNING and event["from_status"] is S.NOT_STARTED:
                    starts[event["stage_id"], generation] += 1
            assert event["from_status"] is known.get(subject, S.NOT_STARTED), (event, known.get(subject))
            known[subject] = event["to_status"]
            assert event["worker"], event
            assert event["at"], event
        assert known.get((workflow.id, None, 0), S.NOT_STARTED) is workflow.status
        for stage in workflow.stages:
            assert known.get((stage.id, None, 0), S.NOT_STARTED) is stage.status, stage.name
            for task in stage.tasks:
                assert known.get((stage.id, task.id, stage.generation), S.NOT_STARTED) is task.status
        assert all(number == 1 for number in starts.values()), f"started twice: {starts}"

    def _check_children(self, workflow: Workflow) -> None:
        for stage in workflow.stages:
            by_phase = Counter(child.phase.value for child in stage.synthetic_stages() if child.phase)
            planned = {phase: number for phase, number in stage.planned.items() if number}
            assert dict(by_phase) == planned, f"{stage.name}: {dict(by_phase)} instead of {planned}"

    def _check_executions(self) -> None:
        for key, outcomes in self.executions.items():
            final = [outcome for outcome in outcomes if outcome not in AGAIN]
            assert len(final) <= 1, f"task {key} was run again after its end: {outcomes}"
            counted = sum(outcome in ("transient", "lose", "crash") for outcome in outcomes)
            assert counted <= MAX_ATTEMPTS, f"task {key} was run too often: {outcomes}"

    def check_ended(self) -> None:
        """Everything has ended, and was cleaned up after."""
        for run in self.runs:
            workflow = run.workflow()
            assert workflow.status.is_complete, (
                f"{workflow.status} {[(s.name, str(s.status)) for s in workflow.stages]}"
            )
            for event in run.history():
                self._check_hooks(event)
                self._check_cause(event)
        assert self._holders() == 0
        for (hook, _task, _generation), number in self.hooks.items():
            # Only a worker that was lost in the middle of it has it called again.
            assert hook != "on_cancel" or number == 1 or self.leases_lost, "on_cancel was called twice"

    def _check_cause(self, event: dict[str, Any]) -> None:
        """What a task came to was caused by an execution of the same pass."""
        causes = CAUSES.get(event["to_status"])
        too_late = "exceeded" in (event["reason"] or "")
        if event["event"] == "task" and event["from_status"] is S.RUNNING and causes and not too_late:
            outcomes = self.executions[event["task_id"], event["generation"]]
            kinds = {outcome.partition(":")[0] for outcome in outcomes}
            assert kinds & causes, f"{event['to_status']} without a cause: {outcomes}"

    def _check_hooks(self, event: dict[str, Any]) -> None:
        ended = event["event"] == "task" and event["to_status"].is_complete
        if ended and event["from_status"] is not S.NOT_STARTED and event["to_status"] is not S.REDIRECT:
            key = (event["task_id"], event["generation"])
            assert self.hooks["on_cleanup", *key] >= 1, f"on_cleanup was not called: {event}"
            interrupted = event["from_status"] in (S.RUNNING, S.SUSPENDED, S.PAUSED)
            if event["to_status"] is S.CANCELED and interrupted and self.executions[key][-1:] != ["canceled"]:
                assert self.hooks["on_cancel", *key] >= 1, f"on_cancel was not called: {event}"

    def _holders(self) -> int:
        held = select(func.count()).select_from(tables.workflows).where(tables.workflows.c.holds_slot)
        with self.engine.store.database.begin() as connection:
            return int(connection.execute(held).scalar_one())

    def _check_permits(self) -> None:
        if self.plan.limit is None:
            return
        assert self._holders() <= self.plan.limit, "more slots were given out than there are"
        running = select(tables.workflows.c.id).where(
            tables.workflows.c.status == S.RUNNING, ~tables.workflows.c.holds_slot
        )
        with self.engine.store.database.begin() as connection:
            assert not connection.execute(running).all(), "one runs without a slot"


class _Errors(logging.Handler):
    """Collects what the engine says of messages it could not handle."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__(logging.DEBUG)
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.endswith("dispatch") and record.exc_info and record.exc_info[1] is not None:
            self._errors.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


class Scripted(Task):
    """Does what the stage's plan says: the n-th execution the n-th thing."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def execute(self, stage: StageExecution) -> TaskResult:
        run = current_run()
        assert run is not None
        task = next(n for n, task in enumerate(stage.tasks) if task.id == run.task_id)
        machine = self._machine
        key = (stage.execution.context["number"], stage.name, task)
        script = stage.own_context["plan"]["scripts"][task]
        number = machine.counts[key]
        machine.counts[key] += 1
        step = script[number] if number < len(script) else "ok"
        outcomes = machine.executions[run.task_id, run.generation]
        outcomes.append(step)
        place, begun = len(outcomes) - 1, machine.clock.now()
        try:
            return self._take(step)
        finally:
            machine.last = outcomes, place
            if (machine.clock.now() - begun).total_seconds() > LEASE:
                outcomes[place] = "lose"

    def _take(self, step: str) -> TaskResult:
        machine = self._machine
        kind, _, argument = step.partition(":")
        if kind == "yield":
            machine.interleave(6)
        elif kind == "lose":
            # The lease runs out while the body runs: somebody else gets the task.
            machine.leases_lost = True
            machine.clock.advance(LEASE + 1)
            machine.interleave(3)
        elif kind == "crash":
            raise ProcessDiedError
        elif kind == "raise":
            raise PermanentError("broken")
        elif kind == "transient":
            raise TransientError("not now", context_update={"tried": True})
        results = {
            "fail": lambda: TaskResult.terminal("boom"),
            "running": TaskResult.running,
            "suspend": TaskResult.suspend,
            "suspend_timeout": lambda: TaskResult.suspend(timeout=50),
            "stopped": TaskResult.stopped,
            "canceled": TaskResult.canceled,
            "failed_continue": lambda: TaskResult.failed_continue("never mind"),
            "skipped": TaskResult.skipped,
            "jump": lambda: TaskResult.jump_to(argument, context={"jumped": True}),
        }
        return results.get(kind, lambda: TaskResult.success(outputs={"done": True}))()

    def on_cancel(self, stage: StageExecution) -> TaskResult | None:
        self._called("on_cancel")
        return None

    def on_cleanup(self, stage: StageExecution) -> None:
        self._called("on_cleanup")

    def _called(self, hook: str) -> None:
        run = current_run()
        assert run is not None
        self._machine.hooks[hook, run.task_id, run.generation] += 1


def walk(stages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every stage of a plan, nested ones included."""
    for stage in stages:
        yield stage
        for children in stage["children"].values():
            if isinstance(children, list):
                yield from walk(children)
