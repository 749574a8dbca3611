"""What is simulated: random workflows, or those of a user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from stabilize_celery.engine import Stabilize
from stabilize_celery.errors import StabilizeError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.run import WorkflowRun
from tests.simulation.generate import MAX_ATTEMPTS
from tests.simulation.invariants import Evidence, check_at_rest
from tests.simulation.plan import Control, Plan
from tests.simulation.scripted import (
    NESTED,
    TASK_TYPE,
    PlannedBuilder,
    ScriptedTask,
    nested_workflow,
    workflow_of,
)
from tests.simulation.simulated import SimulatedClock, SimulatedKeeper, simulated
from tests.simulation.story import Story
from tests.simulation.watch import Violation
from tests.simulation.world import World

#: Verbs that are meant for some stages alone.
_CHOSEN: dict[str, Callable[[StageExecution], bool]] = {
    "restart_failed": lambda stage: stage.status is S.TERMINAL,
    "restart_ended": lambda stage: stage.status.is_complete,
}
_MOST_WAITS = 40
_MOST_RUNS = 1000


class Scenario(Protocol):
    """A kind of history."""

    def play(self, plan: Plan, *, told: bool = False) -> Played:
        """Play one history."""


class Played:
    """One history that was played."""

    def __init__(self, violations: list[Violation], story: Story | None, steps: int = 0) -> None:
        self.violations = violations
        self.story = story
        self.steps = steps

    @property
    def broken(self) -> str | None:
        """The invariant that was broken first; ``None`` if all held."""
        return self.violations[0].invariant if self.violations else None


@lru_cache
def engine_for(inline: bool) -> Stabilize:
    """One engine for many histories: making tables and compiling statements takes longer than running a workflow."""
    engine = Stabilize.embedded(
        "sqlite://",
        concurrency=1,
        clock=SimulatedClock(),
        inline=inline,
        max_attempts=MAX_ATTEMPTS,
        control_max_attempts=2,
        lease=30.0,
    )
    engine.register_builder(PlannedBuilder())
    engine.register_workflow(NESTED, nested_workflow)
    return simulated(engine)


class RandomWorkflows:
    """Workflows, controls and faults as a plan says."""

    def play(self, plan: Plan, *, told: bool = False) -> Played:
        engine = engine_for(plan.inline)
        controls = _Controls(plan.controls)
        world = World(
            engine,
            plan.faults,
            limited=plan.limit is not None,
            told=told,
            before_step=lambda step: controls.at(step, world),
        )
        keeper = engine.dispatcher.keeper
        assert isinstance(keeper, SimulatedKeeper)
        engine.registry.register(TASK_TYPE, ScriptedTask(keeper.expire), replace=True)
        with world.exists():
            for number, stages in enumerate(plan.workflows):
                if stages:
                    world.start(workflow_of(plan, number))
            world.drain(controls.last)
            check(world)
            _release(world)
            if not world.violations:
                check_ended(world)
        return Played(world.violations, world.story, world.steps)


class _Controls:
    """What people do, at the steps they do it."""

    def __init__(self, controls: tuple[Control, ...]) -> None:
        self._controls = controls
        self.last = max((control.at for control in controls), default=0)

    def at(self, step: int, world: World) -> None:
        """Do what is to be done before a step."""
        for control in self._controls:
            if control.at == step and world.runs:
                self._do(control, world)

    def _do(self, control: Control, world: World) -> None:
        runs = all_runs(world)
        run = runs[control.workflow % len(runs)]
        workflow = run.workflow()
        stages = [
            stage for stage in workflow.stages if _CHOSEN.get(control.verb, bool)(stage)
        ] or workflow.stages
        stage = stages[control.target % len(stages)]
        ref = stage.name if stage.is_synthetic else stage.ref_id
        subject = workflow.name
        if control.verb not in ("cancel", "pause", "resume"):
            subject += f" / {ref}"
        verbs = {
            "cancel": lambda: run.cancel(user="kim", reason="enough", force=control.flag),
            "pause": lambda: run.pause(user="kim"),
            "resume": lambda: run.resume(user="kim"),
            "cancel_stage": lambda: run.cancel_stage(ref, user="kim"),
            "skip_stage": lambda: run.skip_stage(ref, user="kim"),
            "restart_stage": lambda: run.restart_stage(ref, user="kim"),
            "restart_failed": lambda: run.restart_stage(ref, user="kim"),
            "restart_ended": lambda: run.restart_stage(ref, user="kim"),
            "signal": lambda: run.signal(ref, "go", {"n": 1}, persistent=control.flag),
        }
        try:
            verbs[control.verb]()
            world.note(f"a person: {control.verb} {subject}")
        except StabilizeError:
            # It makes no sense just now, and was refused.
            world.note(f"a person: {control.verb} {subject} is refused")


def check(world: World) -> None:
    """Look at everything that must hold where nothing is left to do."""
    if not world.violations:
        check_at_rest(Evidence(world.engine.store, world.watch, [run.id for run in all_runs(world)]))


def all_runs(world: World) -> list[WorkflowRun]:
    """What was started, and the workflows within; the oldest first."""
    return list(reversed(world.engine.find(limit=_MOST_RUNS)))


def _release(world: World) -> None:
    """Resume what is paused and signal what waits, until everything has ended."""
    for _ in range(_MOST_WAITS):
        waiting = [run for run in all_runs(world) if not run.ready()]
        if not waiting or world.violations:
            return
        for run in waiting:
            _let_go(run, world)
        world.drain()
        check(world)


def _let_go(run: WorkflowRun, world: World) -> None:
    workflow = run.workflow()
    if workflow.status is S.PAUSED:
        world.note(f"a person: resume {workflow.name}")
        run.resume(user="kim")
    for stage in workflow.stages:
        if stage.status is S.SUSPENDED:
            world.note(f"a person: signal {workflow.name} / {stage.name}")
            run.signal(stage.name if stage.is_synthetic else stage.ref_id, "go", {"n": 2})


def check_ended(world: World) -> None:
    """What was resumed and signalled has ended."""
    statuses = Counter(run.status.name for run in all_runs(world) if not run.ready())
    if statuses:
        world.watch.violate(
            "every_workflow_ends_or_waits_for_a_named_reason",
            f"resumed and signalled {_MOST_WAITS} times, and still {dict(statuses)}",
        )
