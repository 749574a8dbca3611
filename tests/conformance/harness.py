"""One way to run a workflow and look at what came of it, for every backend."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select

from stabilize_celery import (
    Stabilize,
    StageExecution,
    TaskExecution,
    Workflow,
    WorkflowRun,
    WorkflowStatus,
)
from stabilize_celery.persistence import tables
from tests.conformance.behaviours import read_log, ref_of
from tests.worker import WorkerProcess

#: What falls due later than that does not count as work in flight.
HORIZON = 2.0


def stage(
    ref_id: str,
    task: str | None = "ok",
    after: Iterable[str] = (),
    *,
    tasks: Mapping[str, str] | Iterable[str] | None = None,
    type: str = "conformance",
    output_reducers: Mapping[str, str] | None = None,
    **context: Any,
) -> StageExecution:
    """A stage of one task, or of several: ``tasks`` maps their names to types, or lists types.

    Everything else is the stage's own context; a context key that is also a parameter goes in with ``context={}``.
    """
    if tasks is None:
        named = {} if task is None else {task: task}
    elif isinstance(tasks, Mapping):
        named = dict(tasks)
    else:
        named = {f"{number}-{kind}": kind for number, kind in enumerate(tasks)}
    own = {**context.pop("context", {}), **context}
    made = StageExecution.create("plan" if "plan" in own else type, ref_id, ref_id, own, after)
    made.tasks = [TaskExecution.create(name, kind) for name, kind in named.items()]
    made.output_reducers = dict(output_reducers or {})
    return made


def flow(*stages: StageExecution, context: Mapping[str, Any] | None = None, **options: Any) -> Workflow:
    """A workflow of these stages."""
    name = options.pop("name", "scenario")
    return Workflow.create("conformance", name, list(stages), context=dict(context or {}), **options)


class Gate:
    """Holds a task body back (``{"wait_file": gate.path}``) until the test opens it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.path = str(file)

    def open(self) -> None:
        self._file.touch()


class Result:
    """What came of a workflow, read when this object was made."""

    def __init__(self, run: WorkflowRun, log: Path) -> None:
        self.run = run
        self.workflow = run.workflow()
        self._events = [entry for entry in read_log(log) if entry["workflow"] == run.id]

    @property
    def status(self) -> WorkflowStatus:
        return self.workflow.status

    def stage(self, ref: str) -> StageExecution:
        """A stage by its ref_id; a synthetic one by its name."""
        found = [stage for stage in self.workflow.stages if ref_of(stage) == ref]
        assert len(found) == 1, (
            f"{len(found)} stages {ref!r} among {sorted(map(ref_of, self.workflow.stages))}"
        )
        return found[0]

    def statuses(self) -> dict[str, str]:
        """The name of every stage's status."""
        return {ref_of(stage): str(stage.status) for stage in self.workflow.stages}

    def tasks(self, ref: str) -> list[str]:
        """The names of the statuses of a stage's tasks."""
        return [str(task.status) for task in self.stage(ref).tasks]

    def error(self, ref: str) -> str:
        """The error that a stage's last failure left."""
        return str(self.stage(ref).context["exception"]["details"]["error"])

    def events(self, event: str | None = None, ref: str | None = None) -> list[dict[str, Any]]:
        """What task bodies recorded, in the order it happened."""
        return [
            entry
            for entry in self._events
            if (event is None or entry["event"] == event) and (ref is None or entry["ref"] == ref)
        ]

    def order(self) -> list[str]:
        """The stages whose task bodies ran, in the order they began."""
        return [entry["ref"] for entry in self.events("start")]

    def executions(self, ref: str) -> int:
        """How often task bodies of a stage ran."""
        return len(self.events("start", ref))

    def hooks(self, ref: str) -> list[str]:
        """The hooks that were called, in order."""
        return [entry["event"] for entry in self.events(ref=ref) if entry["event"].startswith("on_")]

    def seen(self, ref: str) -> dict[str, Any]:
        """What a stage with the task type ``see`` saw."""
        seen: dict[str, Any] = self.stage(ref).outputs["seen"]
        return seen


