"""Task types whose behaviour comes from the stage's own context, so that any process can run any scenario.

====================  ==========================================================================================
``ok``                succeeds with the outputs in ``outputs``
``fail``              returns ``terminal(error)``, by default "boom"
``script``            the n-th execution takes the n-th action of ``do``, the last one for ever; see below
``hooked``            a script with ``on_cancel``, ``on_cleanup``, ``on_timeout``: each is recorded, and takes the step
                      that the context has under its name, if any, at most ``times`` times
``polling``           a script as a RetryableTask: ``backoff`` and ``total`` in seconds; hooks as above
``skippable``         a script as a SkippableTask: ``enabled`` is true, false, or an error's name to raise
``odd``               succeeds; its hooks raise or give what ``hooks`` says: ``{"get_timeout": {"raise": "KeyError"}}``,
                      ``{"get_timeout": {"give": 3600}}``; polls while ``polls`` is true
``unmade``            cannot even be made: its constructor raises KeyError
``function``          a plain function that returns what the context says under ``give``
``around``            outputs what it sees of the other stages of its workflow
``see``               outputs under ``seen`` everything it sees; ``outputs`` what the task before it left
====================  ==========================================================================================

An action is one step or a list of steps; ``do`` is a list of actions, or a mapping of task names to such lists:

- ``{"return": "success", "outputs": {}, "context": {}, "error": "", "target": "ref", "timeout": s, "after": s}``: any
  constructor of TaskResult; ``"nothing"`` and ``"junk"`` return None and 42
- ``{"raise": "TransientError", "message": "", **arguments}``: an error of the package, or a built-in one
- ``{"sleep": seconds}``, ``{"wait_file": path}`` (ends early when the task is told to stop), ``{"kill": "SIGKILL"}``
- ``{"copy": {"output": "key it sees"}}``: adds to the outputs of the result

The stage type ``plan`` has synthetic stages: ``plan = {"before": [...], "after": [...], "on_failure": [...]}`` with
``{"name", "task", "requires": [names], "context": {}, "plan": {}}`` each; ``"raise"`` in place of a list raises.

Every execution appends a line to the file that the workflow's context names under ``_log``.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from stabilize_celery import (
    RetryableTask,
    SkippableTask,
    Stabilize,
    StageDefinitionBuilder,
    StageExecution,
    SyntheticStageOwner,
    Task,
    TaskExecution,
    TaskResult,
    current_run,
    errors,
)
from stabilize_celery.context.stage_context import StageContext
from stabilize_celery.dag.graph import StageGraphBuilder

STEP = 0.01
LONGEST_WAIT = 60.0


def register(stabilize: Stabilize) -> None:
    """Register every behaviour on an engine."""
    for name, source in TASKS.items():
        stabilize.registry.register(name, source)
    stabilize.register_builder(PlanBuilder())


# ------------------------------------------------------------------------------------------------ recording


def ref_of(stage: StageExecution) -> str:
    """What tests call a stage: synthetic ones have made-up ref_ids."""
    return stage.name if stage.is_synthetic else stage.ref_id


def record(stage: StageExecution, event: str, **details: Any) -> int:
    """Append an event to the log; returns how many such events of this task there are now."""
    log = stage.execution.context.get("_log")
    if log is None:
        return 1
    run = current_run()
    task = stage.task_by_id(run.task_id) if run else None
    entry = {
        "at": time.time(),
        "workflow": stage.execution.id,
        "ref": ref_of(stage),
        "task": task.name if task else None,
        "event": event,
        "attempt": run.attempt if run else None,
        "generation": stage.generation,
        "pid": os.getpid(),
        **details,
    }
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, (json.dumps(entry) + "\n").encode())
    finally:
        os.close(descriptor)
    same = ("workflow", "ref", "task", "event")
    return sum(all(other[key] == entry[key] for key in same) for other in read_log(Path(log)))


def read_log(log: Path) -> list[dict[str, Any]]:
    """Every event in a log, in the order they happened."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------- scripts


