"""RunHook: record what came of an ``on_cancel`` or ``on_cleanup``."""

from __future__ import annotations

from stabilize_celery.handlers.base import Handler
from stabilize_celery.handlers.transitions import update_context
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import RunHook
from stabilize_celery.tasks.outcome import Verdict


class RunHookHandler(Handler[RunHook]):
    """A hook that fails is repeated like a task; in the end its failure is recorded and changes nothing else."""

    message_type = RunHook

    def handle(self, message: RunHook, unit: Unit) -> None:
        attempt = unit.attempt
        assert attempt is not None
        outcome = attempt.outcome
        if outcome.verdict is Verdict.DROP:
            return
        # It may be gone: a synthetic stage of an earlier pass.
        stage = unit.stage(message.stage_id)
        if outcome.verdict in (Verdict.RETRY, Verdict.PUT_OFF):
            counted = outcome.verdict is Verdict.RETRY
            unit.requeue(delay=outcome.delay, counted=counted, error=outcome.error)
            return
        failed = outcome.error is not None
        same_pass = stage is not None and stage.generation == message.generation
        if not failed and outcome.result is not None and stage is not None and same_pass:
            update_context(unit, stage, outcome.result.context)
            if outcome.result.outputs:
                unit.change(stage, outputs={**stage.outputs, **outcome.result.outputs})
        unit.record(
            message.hook,
            message.workflow_id,
            stage=stage if same_pass else None,
            task_id=message.task_id,
            reason=outcome.reason if failed else "",
            details=outcome.error if failed else None,
        )
