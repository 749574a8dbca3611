"""The stages of random workflows: tasks that do what the plan says, and builders that plan what it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from stabilize_celery.dag.graph import StageGraphBuilder
from stabilize_celery.errors import PermanentError, TransientError
from stabilize_celery.models.stage import StageExecution, SyntheticStageOwner
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.stages.builder import StageDefinitionBuilder
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import current_run
from tests.simulation.plan import Plan

TASK_TYPE, STAGE_TYPE = "scripted", "planned"
CONFIG = "limited"
#: The name under which workflows within workflows are registered.
NESTED = "nested"


def workflow_of(plan: Plan, number: int) -> Workflow:
    """A new workflow as the plan describes its ``number``-th."""
    config = None
    if plan.limit is not None:
        config = {
            "id": CONFIG,
            "limitConcurrent": True,
            "maxConcurrentExecutions": plan.limit,
            "keepWaitingPipelines": plan.keep_waiting,
        }
    context = {"_max_jumps": plan.max_jumps, "number": number}
    made = [_stage(stage, f"w{number}") for stage in plan.workflows[number]]
    return Workflow.create("simulation", f"w{number}", made, context=context, config=config)


def nested_workflow(seen: Mapping[str, Any]) -> Workflow:
    """The workflow within a workflow of a stage that has one."""
    name = seen["name"]
    return Workflow.create("simulation", name, [_stage(stage, name) for stage in seen["plan"]["nested"]])


def _stage(plan: dict[str, Any], workflow: str) -> StageExecution:
    context = {**plan["options"], "plan": plan}
    stage = StageExecution.create(STAGE_TYPE, plan["ref"], plan["ref"], context, plan["requires"])
    stage.tasks = _tasks(plan)
    if plan["nested"]:
        stage.context |= {"workflow": NESTED, "name": f"{workflow}({plan['ref']})"}
        stage.tasks.append(TaskExecution.create("nested", "sub_workflow"))
    return stage


def _tasks(plan: dict[str, Any]) -> list[TaskExecution]:
    return [TaskExecution.create(f"t{n}", TASK_TYPE) for n in range(len(plan["scripts"]))]


class ScriptedTask(Task):
    """The n-th execution does the n-th thing of its script, and whatever comes after the script succeeds.

    Args:
        expire: lets the time limit of the call run out.
    """

    def __init__(self, expire: Callable[[], None]) -> None:
        self._expire = expire
        self._executions: Counter[tuple[Any, ...]] = Counter()

    def execute(self, stage: StageExecution) -> TaskResult:
        run = current_run()
        assert run is not None
        number = next(n for n, task in enumerate(stage.tasks) if task.id == run.task_id)
        key = (stage.execution.name, stage.name, number)
        script = stage.own_context["plan"]["scripts"][number]
        step = script[self._executions[key]] if self._executions[key] < len(script) else "ok"
        self._executions[key] += 1
        return self._take(step)

    def _take(self, step: str) -> TaskResult:
        kind, _, argument = step.partition(":")
        if kind == "raise":
            raise PermanentError("broken")
        if kind == "transient":
            raise TransientError("not now", context_update={"tried": True})
        if kind == "overtime":
            self._expire()
        results: dict[str, Callable[[], TaskResult]] = {
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
        """Overridden, so that hooks are sent."""
        return None


class PlannedBuilder(StageDefinitionBuilder):
    """Plans the synthetic stages that the stage's plan names."""

    @property
    def type(self) -> str:
        return STAGE_TYPE

    def before_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        self._plan(stage, graph, "before")

    def after_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        self._plan(stage, graph, "after")

    def on_failure_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        self._plan(stage, graph, "on_failure")

    def _plan(self, stage: StageExecution, graph: StageGraphBuilder, phase: str) -> None:
        owner = SyntheticStageOwner.STAGE_BEFORE if phase == "before" else SyntheticStageOwner.STAGE_AFTER
        children = stage.own_context["plan"]["children"].get(phase, [])
        if children == "raise":
            raise RuntimeError(f"no {phase} stages today")
        for number, plan in enumerate(children):
            name = f"{stage.name}/{phase}{number}"
            context = {**plan["options"], "plan": {**plan, "ref": name}}
            child = StageExecution.create_synthetic(STAGE_TYPE, name, stage, owner, context, _tasks(plan))
            (graph.append if plan["chained"] else graph.add)(child)