def follow_script(stage: StageExecution) -> Any:
    """Take the action of this execution."""
    number = record(stage, "start")
    try:
        return _take(stage, _action(stage, number))
    finally:
        record(stage, "end")


def _action(stage: StageExecution, number: int) -> list[dict[str, Any]]:
    actions = stage.own_context.get("do", [])
    if isinstance(actions, dict):
        run = current_run()
        task = stage.task_by_id(run.task_id) if run else None
        actions = actions.get(task.name if task else "", [])
    if not actions:
        return []
    action = actions[min(number, len(actions)) - 1]
    return action if isinstance(action, list) else [action]


def _take(stage: StageExecution, steps: list[dict[str, Any]]) -> Any:
    copied: dict[str, Any] = {}
    for step in steps:
        if "return" in step:
            result = result_of(step)
            return result.merge_outputs(copied) if copied else result
        if "raise" in step:
            raise error_of(step)
        if "sleep" in step:
            time.sleep(step["sleep"])
        if "wait_file" in step:
            _wait_file(Path(step["wait_file"]))
        if "kill" in step:
            os.kill(os.getpid(), getattr(signal, step["kill"]))
        copied |= {output: stage.context.get(key) for output, key in step.get("copy", {}).items()}
    return TaskResult.success(outputs=copied)


def _wait_file(path: Path) -> None:
    run = current_run()
    deadline = time.monotonic() + LONGEST_WAIT
    while not path.exists() and time.monotonic() < deadline and not (run and run.cancelled.is_set()):
        time.sleep(STEP)


def result_of(step: dict[str, Any]) -> Any:
    """The TaskResult that a ``return`` step describes."""
    outputs, context = step.get("outputs", {}), step.get("context", {})
    error = step.get("error", "x" * step["error_length"] if "error_length" in step else "boom")
    make: dict[str, Any] = {
        "success": lambda: TaskResult.success(outputs=outputs, context=context),
        "running": lambda: TaskResult.running(context=context, retry_after=step.get("after")),
        "terminal": lambda: TaskResult.terminal(error, context=context),
        "failed_continue": lambda: TaskResult.failed_continue(error, outputs=outputs, context=context),
        "skipped": TaskResult.skipped,
        "canceled": lambda: TaskResult.canceled(outputs=outputs),
        "stopped": lambda: TaskResult.stopped(outputs=outputs),
        "suspend": lambda: TaskResult.suspend(context=context, timeout=step.get("timeout")),
        "redirect": lambda: TaskResult.redirect(context=context),
        "jump": lambda: TaskResult.jump_to(step["target"], context=context, outputs=outputs),
        "nothing": lambda: None,
        "junk": lambda: 42,
        "nan": lambda: TaskResult.success(outputs={"n": float("nan")}),
        "bytes": lambda: TaskResult.success(outputs={"blob": b"raw"}),
        "huge": lambda: TaskResult.success(outputs={"blob": "x" * step["size"]}),
    }
    return make[step["return"]]()


def error_of(step: dict[str, Any]) -> BaseException:
    """The error that a ``raise`` step describes."""
    name = step["raise"]
    if name in ODD_ERRORS:
        return ODD_ERRORS[name]()
    cls = getattr(errors, name, None) or getattr(builtins, name)
    arguments = {key: value for key, value in step.items() if key not in ("raise", "message")}
    error: BaseException = cls(step.get("message", name), **arguments)
    return error


class Ok(Task):
    def execute(self, stage: StageExecution) -> TaskResult:
        record(stage, "start")
        return TaskResult.success(outputs=stage.own_context.get("outputs", {}))


class Fail(Task):
    def execute(self, stage: StageExecution) -> TaskResult:
        record(stage, "start")
        return TaskResult.terminal(stage.own_context.get("error", "boom"))


class Script(Task):
    def execute(self, stage: StageExecution) -> TaskResult:
        return follow_script(stage)


class See(Task):
    def execute(self, stage: StageExecution) -> TaskResult:
        record(stage, "start")
        return TaskResult.success(
            outputs={"seen": {key: value for key, value in stage.context.items() if key != "seen"}}
        )


