"""Tasks of stages with stages or workflows inside: ``sub_workflow``, which waits by message, and ``map``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from stabilize_celery.errors import PermanentError, StabilizeError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.workflow import ParentTask, Workflow
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import current_run

DEFAULT_MAX_DEPTH = 10
_CHILD = "_sub_workflow_id"


class SubWorkflows(Protocol):
    """What the task needs of the engine it runs in."""

    def build_sub_workflow(self, definition: Any, context: Mapping[str, Any]) -> Workflow:
        """A new workflow from a definition or the name of a registered one."""

    def start_sub_workflow(self, workflow: Workflow, dedup_key: str) -> str:
        """Start it once, whatever happens in between; returns its id."""

    def sub_workflow_result(
        self, workflow_id: str, stage: StageExecution
    ) -> tuple[S, dict[str, Any], dict[str, str]]:
        """Its status, merged outputs, and errors by stage; its end is reported to this pass of ``stage`` from now on."""


class SubWorkflowTask(Task):
    """Runs a workflow within a workflow.

    Options of the stage's own context: ``workflow``, a definition of the form of a workflow file or the name of a
    workflow registered with ``stabilize.register_workflow``; ``inputs``, merged into the child's context;
    ``max_depth`` (10).  Outputs: ``sub_workflow_id``, ``sub_workflow_status``, ``sub_workflow_outputs``.  If the child
    fails so does the task, with the child's errors; a child that is restarted and then succeeds restarts the stage that
    it failed, which takes its result.  Canceling or pausing the parent reaches the child.
    """

    aliases = ("subworkflow",)

    def __init__(self, engine: SubWorkflows) -> None:
        self._engine = engine

    def execute(self, stage: StageExecution) -> TaskResult:
        child_id = stage.own_context.get(_CHILD)
        if child_id is None:
            return self._start(stage)
        status, outputs, errors = self._engine.sub_workflow_result(child_id, stage)
        if not status.is_complete:
            # Some other signal woke it.
            return TaskResult.suspend()
        reported = {
            "sub_workflow_id": child_id,
            "sub_workflow_status": status.name,
            "sub_workflow_outputs": outputs,
        }
        if status is S.SUCCEEDED:
            return TaskResult.success(outputs=reported)
        texts = "; ".join(f"{ref}: {error}" for ref, error in errors.items())
        return TaskResult.terminal(
            f"sub-workflow {child_id} ended {status}" + (f": {texts}" if texts else ""), context=reported
        )

    def _start(self, stage: StageExecution) -> TaskResult:
        own = stage.own_context
        definition = own.get("workflow")
        if not isinstance(definition, str | Mapping):
            raise PermanentError(
                f"stage {stage.called}: 'workflow' must be the definition of a workflow or the name of a registered "
                f"one, not {type(definition).__name__}"
            )
        parent = stage.execution.parent
        depth = 1 if parent is None else parent.depth + 1
        most = own.get("max_depth", DEFAULT_MAX_DEPTH)
        if depth > most:
            raise PermanentError(
                f"stage {stage.called}: sub-workflows are nested deeper than {most} levels; raise 'max_depth' if that "
                "is meant"
            )
        try:
            workflow = self._engine.build_sub_workflow(definition, stage.context)
        except StabilizeError as error:
            raise PermanentError(f"stage {stage.called}: {error}") from error
        workflow.context = {**workflow.context, **own.get("inputs", {})}
        workflow.parent = ParentTask(stage.execution.id, stage.id, stage.generation, depth)
        run = current_run()
        key = run.idempotency_key if run is not None else stage.id
        child_id = self._engine.start_sub_workflow(workflow, f"sub-workflow:{key}")
        return TaskResult.suspend(context={_CHILD: child_id})


#: From a stage's id to the status and outputs of its instances, in order.
ReadInstances = Callable[[str], Sequence[tuple[S, dict[str, Any]]]]


class MapTask(Task):
    """See :class:`stabilize_celery.stages.map.MapStageBuilder`."""

    def __init__(self, read_instances: ReadInstances) -> None:
        self._read_instances = read_instances

    def execute(self, stage: StageExecution) -> TaskResult:
        instances = self._read_instances(stage.id)
        failed = [index for index, (status, _) in enumerate(instances) if status.is_failure]
        results = [None if status.is_failure else outputs for status, outputs in instances]
        outputs = {"results": results, "failed": failed}
        return TaskResult.success(outputs=outputs)
