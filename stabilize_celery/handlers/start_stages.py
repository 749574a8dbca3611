"""StartStages: start the stages of a wide fan-out, a batch in each transaction."""

from __future__ import annotations

from stabilize_celery.handlers.base import Handler
from stabilize_celery.handlers.branches import start_all
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import StartStages


class StartStagesHandler(Handler[StartStages]):
    """The rest goes into another message like this one."""

    message_type = StartStages

    def handle(self, message: StartStages, unit: Unit) -> None:
        batch = unit.batch or len(message.stages)
        wanted: dict[str, int] = dict(message.stages[:batch])
        found = unit.stages(message.workflow_id, list(wanted))
        start_all(unit, [stage for stage in found if stage.generation == wanted[stage.id]])
        if message.stages[batch:]:
            unit.send(StartStages(workflow_id=message.workflow_id, stages=message.stages[batch:]))
