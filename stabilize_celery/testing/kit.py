"""The engine of a test: in its process, on a database in memory, with a clock that is moved instead of waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from importlib import import_module
from typing import Any

from stabilize_celery.celery_tasks.task import CeleryTask
from stabilize_celery.clock import MAX_SECONDS, FakeClock, check_seconds
from stabilize_celery.delivery.embedded import EmbeddedProcessor, LocalPublisher
from stabilize_celery.engine import Stabilize
from stabilize_celery.errors import ConfigurationError, TaskNotFoundError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.run import WorkflowRun
from stabilize_celery.settings import Settings
from stabilize_celery.testing.assertions import draw
from stabilize_celery.testing.stubs import (
    GIVEN,
    NOTHING,
    CeleryTasksInPlace,
    GivenTask,
    LostWorker,
    Stub,
    WorkerDiedError,
    workflow_around,
)

#: More messages than any test of a workflow needs.
MOST_MESSAGES = 20_000
#: Settings that are about the place an engine lives in.
_OF_PLACE = {"database_url", "database_pool_size", "database_prepare", "database_listen_url", "imports"}


class MortalProcessor(EmbeddedProcessor):
    """The processor of a test: it survives its workers, and notices what goes on for ever."""

    _handled = 0

    def step(self) -> bool:
        self._count()
        try:
            return super().step()
        except WorkerDiedError:
            return True

    def begin(self) -> None:
        """Count messages from here on."""
        self._handled = 0

    def drain(self, timeout: float | None = None, until: Callable[[], bool] | None = None) -> int:
        self.begin()
        return super().drain(timeout, until)

    def _start(self, found: tuple[str, str]) -> None:
        self._count()
        with suppress(WorkerDiedError):
            super()._start(found)

    def _count(self) -> None:
        self._handled += 1
        if self._handled > MOST_MESSAGES:
            raise AssertionError(
                f"{MOST_MESSAGES} messages were handled and there are more: does a task poll, retry or jump for ever?"
                " advance(seconds) handles only what is due until then"
            )


class StabilizeForTests(Stabilize):
    """What the fixture ``stabilize`` gives: an embedded engine, with what tests need besides.

    Messages are handled one after the other, in the thread of the test, and only when it says so: by :meth:`run`,
    :meth:`drain` or :meth:`advance`.
    """

    clock: FakeClock
    _knew_types = False

    @classmethod
    def like(
        cls,
        original: Stabilize | None = None,
        *,
        clock: FakeClock | None = None,
        url: str = "sqlite://",
        **options: Any,
    ) -> StabilizeForTests:
        """An engine with the task types, builders, named workflows and settings of another one.

        Args:
            original: the engine of the application; its database and its broker are not touched.  If it is on a Celery
                app, the modules are imported that its workers import, and Celery tasks are called in place.
            clock: the time; it stands still until the engine moves it.
            url: of the database, in memory by default.
            options: settings (without the prefix) that differ from those of the original.
        """
        engine = cls()
        engine.clock = engine._clock = clock or FakeClock()
        if original is not None and original.app is not None:
            original.app.loader.import_default_modules()
        engine._use(Settings.of(**{**settings_of(original), "database_url": url, **options}))
        engine.create_tables()
        if original is not None:
            engine.adopt(original)
        engine._knew_types = engine.registry.has_own_types
        app = None if original is None else original.app
        in_place = CeleryTasksInPlace(CeleryTask(app, in_place=True), engine._celery_stubs)
        engine.registry.register("celery", in_place, replace=True)
        engine.registry.register(GIVEN, GivenTask(), replace=True)
        return engine

    def __init__(self) -> None:
        super().__init__()
        #: Every workflow that was started, oldest first, those within others included.
        self.runs: list[WorkflowRun] = []
        self._celery_stubs: dict[str, Stub] = {}

    @cached_property
    def processor(self) -> MortalProcessor:
        """The loop of the engine."""
        assert isinstance(self.publisher, LocalPublisher)
        return MortalProcessor(self.dispatcher, self.publisher)

    def _start(self, workflows: list[Workflow], connection: Any) -> list[WorkflowRun]:
        runs = super()._start(workflows, connection)
        self.runs += [run for run in runs if run not in self.runs]
        return runs

    def _undrawn(self, report: str, most: int = 5) -> list[str]:
        """The trees of the workflows started last, but for those that the report of a test shows."""
        trees = [draw(run) for run in self.runs[-most:]]
        return [tree for tree in trees if any(line.strip() not in report for line in tree.splitlines())]

    # ------------------------------------------------------------------ time

    def drain(self) -> int:
        """Go on until nothing is left to do, moving the clock to whatever falls due next.

        Waits, retries and time limits of suspensions pass at once: a workflow that waits for a signal for three days at
        most has failed after this.  To do something before, use :meth:`advance`.

        Returns:
            How many messages were handled.

        Raises:
            AssertionError: there is no end to it.
        """
        return self.processor.drain()

    def advance(self, seconds: float | timedelta = 0) -> int:
        """Let so much time pass, handling everything when it falls due; 0 handles what is due now.

        Returns:
            How many messages were handled.

        Raises:
            AssertionError: there is no end to it.
            TypeError, ValueError: it is no timedelta and no number of seconds, or negative: time goes forward only.
        """
        span = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
        check_seconds(span, "the time to advance by", shortest=-MAX_SECONDS)
        if span < 0:
            raise ValueError(f"time goes forward only, not by {span:g} s")
        end = self.clock.now() + timedelta(seconds=span)
        handled = 0
        self.processor.begin()
        while True:
            while self.processor.step():
                handled += 1
            due = self.store.next_due()
            if due is None or due > end:
                self.clock.advance_to(end)
                return handled
            self.clock.advance_to(due)

    # ------------------------------------------------------------------ stand-ins

    def stub(
        self,
        task: Any,
        *,
        returns: Any = NOTHING,
        raises: BaseException | type[BaseException] | None = None,
        results: Iterable[Any] | None = None,
        new: bool = False,
    ) -> Stub:
        """Put a stand-in in the place of a task type or of a Celery task, for this engine.

        Args:
            task: the name of a task type, or a Celery task of your app (the object).
            returns: what each call gives: what a task may return, or a function that makes it from what the stage sees.
            raises: what each call raises instead; a ``TransientError`` is a retry.
            results: what the calls give or raise, one after the other; a call too many fails.
            new: the type is not registered here.

        Returns:
            The stand-in, which remembers its calls.

        Raises:
            TaskNotFoundError: no such type is known, though others are.
            ConfigurationError: more than one of returns, raises and results.
        """
        if not isinstance(task, str):
            stub = Stub(str(task.name), returns, raises, results)
            self._celery_stubs[stub.name] = stub
            return stub
        name = task
        if self.registry.knows(task):
            name = self.registry.name_of(task)
        elif self._knew_types and not new:
            raise TaskNotFoundError(
                f"no task type {task!r} is registered{self.registry.suggest(task)}"
                f" (if its code is elsewhere, write stub({task!r}, ..., new=True))"
            )
        stub = Stub(task, returns, raises, results)
        self.registry.register(name, stub, replace=True)
        return stub

    def lose_worker(self, task: str, *, before: bool = False, times: int = 1) -> LostWorker:
        """Let the next worker die that runs a task of this type: its result is lost, and its lease ends after a while.

        Args:
            task: the task type.
            before: die before the task's own code has run, not after it.
            times: so many workers, one after the other.

        Returns:
            What tells how many have died.

        Raises:
            TaskNotFoundError: no such type is registered.
        """
        return LostWorker(self.registry, self.registry.name_of(task), before=before, times=times)

    # ------------------------------------------------------------------ parts of a workflow

    def run_stage(
        self,
        stage: StageExecution | str,
        context: Mapping[str, Any] | None = None,
        *,
        upstream: Mapping[str, Mapping[str, Any]] | None = None,
        workflow_context: Mapping[str, Any] | None = None,
        drain: bool = True,
    ) -> WorkflowRun:
        """Run one stage alone, as if the stages before it had put out what the test says.

        Args:
            stage: a stage of a workflow that was not started, which is copied; or the name of a task type.
            context: added to the stage's own context.
            upstream: the outputs of stages before it, by ref_id.  Those it requires come directly before it (with no
                outputs if they are not named), others before those.
            workflow_context: the context of the workflow.
            drain: go on until nothing is left to do; otherwise the stage is only started.

        Returns:
            The run of a workflow that has the stage and stand-ins for those before it.
        """
        run = self.start(workflow_around(stage, context, upstream or {}, workflow_context))
        if drain:
            self.drain()
        return run


# ---------------------------------------------------------------------- the user's own engine


def settings_of(stabilize: Stabilize | None) -> dict[str, Any]:
    """The settings of an engine that make sense elsewhere too; reading them imports what ``stabilize_imports`` names.

    Raises:
        ConfigurationError: its app is configured wrongly.
    """
    if stabilize is None or (stabilize.app is None and stabilize._settings is None):
        return {}
    return stabilize.settings.model_dump(exclude=_OF_PLACE)


def find_engine(source: Any) -> Stabilize | None:
    """The engine that is meant.

    Args:
        source: an engine, a Celery app that has one, ``None`` or an empty text for none at all, or where to find it:
            ``"shop"`` (the engine in a module) or ``"shop:app"`` (an app or an engine by its name there).

    Raises:
        ConfigurationError: there is none.
    """
    if source is None or source == "" or isinstance(source, Stabilize):
        return source or None
    if isinstance(source, str):
        return _engine_at(source)
    from celery import Celery

    if isinstance(source, Celery):
        from stabilize_celery.engine import engine_of

        return engine_of(source)
    raise ConfigurationError(
        f"stabilize_app must be a Celery app, a Stabilize, or text such as 'shop:app', not {source!r}"
    )


def _engine_at(place: str) -> Stabilize | None:
    name, _, attribute = place.partition(":")
    module = import_module(name)
    if attribute:
        if not hasattr(module, attribute):
            raise ConfigurationError(f"stabilize_app is {place!r}, but module {name} has no {attribute!r}")
        found = getattr(module, attribute)
        if isinstance(found, str) or found is None:
            raise ConfigurationError(f"stabilize_app is {place!r}, which is {found!r} and no app")
        return find_engine(found)
    engines = {id(value): value for value in vars(module).values() if isinstance(value, Stabilize)}
    if len(engines) != 1:
        raise ConfigurationError(
            f"stabilize_app is {place!r}, a module with {len(engines)} Stabilize objects;"
            f" name the one that is meant, as in {name}:stabilize"
        )
    return next(iter(engines.values()))
