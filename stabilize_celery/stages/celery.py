"""Stages that run Celery tasks: what is called when the task fails is a stage of its own."""

from __future__ import annotations

from stabilize_celery.dag.graph import StageGraphBuilder
from stabilize_celery.models.stage import StageExecution, SyntheticStageOwner
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.stages.builder import StageDefinitionBuilder
from stabilize_celery.tasks.celery_call import ERRBACKS, FAILED


class CeleryStageBuilder(StageDefinitionBuilder):
    """Plans an on-failure stage for each ``link_error`` of the signature."""

    @property
    def type(self) -> str:
        return "celery"

    def on_failure_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        for number, errback in enumerate(stage.own_context.get(ERRBACKS, ())):
            name = f"{stage.ref_id} errback {number + 1}"
            own = {key: value for key, value in errback.items() if key != "immutable"}
            if not errback.get("immutable"):
                own[FAILED] = {
                    "id": f"{stage.tasks[0].id}-{stage.generation}",
                    "task": stage.own_context.get("task"),
                }
            graph.add(
                StageExecution.create_synthetic(
                    "celery",
                    name,
                    stage,
                    SyntheticStageOwner.STAGE_AFTER,
                    own,
                    [TaskExecution.create(name, "celery")],
                )
            )
