"""Task types of a test: stand-ins that remember their calls, workers that die, outputs of stages that do not run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from stabilize_celery.canvas.call import CeleryCall
from stabilize_celery.celery_tasks.task import conclude
from stabilize_celery.crash_points import ProcessDiedError
from stabilize_celery.errors import ConfigurationError, PermanentError
from stabilize_celery.models.ids import new_id
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.tasks.interface import Task, as_result
from stabilize_celery.tasks.registry import TaskRegistry
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import current_run

#: An argument that was not given.
NOTHING: Any = object()
#: The task type that gives outputs in place of a stage.
GIVEN = "stabilize.testing.given"


@dataclass(frozen=True)
class StubCall:
    """One call of a stub.

    Attributes:
        stage: the stage's ref_id, or its name if it is synthetic.
        context: what the stage saw: its own context over the outputs before it.
        own_context: its own part of that.
        attempt: 1 for the first attempt.
        idempotency_key: the same for every attempt at this task.
        at: the engine's time.
        args, kwargs: of a stubbed Celery task, references resolved.
    """

    stage: str
    context: dict[str, Any]
    own_context: dict[str, Any]
    attempt: int
    idempotency_key: str
    at: datetime
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)


class Stub(Task):
    """Stands in for a task type or a Celery task; see :meth:`StabilizeForTests.stub`."""

    def __init__(
        self,
        name: str,
        returns: Any = NOTHING,
        raises: BaseException | type[BaseException] | None = None,
        results: Iterable[Any] | None = None,
    ) -> None:
        if sum((returns is not NOTHING, raises is not None, results is not None)) > 1:
            raise ConfigurationError(f"stub of {name}: give one of returns, raises and results")
        self.name = name
        #: Every call so far, oldest first.
        self.calls: list[StubCall] = []
        self._always = raises if raises is not None else None if returns is NOTHING else returns
        self._results = None if results is None else list(results)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Stub of {self.name}, called {_times(len(self.calls))}>"

    @property
    def last(self) -> StubCall:
        """The last call.

        Raises:
            AssertionError: it was not called.
        """
        __tracebackhide__ = True
        self.assert_called()
        return self.calls[-1]

    def assert_called(self, times: int | None = None) -> None:
        """Fail unless it was called, or called so many times.

        Raises:
            AssertionError: it was not.
        """
        __tracebackhide__ = True
        if times is None and not self.calls:
            raise AssertionError(f"stub of {self.name} was not called")
        if times is not None and len(self.calls) != times:
            lines = [f"  attempt {call.attempt} of stage {call.stage}" for call in self.calls]
            head = f"stub of {self.name} was called {_times(len(self.calls))}, not {_times(times)}"
            raise AssertionError("\n".join([head, *lines]))

    def execute(self, stage: StageExecution) -> TaskResult:
        """What the test wants."""
        return as_result(self._answer(*self._record(stage)), f"the stub of {self.name}")

    def call(self, stage: StageExecution, called: CeleryCall) -> TaskResult:
        """What the test wants of a Celery task."""
        record = self._record(stage, deepcopy(called.args), deepcopy(called.kwargs))
        try:
            value = self._answer(*record)
        except Exception as error:
            return conclude(stage, "FAILURE", error)
        return value if isinstance(value, TaskResult) else conclude(stage, "SUCCESS", value)

    def _record(self, stage: StageExecution, *arguments: Any) -> tuple[int, StubCall]:
        run = current_run()
        assert run is not None
        seen, own = deepcopy(dict(stage.context)), deepcopy(dict(stage.own_context))
        call = StubCall(stage.called, seen, own, run.attempt, run.idempotency_key, run.now(), *arguments)
        with self._lock:
            self.calls.append(call)
            return len(self.calls), call

    def _answer(self, number: int, call: StubCall) -> Any:
        value = self._always
        if self._results is not None:
            if number > len(self._results):
                raise PermanentError(
                    f"the stub of {self.name} was given {len(self._results)} results and called"
                    f" {_times(number)}, by stage {call.stage}"
                )
            value = self._results[number - 1]
        if isinstance(value, BaseException) or (isinstance(value, type) and issubclass(value, BaseException)):
            raise value
        if isinstance(value, TaskResult):
            return value
        if callable(value):
            make: Callable[[dict[str, Any]], Any] = value
            return make(call.context)
        return deepcopy(value)


class CeleryTasksInPlace(Task):
    """The task type ``celery`` in a test: Celery tasks are called here, or their stubs."""

    def __init__(self, real: Task, stubs: Mapping[str, Stub]) -> None:
        self._real = real
        self._stubs = stubs

    def execute(self, stage: StageExecution) -> TaskResult:
        stub = self._stubs.get(str(stage.own_context.get("task")))
        return self._real.execute(stage) if stub is None else stub.call(stage, CeleryCall.of(stage))


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


# ---------------------------------------------------------------------- workers that die


class WorkerDiedError(ProcessDiedError):
    """The process died."""


class LostWorker:
    """Lets workers die at a task type; see :meth:`StabilizeForTests.lose_worker`."""

    def __init__(self, registry: TaskRegistry, name: str, *, before: bool, times: int) -> None:
        self.name = name
        #: How often a worker has died of it so far.
        self.times = 0
        self._registry = registry
        self._before = before
        self._left = times
        self._real = registry.resolve(name)
        source = registry.source(name)
        assert source is not None
        self._source = source
        self._deadly: Task = copy(self._real)
        self._deadly.execute = self._execute  # type: ignore[method-assign]
        registry.register(name, self._deadly, replace=True)

    def __repr__(self) -> str:
        return f"<LostWorker at {self.name}, {self.times} of {self.times + self._left}>"

    def _execute(self, stage: StageExecution) -> TaskResult:
        if not self._before:
            self._real.execute(stage)
        self._left -= 1
        self.times += 1
        if not self._left and self._registry.source(self.name) is self._deadly:
            self._registry.register(self.name, self._source, replace=True)
        raise WorkerDiedError


# ---------------------------------------------------------------------- one stage by itself


class GivenTask(Task):
    """Puts out what the test gave it."""

    def execute(self, stage: StageExecution) -> TaskResult:
        return TaskResult.success(outputs=stage.own_context["outputs"])


def workflow_around(
    stage: StageExecution | str,
    context: Mapping[str, Any] | None,
    upstream: Mapping[str, Mapping[str, Any]],
    workflow_context: Mapping[str, Any] | None,
) -> Workflow:
    """A workflow of one stage and stand-ins for those before it; see :meth:`StabilizeForTests.run_stage`."""
    single = StageExecution.single(stage, stage) if isinstance(stage, str) else _copy_of(stage)
    single.context.update(deepcopy(dict(context or {})))
    directly = sorted(single.requisite_stage_ref_ids or upstream)
    earlier = sorted(upstream.keys() - set(directly))
    single.requisite_stage_ref_ids = set(directly)

    def given(ref_id: str, requires: list[str]) -> StageExecution:
        return StageExecution.single(ref_id, GIVEN, {"outputs": dict(upstream.get(ref_id, {}))}, requires)

    before = [given(ref, []) for ref in earlier] + [given(ref, earlier) for ref in directly]
    return Workflow.create("tests", f"only {single.ref_id}", [*before, single], context=workflow_context)


def _copy_of(stage: StageExecution) -> StageExecution:
    """A copy of the stage of another workflow, with ids of its own."""
    made = copy(stage)
    made._execution = None
    made = deepcopy(made)
    made.id = new_id()
    for task in made.tasks:
        task.id = new_id()
    return made