class Outputs(Task):
    """Tells where the values of the task before it are."""

    def execute(self, stage: StageExecution) -> TaskResult:
        record(stage, "start")
        saw = {"context": stage.context.get("c"), "outputs": dict(stage.outputs), "o": stage.context.get("o")}
        return TaskResult.success(outputs={"second saw": saw})


class Hooks(Task):
    """Records the hooks it is called through."""

    def on_cancel(self, stage: StageExecution) -> TaskResult | None:
        return self._called(stage, "on_cancel")

    def on_timeout(self, stage: StageExecution) -> TaskResult | None:
        return self._called(stage, "on_timeout")

    def on_cleanup(self, stage: StageExecution) -> None:
        self._called(stage, "on_cleanup")

    def _called(self, stage: StageExecution, hook: str) -> TaskResult | None:
        number = record(stage, hook)
        step = stage.own_context.get(hook)
        if step is None or number > step.get("times", number):
            return None
        if "raise" in step or "return" in step:
            result: TaskResult = _take(stage, [step])
            return result
        _take(stage, [step])
        return None


class Hooked(Hooks, Script):
    pass


class Around(Hooks):
    def execute(self, stage: StageExecution) -> TaskResult:
        record(stage, "start")
        return TaskResult.success(outputs={"around": self._around(stage)})

    def on_cleanup(self, stage: StageExecution) -> None:
        record(stage, "on_cleanup", around=self._around(stage))

    def _around(self, stage: StageExecution) -> dict[str, Any]:
        context = StageContext(stage)
        return {
            "requires": sorted(stage.requisite_stage_ref_ids),
            "join": stage.is_join,
            "initial": stage.is_initial,
            "upstream": sorted(ref_of(other) for other in stage.upstream_stages()),
            "downstream": sorted(ref_of(other) for other in stage.downstream_stages()),
            "ancestors": sorted(ref_of(other) for other in stage.ancestors()),
            "all": {ref_of(other): str(other.status) for other in stage.execution.stages},
            "itself": any(other is stage for other in stage.execution.stages),
            "all of n": context.get_all("n"),
            "n": context.get("n"),
        }


class Polling(Hooks, RetryableTask):
    def execute(self, stage: StageExecution) -> TaskResult:
        return follow_script(stage)

    def get_timeout(self) -> timedelta:
        return timedelta(seconds=30)

    def get_dynamic_timeout(self, stage: StageExecution) -> timedelta:
        return timedelta(seconds=stage.own_context.get("total", 30))

    def get_backoff_period(self, stage: StageExecution, duration: timedelta) -> timedelta:
        return timedelta(seconds=stage.own_context.get("backoff", 0.05))


class Skippable(SkippableTask):
    def is_enabled(self, stage: StageExecution) -> bool:
        enabled = stage.own_context.get("enabled", True)
        if isinstance(enabled, str):
            raise error_of({"raise": enabled})
        return bool(enabled)

    def do_execute(self, stage: StageExecution) -> TaskResult:
        return follow_script(stage)


class Odd(RetryableTask):
    def execute(self, stage: StageExecution) -> TaskResult:
        record(stage, "start")
        if stage.own_context.get("fails"):
            raise ConnectionError("it is away")
        return TaskResult.running() if stage.own_context.get("polls") else TaskResult.success()

    def get_timeout(self) -> timedelta:
        return timedelta(seconds=30)

    def get_dynamic_timeout(self, stage: StageExecution) -> timedelta:
        given: timedelta = self._odd(stage, "get_dynamic_timeout", super().get_dynamic_timeout(stage))
        return given

    def get_backoff_period(self, stage: StageExecution, duration: timedelta) -> timedelta:
        given: timedelta = self._odd(stage, "get_backoff_period", timedelta(seconds=0.05))
        return given

    def get_execution_timeout(self, stage: StageExecution) -> timedelta | None:
        given: timedelta | None = self._odd(stage, "get_execution_timeout", None)
        return given

    def on_timeout(self, stage: StageExecution) -> TaskResult | None:
        given: TaskResult | None = self._odd(stage, "on_timeout", None)
        return given

    def _odd(self, stage: StageExecution, hook: str, usual: Any) -> Any:
        step = stage.own_context.get("hooks", {}).get(hook)
        if step is None:
            return usual
        if "raise" in step:
            raise error_of(step)
        return timedelta(seconds=step["seconds"]) if "seconds" in step else step["give"]


