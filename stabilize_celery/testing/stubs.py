"""Stand-ins for task types, and for Celery tasks: they give what a test wants and remember what they were called with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from stabilize_celery.errors import ConfigurationError, PermanentError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.tasks.celery_call import CeleryCall
from stabilize_celery.tasks.celery_task import conclude
from stabilize_celery.tasks.interface import Task, as_result
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import current_run

#: What is not said.
NOTHING: Any = object()


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
            told = [f"stub of {self.name} was called {_times(len(self.calls))}, not {_times(times)}", *lines]
            raise AssertionError("\n".join(told))

    def execute(self, stage: StageExecution) -> TaskResult:
        """What the test wants."""
        value = self._answer(self._record(stage))
        return as_result(value, f"the stub of {self.name}")

    def call(self, stage: StageExecution, called: CeleryCall) -> TaskResult:
        """What the test wants of a Celery task."""
        record = self._record(stage, deepcopy(called.args), deepcopy(called.kwargs))
        try:
            value = self._answer(record)
        except Exception as error:
            return conclude(stage, "FAILURE", error)
        return value if isinstance(value, TaskResult) else conclude(stage, "SUCCESS", value)

    def _record(
        self, stage: StageExecution, args: list[Any] | None = None, kwargs: dict[str, Any] | None = None
    ) -> tuple[int, StubCall]:
        run = current_run()
        assert run is not None
        record = StubCall(
            stage.called,
            deepcopy(dict(stage.context)),
            deepcopy(dict(stage.own_context)),
            run.attempt,
            run.idempotency_key,
            run.now(),
            args or [],
            kwargs or {},
        )
        with self._lock:
            self.calls.append(record)
            return len(self.calls), record

    def _answer(self, record: tuple[int, StubCall]) -> Any:
        number, called = record
        value = self._always
        if self._results is not None:
            if number > len(self._results):
                raise PermanentError(
                    f"the stub of {self.name} was given {len(self._results)} results and called"
                    f" {_times(number)}, by stage {called.stage}"
                )
            value = self._results[number - 1]
        if isinstance(value, BaseException) or (isinstance(value, type) and issubclass(value, BaseException)):
            raise value
        if isinstance(value, TaskResult):
            return value
        if callable(value):
            maker: Callable[[dict[str, Any]], Any] = value
            return maker(called.context)
        return deepcopy(value)


class CeleryTasksInPlace(Task):
    """The task type ``celery`` in a test: Celery tasks are called here, or their stubs."""

    def __init__(self, real: Task, stubs: Mapping[str, Stub]) -> None:
        self._real = real
        self._stubs = stubs

    def execute(self, stage: StageExecution) -> TaskResult:
        name = stage.own_context.get("task")
        stub = self._stubs.get(str(name))
        return self._real.execute(stage) if stub is None else stub.call(stage, CeleryCall.of(stage))


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
