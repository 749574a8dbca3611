"""The workflows that run while faults are injected, and how each must end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from celery import Celery

from stabilize_celery import (
    Stabilize,
    StageExecution,
    Task,
    TaskExecution,
    TaskResult,
    TransientError,
    Workflow,
    WorkflowRun,
    current_run,
)
from tests.chaos import effects
from tests.chaos.checks import Finding

LIMIT = 2
#: A cancellation may overtake the start.
BEFORE_OR_AFTER = "CANCELED or NOT_STARTED"
#: How long a task waits that is only ended by being canceled.
_LONGEST = 120.0


class Work(Task):
    """A body whose behaviour comes from its stage's own context.

    ``sleep``: seconds; ``transient``: that many attempts fail; ``boom``: it fails for good; ``ask``: it waits for a
    signal; ``endless``: it waits to be canceled; ``until``, ``to``: it jumps until ``draft`` is so large.
    """

    def execute(self, stage: StageExecution) -> TaskResult:
        effects.record()
        run, own = current_run(), stage.own_context
        assert run is not None
        if own.get("endless"):
            run.cancelled.wait(_LONGEST)
        time.sleep(own.get("sleep", 0.02))
        if run.attempt <= own.get("transient", 0):
            raise TransientError("not yet", retry_after=0.1)
        if own.get("boom"):
            return TaskResult.terminal("boom")
        if own.get("ask") and "_signal_name" not in stage.context:
            return TaskResult.suspend()
        if stage.context.get("draft", 0) < own.get("until", 0):
            return TaskResult.jump_to(own["to"], context={"previous": stage.context["draft"]})
        return TaskResult.success(outputs=_outputs(stage))


def _outputs(stage: StageExecution) -> dict[str, Any]:
    own = stage.own_context
    if own.get("writes"):
        return {"draft": own.get("previous", 0) + 1}
    if own.get("sums"):
        return {"total": stage.context["n"]}
    if own.get("ask"):
        return {"heard": stage.context["_signal_data"]["by"]}
    return {"n": own["n"]} if "n" in own else {}


def register(app: Celery, stabilize: Stabilize) -> None:
    """Everything the workflows need, on an app."""
    stabilize.registry.register("work", Work)

    @app.task(name="chaos.work", acks_late=True)
    def celery_work(n: int) -> int:
        effects.record()
        time.sleep(0.05)
        return n * n

    stabilize.register_workflow("inner", lambda seen: _flow("inner", _work("a"), _work("b", after=["a"])))


def _work(ref: str, after: Iterable[str] = (), *, type: str = "chaos", **own: Any) -> StageExecution:
    made = StageExecution.create(type, ref, ref, own, after)
    made.tasks = [TaskExecution.create(ref, "work")]
    return made


def _flow(name: str, *stages: StageExecution, **options: Any) -> Workflow:
    return Workflow.create("chaos", name, list(stages), **options)


@dataclass
class Case:
    """A workflow and its only acceptable end."""

    workflow: Workflow
    status: str = "SUCCEEDED"
    #: Of stages that are no SUCCEEDED, by ref_id, or the name of a synthetic one.
    others: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: What somebody does to it once it is started.
    then: Callable[[WorkflowRun], None] = lambda run: None

    def check(self, run: WorkflowRun) -> Iterator[Finding]:
        """Whether it has ended as it must."""
        workflow = run.workflow()
        if workflow.status.name != self.status:
            yield Finding("wrong", run.id, f"{workflow.name} ended {workflow.status}, not {self.status}")
            return
        for stage in workflow.stages:
            ref = stage.name if stage.is_synthetic else stage.ref_id
            expected = self.others.get(ref, "SUCCEEDED")
            if stage.status.name not in expected.split(" or "):
                yield Finding("wrong", run.id, f"{workflow.name}: {ref} ended {stage.status}, not {expected}")
            for key, value in self.outputs.get(ref, {}).items():
                if stage.outputs.get(key) != value:
                    what = f"{workflow.name}: {ref} put out {key}={stage.outputs.get(key)!r}, not {value!r}"
                    yield Finding("wrong", run.id, what)


def fan(app: Celery) -> Case:
    branches = [_work(f"b{n}", ["start"], n=n, sleep=0.02 * n) for n in range(1, 6)]
    join = _work("join", [stage.ref_id for stage in branches], sums=True)
    join.output_reducers = {"n": "sum"}
    workflow = _flow("fan", _work("start"), *branches, join, _work("end", ["join"]))
    return Case(workflow, outputs={"join": {"total": 15}})


def loop(app: Celery) -> Case:
    stages = [
        _work("write", writes=True),
        _work("review", ["write"], until=3, to="write"),
        _work("end", ["review"]),
    ]
    return Case(_flow("loop", *stages), outputs={"write": {"draft": 3}})


def planned(app: Celery) -> Case:
    before = [{"name": "check", "task": "work"}, {"name": "lock", "task": "work", "requires": ["check"]}]
    plan = {"before": before, "after": [{"name": "unlock", "task": "work"}]}
    return Case(_flow("planned", _work("deploy", type="plan", plan=plan), _work("end", ["deploy"])))


def rollback(app: Celery) -> Case:
    plan = {"on_failure": [{"name": "undo", "task": "work"}]}
    doomed = _work("doomed", ["start"], type="plan", boom=True, plan=plan)
    workflow = _flow("rollback", _work("start"), doomed, _work("never", ["doomed"]))
    return Case(workflow, "TERMINAL", {"doomed": "TERMINAL", "never": "NOT_STARTED"})


def retried(app: Celery) -> Case:
    return Case(_flow("retried", _work("a", transient=2), _work("b", ["a"], transient=1)))


def tolerant(app: Celery) -> Case:
    failing = _work("failing", boom=True, continuePipelineOnFailure=True)
    return Case(_flow("tolerant", failing, _work("end", ["failing"])), others={"failing": "FAILED_CONTINUE"})


def limited(app: Celery) -> Case:
    config = {
        "id": "limited",
        "limitConcurrent": True,
        "maxConcurrentExecutions": LIMIT,
        "keepWaitingPipelines": True,
    }
    return Case(_flow("limited", _work("a", sleep=0.2), _work("b", ["a"], sleep=0.2), config=config))


def celery(app: Celery) -> Case:
    square = StageExecution.celery("square", app.tasks["chaos.work"].s(7), requires=["start"])
    workflow = _flow("celery", _work("start"), square, _work("end", ["square"]))
    return Case(workflow, outputs={"square": {"result": 49}})


def mapped(app: Celery) -> Case:
    context = {"items": [1, 2, 3, 4], "stage": {"type": "work"}, "limit": 2}
    squares = StageExecution.single("each", "map", context)
    return Case(_flow("mapped", squares, _work("end", ["each"])))


def nested(app: Celery) -> Case:
    inner = StageExecution.single("inner", "sub_workflow", {"workflow": "inner"})
    return Case(_flow("nested", inner, _work("end", ["inner"])))


def waiting(app: Celery) -> Case:
    wait = StageExecution.single("wait", "wait", {"seconds": 1}, requires=["start"])
    return Case(_flow("waiting", _work("start"), wait, _work("end", ["wait"])))


def slow(app: Celery) -> Case:
    return Case(_flow("slow", _work("a", sleep=1.5), _work("b", ["a"], sleep=1.0)))


def asking(app: Celery) -> Case:
    workflow = _flow("asking", _work("ask", ask=True), _work("end", ["ask"]))
    return Case(
        workflow,
        outputs={"ask": {"heard": "kim"}},
        then=lambda run: run.signal("ask", "answered", {"by": "kim"}),
    )


def canceled(app: Celery) -> Case:
    workflow = _flow("canceled", _work("endless", endless=True), _work("never", ["endless"]))
    return Case(
        workflow,
        "CANCELED",
        {"endless": BEFORE_OR_AFTER, "never": BEFORE_OR_AFTER},
        then=lambda run: run.cancel(user="kim"),
    )


ALL: tuple[Callable[[Celery], Case], ...] = (
    fan,
    loop,
    limited,
    planned,
    limited,
    celery,
    retried,
    mapped,
    slow,
    rollback,
    asking,
    limited,
    nested,
    tolerant,
    waiting,
    canceled,
)
