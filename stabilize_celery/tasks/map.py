"""The task of a ``map`` stage: collects what its instances produced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.result import TaskResult

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
