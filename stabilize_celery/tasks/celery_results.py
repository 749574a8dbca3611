"""The end of a canvas that ends in several tasks: their results, in the canvas's own shape."""

from __future__ import annotations

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.tasks.celery_call import RESULTS_OF, refs_of, shaped
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.result import TaskResult


class CeleryResultsTask(Task):
    """Gives the output ``result``: the results of the stages that the option ``results_of`` names."""

    def execute(self, stage: StageExecution) -> TaskResult:
        shape = stage.own_context[RESULTS_OF]
        return TaskResult.success(outputs={"result": shaped(shape, stage.outputs_of(refs_of(shape)))})