class ConformanceEngine(ABC):
    """An engine under test; one per test, though workers are shared."""

    def __init__(self, name: str, stabilize: Stabilize, folder: Path) -> None:
        self.name = name
        self.stabilize = stabilize
        self._folder = folder
        self._log = folder / "executions.log"
        self._gates: list[Gate] = []

    def __repr__(self) -> str:
        return f"<{self.name}>"

    # -------------------------------------------------------------------------------------- running

    def start(self, workflow: Workflow, **options: Any) -> WorkflowRun:
        """Start it; nothing is waited for."""
        return self.stabilize.start(self.prepare(workflow), **options)

    def prepare(self, workflow: Workflow) -> Workflow:
        """Let a workflow's task bodies record what they do: for workflows that the test starts itself."""
        workflow.context.setdefault("_log", str(self._log))
        return workflow

    def run(self, workflow: Workflow, timeout: float = 30) -> Result:
        """Start it and wait until it has ended, or nothing but waiting is left."""
        return self.settle(self.start(workflow), timeout)

    def settle(self, run: WorkflowRun, timeout: float = 30) -> Result:
        """Wait until no message of a workflow is due any more: it has ended, or it waits for somebody."""
        self.wait_until(lambda: not self.in_flight(run), timeout, run)
        return self.result(run)

    def wait_final(self, run: WorkflowRun, timeout: float = 30) -> Result:
        """Wait until it has ended, and its hooks have been called."""
        self.wait_until(run.ready, timeout, run)
        return self.settle(run, timeout)

    def wait_status(self, run: WorkflowRun, ref: str, status: str, timeout: float = 30) -> Result:
        """Wait until a stage has a status."""
        self.wait_until(lambda: self.result(run).statuses().get(ref) == status, timeout, run)
        return self.result(run)

    def wait_event(
        self, run: WorkflowRun, ref: str, event: str = "start", count: int = 1, timeout: float = 30
    ) -> Result:
        """Wait until task bodies of a stage have recorded an event so often."""
        self.wait_until(lambda: len(self._events(run, ref, event)) >= count, timeout, run)
        return self.result(run)

    def result(self, run: WorkflowRun) -> Result:
        """How it stands now."""
        return Result(run, self._log)

    def gate(self, name: str = "gate") -> Gate:
        """Something task bodies can wait for; the end of the test opens it."""
        gate = Gate(self._folder / f"{name}.open")
        self._gates.append(gate)
        return gate

    # -------------------------------------------------------------------------------------- waiting

    def wait_until(
        self, predicate: Callable[[], object], timeout: float = 30, run: WorkflowRun | None = None
    ) -> None:
        """Let the engine work until ``predicate`` is true."""
        deadline = time.monotonic() + timeout
        while not predicate():
            if time.monotonic() > deadline:
                raise AssertionError(f"{self} gave up after {timeout} s{self._report(run)}")
            self._work(predicate)

    @abstractmethod
    def _work(self, predicate: Callable[[], object]) -> None:
        """Let a moment pass."""

    def in_flight(self, run: WorkflowRun) -> list[dict[str, Any]]:
        """The messages of a workflow that are due, or soon will be."""
        store = self.stabilize.store
        statement = select(tables.messages).where(
            tables.messages.c.workflow_id == run.id,
            tables.messages.c.due_at <= store.now() + timedelta(seconds=HORIZON),
        )
        with store.database.autocommit() as connection:
            return [dict(row._mapping) for row in connection.execute(statement)]

    def _events(self, run: WorkflowRun, ref: str, event: str) -> list[dict[str, Any]]:
        return [
            entry
            for entry in read_log(self._log)
            if (entry["workflow"], entry["ref"], entry["event"]) == (run.id, ref, event)
        ]

    def _report(self, run: WorkflowRun | None) -> str:
        if run is None:
            return ""
        result = self.result(run)
        lines = [f"workflow {result.status}", json.dumps(result.statuses())]
        columns = ("type", "stage_id", "task_id", "due_at", "send_at", "sends", "claims", "attempts")
        lines += [str({key: str(row[key]) for key in columns}) for row in self.in_flight(run)]
        lines += [
            f"{row['at']} {row['event']} {row['stage_id']} {row['from_status']} -> {row['to_status']} "
            f"({row['reason']})"
            for row in run.history()[-20:]
        ]
        return "\n" + "\n".join([*lines, *self._notes()])

    def _notes(self) -> list[str]:
        return []

    def close(self) -> None:
        """The test is over: hold nothing back."""
        for gate in self._gates:
            gate.open()


class EmbeddedEngine(ConformanceEngine):
    """An embedded engine, driven by whoever waits."""

    def _work(self, predicate: Callable[[], object]) -> None:
        if not self.stabilize.processor.drain(timeout=0.02, until=lambda: bool(predicate())):
            time.sleep(0.002)

    def close(self) -> None:
        super().close()
        self.stabilize.close()


class WorkersEngine(ConformanceEngine):
    """An engine on Celery workers that are shared with other tests."""

    def __init__(self, name: str, stabilize: Stabilize, folder: Path, workers: list[WorkerProcess]) -> None:
        super().__init__(name, stabilize, folder)
        self._workers = workers

    def _work(self, predicate: Callable[[], object]) -> None:
        time.sleep(0.01)

    def _notes(self) -> list[str]:
        return [
            f"--- {worker.name}\n" + "\n".join(worker.output.splitlines()[-30:]) for worker in self._workers
        ]
