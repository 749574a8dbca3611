"""A user's own workflow under simulated faults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from random import Random

from stabilize_celery.engine import Stabilize
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.run import WorkflowRun
from stabilize_celery.stages.builder import StageDefinitionBuilder
from stabilize_celery.tasks.registry import TaskSource
from stabilize_celery.testing.origin import settings_of
from stabilize_celery.testing.simulation.faults import random_faults
from stabilize_celery.testing.simulation.plan import Plan
from stabilize_celery.testing.simulation.run import Failure, shortened
from stabilize_celery.testing.simulation.scenario import Played, check
from stabilize_celery.testing.simulation.simulated import SimulatedClock, simulated
from stabilize_celery.testing.simulation.world import World

CHECK = "check"
_MOST_STEPS = 20_000
_MOST_WAITS = 100

Factory = Callable[[], Workflow]


class SimulationFailedError(AssertionError):
    """A workflow did not hold under simulated faults.

    Attributes:
        failure: what was broken, with the story.
    """

    def __init__(self, failure: Failure, again: str) -> None:
        super().__init__(f"{failure}\nto see it again: {again}")
        self.failure = failure


class Simulation:
    """What the fixture ``stabilize_simulate`` gives to a test: call it with a function that makes the workflow.

    Args:
        seed: of the faults; ``None`` for none at all.
        again: how a person plays the seed again.
    """

    def __init__(self, seed: int | None = None, again: str = "") -> None:
        self.seed = seed
        self._again = again
        self._engines: list[Stabilize] = []
        #: What happened, for reports.
        self.stories: list[str] = []

    def __call__(
        self,
        factory: Factory,
        stabilize: Stabilize | None = None,
        *,
        tasks: Mapping[str, TaskSource] | None = None,
        builders: Iterable[StageDefinitionBuilder] = (),
        when_waiting: Callable[[WorkflowRun], object] | None = None,
        check: Callable[[WorkflowRun], object] | None = None,
    ) -> WorkflowRun:
        """Run a workflow to its end, or until it waits for something with a name.

        The code of its tasks runs for real, in this process, and under faults it runs **more than once**: a simulated
        worker dies after it has returned and before that is stored, or loses its lease in between and another runs it
        again.  So whatever a task does elsewhere must be safe to do again; ``current_run().idempotency_key`` tells
        the same attempt from another.  To find a short story a failing history is played many times, and the factory
        is called for each: state that a test keeps outside the workflow is made anew in it.

        Args:
            factory: makes a new workflow each time.
            stabilize: whose task types, builders, named workflows and settings are used.
            tasks: more task types, or others in place of those, by name.
            builders: more stage definition builders.
            when_waiting: called when nothing is left to do and the workflow has not ended, to signal or resume it.
            check: called with the run where nothing is left to do; what it raises fails the simulation, and the story
                is made as short as possible for it.

        Returns:
            The run, to be looked at.

        Raises:
            SimulationFailedError: something did not hold; with the story.
        """
        __tracebackhide__ = True
        engine = self._engine(stabilize, tasks or {}, builders)
        scenario = UserWorkflow(engine, factory, when_waiting, check)
        plan = Plan() if self.seed is None else user_plan(self.seed)
        played = scenario.play(plan)
        self.stories.append(str(played.story))
        if played.violations and self.seed is None:
            raise SimulationFailedError(shortened(scenario, 0, plan, played), "run this test")
        if played.violations:
            assert self.seed is not None
            failure = shortened(scenario, self.seed, plan, played)
            self.stories[-1] = failure.story
            raise SimulationFailedError(failure, self._again) from scenario.raised
        assert scenario.run is not None
        return scenario.run

    def _engine(
        self,
        stabilize: Stabilize | None,
        tasks: Mapping[str, TaskSource],
        builders: Iterable[StageDefinitionBuilder],
    ) -> Stabilize:
        engine = Stabilize.embedded(
            "sqlite://", concurrency=1, clock=SimulatedClock(), **settings_of(stabilize)
        )
        self._engines.append(engine)
        if stabilize is not None:
            engine.adopt(stabilize)
        for name, source in tasks.items():
            engine.registry.register(name, source)
        for builder in builders:
            engine.register_builder(builder)
        return simulated(engine)

    def close(self) -> None:
        """Close the engines that were made."""
        for engine in self._engines:
            engine.close()


def user_plan(seed: int) -> Plan:
    """The faults of a seed, for whatever workflow."""
    random = Random(f"faults {seed}")
    return Plan(faults=tuple(random_faults(random, most=12, length=random.choice((2, 4, 12, 30)))))


class UserWorkflow:
    """Plays a user's workflow."""

    def __init__(
        self,
        engine: Stabilize,
        factory: Factory,
        when_waiting: Callable[[WorkflowRun], object] | None,
        check: Callable[[WorkflowRun], object] | None,
    ) -> None:
        self._engine = engine
        self._factory = factory
        self._when_waiting = when_waiting
        self._check = check
        #: The run of the history that was played last, and what the user's check raised there.
        self.run: WorkflowRun | None = None
        self.raised: BaseException | None = None

    def play(self, plan: Plan, *, told: bool = True) -> Played:
        world = World(self._engine, plan.faults, limited=True, most_steps=_MOST_STEPS, told=True)
        self.raised = None
        with world.exists():
            workflow = self._factory()
            self.run = world.start(workflow)
            world.drain()
            check(world)
            self._go_on(world, self.run)
            self._judge(world, self.run)
        return Played(world.violations, world.story, world.steps)

    def _go_on(self, world: World, run: WorkflowRun) -> None:
        for _ in range(_MOST_WAITS):
            if self._when_waiting is None or world.violations or run.ready():
                return
            world.note(f"{run.workflow().name} waits")
            self._when_waiting(run)
            world.drain()
            check(world)

    def _judge(self, world: World, run: WorkflowRun) -> None:
        if self._check is None or world.violations:
            return
        try:
            self._check(run)
        except Exception as error:
            self.raised = error
            world.watch.violate(CHECK, f"{type(error).__name__}: {error}")