class Unmade(Task):
    def __init__(self) -> None:
        raise KeyError("no constructor today")

    def execute(self, stage: StageExecution) -> TaskResult:
        return TaskResult.success()


class UglyError(Exception):
    """Its text cannot be read."""

    def __str__(self) -> str:
        return str(self.args[3])

    __repr__ = __str__


def _cyclic() -> BaseException:
    error, cause = errors.PermanentError("round and round"), errors.PermanentError("it goes")
    error.cause, cause.cause = cause, error
    error.__cause__, cause.__cause__ = cause, error
    return error


def _late_delay(delay: Any) -> BaseException:
    error = errors.TransientError("busy")
    error.retry_after = delay
    return error


def _updating() -> BaseException:
    error = errors.PermanentError("own words")
    error.__cause__ = errors.TransientError("x", context_update={"error": 1, "unmapped": 2, "described": 3})
    return error


#: Errors that are odd in themselves, by name.
ODD_ERRORS: dict[str, Callable[[], BaseException]] = {
    "ugly": lambda: UglyError("a"),
    "cyclic": _cyclic,
    "group": lambda: ExceptionGroup("two of them", [ValueError("one"), KeyError("two")]),
    "transient group": lambda: ExceptionGroup("both", [errors.TransientError("x", retry_after=0)] * 2),
    "long": lambda: ValueError("deadlock on table orders " + "\x01" * 3_000_000),
    "long transient": lambda: errors.TransientError("deadlock " + "x" * 3_000_000, retry_after=0),
    "unstorable": lambda: ValueError("half \ud800 and \x00"),
    "silent": lambda: errors.PermanentError(""),
    "late delay": lambda: _late_delay(float("nan")),
    "with an update": _updating,
}


def function(stage: StageExecution) -> Any:
    record(stage, "start")
    return stage.own_context.get("give")


TASKS: dict[str, Any] = {
    "function": function,
    "ok": Ok,
    "fail": Fail,
    "script": Script,
    "see": See,
    "around": Around,
    "outputs": Outputs,
    "hooked": Hooked,
    "polling": Polling,
    "skippable": Skippable,
    "odd": Odd,
    "unmade": Unmade,
}


# ---------------------------------------------------------------------------------------- synthetic stages


class PlanBuilder(StageDefinitionBuilder):
    """Plans the synthetic stages that the stage's own context describes."""

    def before_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        self._add(stage, graph, "before", SyntheticStageOwner.STAGE_BEFORE)

    def after_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        self._add(stage, graph, "after", SyntheticStageOwner.STAGE_AFTER)

    def on_failure_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        self._add(stage, graph, "on_failure", SyntheticStageOwner.STAGE_AFTER)

    def _add(
        self, stage: StageExecution, graph: StageGraphBuilder, phase: str, owner: SyntheticStageOwner
    ) -> None:
        planned = stage.own_context.get("plan", {}).get(phase, [])
        if planned == "raise":
            raise RuntimeError(f"no {phase} stages today")
        made: dict[str, StageExecution] = {}
        for entry in planned:
            name, plan = entry["name"], entry.get("plan")
            context = dict(entry.get("context", {}))
            if plan:
                context["plan"] = plan
            task = entry.get("task", "ok")
            child = StageExecution.create_synthetic(
                "plan" if plan else "conformance",
                name,
                stage,
                owner,
                context=context,
                tasks=[TaskExecution.create(name, task)] if task else [],
            )
            made[name] = child
            graph.add(child)
            for required in entry.get("requires", []):
                graph.connect(made[required], child)
