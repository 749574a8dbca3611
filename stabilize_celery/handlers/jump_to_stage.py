"""JumpToStage: a task sends the workflow to another stage; everything in one transaction."""

from __future__ import annotations

from typing import Any

from stabilize_celery.context.sources import exported_sources
from stabilize_celery.dag.branches import is_backward, jump_regions
from stabilize_celery.handlers.base import Handler, find_task
from stabilize_celery.handlers.branches import resume_progress, stage_ended
from stabilize_celery.handlers.start_stage import see_upstreams
from stabilize_celery.handlers.transitions import (
    clear_timers,
    finish_task,
    log_failure,
    remove_children,
    reset_stage,
    send_hooks,
    transition,
    update_context,
)
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import JumpToStage
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.topology import topological_order

DEFAULT_MAX_JUMPS = 10


class JumpToStageHandler(Handler[JumpToStage]):
    """The target is reset and starts at once; see ``dag/branches.py`` for what else is touched."""

    message_type = JumpToStage

    def handle(self, message: JumpToStage, unit: Unit) -> None:
        found = find_task(message, unit)
        if found is None or found[0].status is not S.RUNNING or found[1].status.is_complete:
            return
        source, task = found
        workflow = unit.whole(message.workflow_id)
        assert workflow is not None
        if workflow.status.is_complete:
            return
        history: list[dict[str, Any]] = list(workflow.context.get("_jump_history", ()))
        most = workflow.context.get("_max_jumps", DEFAULT_MAX_JUMPS)
        target = _top_level(workflow, message.target_ref_id)
        if target is None:
            what = message.target_ref_id or "(none)"
            self._refuse(unit, source, f"Target stage not found: {what}")
        elif len(history) >= most:
            self._refuse(unit, source, f"Max jump count exceeded: {len(history)}/{most}")
        else:
            history.append(
                {
                    "jump_number": len(history) + 1,
                    "from_stage": source.ref_id,
                    "to_stage": target.ref_id,
                    "context_keys": sorted(message.jump_context),
                    "time": unit.now.isoformat(),
                }
            )
            unit.change(workflow, context={**workflow.context, "_jump_history": history})
            if task.status is S.RUNNING:
                finish_task(unit, source, task, S.REDIRECT, f"jump to {target.ref_id}")
            self._jump(message, unit, workflow, source, target, history)

    def _jump(
        self,
        message: JumpToStage,
        unit: Unit,
        workflow: Workflow,
        source: StageExecution,
        target: StageExecution,
        history: list[dict[str, Any]],
    ) -> None:
        outer = source
        while (parent := outer.parent()) is not None:
            outer = parent
        requires = {s.ref_id: s.requisite_stage_ref_ids for s in workflow.top_level_stages()}
        by_ref = {s.ref_id: s for s in workflow.top_level_stages()}
        reset, passed = jump_regions(requires, outer.ref_id, target.ref_id)
        reason = f"jump from {source.called} to {target.ref_id}"
        if not is_backward(requires, outer.ref_id, target.ref_id):
            self._leave(unit, source, outer, reason)
        order = topological_order(requires)
        for ref in order:
            if ref in passed:
                self._pass_over(unit, by_ref[ref], reason)
        for ref in (ref for ref in order if ref in reset):
            stage = by_ref[ref]
            remove_children(unit, stage, reason)
            reset_stage(unit, stage, reason)
        seen = {"_jump_count": len(history), "_jump_history": history}
        if message.jump_outputs:
            seen["_jump_outputs"] = message.jump_outputs
        update_context(unit, target, {**message.jump_context, **message.jump_outputs, **seen})
        unit.change(target, released=True)
        resume_progress(unit, workflow)

    def _leave(self, unit: Unit, source: StageExecution, outer: StageExecution, reason: str) -> None:
        """A forward jump: the source is done; a jump out of a synthetic stage gives up its parent's pass."""
        for task in source.tasks:
            if task.status is S.REDIRECT:
                finish_task(unit, source, task, S.SUCCEEDED, reason)
            elif task.status is S.NOT_STARTED:
                finish_task(unit, source, task, S.SKIPPED, reason)
        if source is outer:
            transition(unit, source, S.SUCCEEDED, reason, end_time=unit.now)
            clear_timers(unit, source)
            unit.change(source, sources=exported_sources(source))
            send_hooks(unit, source, "on_cleanup", source.tasks)
            return
        remove_children(unit, outer, reason)
        reset_stage(unit, outer, reason)
        self._pass_over(unit, outer, reason)

    def _pass_over(self, unit: Unit, stage: StageExecution, reason: str) -> None:
        if stage.status is not S.NOT_STARTED:
            return
        see_upstreams(unit, stage)
        for task in stage.tasks:
            finish_task(unit, stage, task, S.SKIPPED, reason)
        transition(unit, stage, S.SKIPPED, reason, end_time=unit.now)

    def _refuse(self, unit: Unit, source: StageExecution, error: str) -> None:
        """The source fails, whatever its failure policy: a loop that is not stopped would never end."""
        log_failure(source, error)
        update_context(unit, source, {"jump_error": error, "error": error})
        for task in source.tasks:
            if task.status is S.REDIRECT:
                transition(unit, source, S.RUNNING, "its jump is refused", task=task)
            if task.status is S.RUNNING:
                finish_task(unit, source, task, S.TERMINAL, error, failed_as=S.TERMINAL)
            elif task.status is S.NOT_STARTED:
                finish_task(unit, source, task, S.SKIPPED, error)
        transition(unit, source, S.TERMINAL, error, end_time=unit.now)
        clear_timers(unit, source)
        send_hooks(unit, source, "on_cleanup", source.tasks)
        stage_ended(unit, source)


def _top_level(workflow: Workflow, ref_id: str) -> StageExecution | None:
    return next((stage for stage in workflow.top_level_stages() if stage.ref_id == ref_id), None)
