"""What drives each workflow and stage that has not ended, and which of them nothing drives.

A cause is a message, a timer, a running attempt, or something with a name that is waited for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from stabilize_celery.dag.branches import recount
from stabilize_celery.handlers.base import stage_ids
from stabilize_celery.messages import (
    CancelWorkflow,
    ExpireStage,
    ExpireSuspension,
    Message,
    ResumeWorkflow,
    SignalStage,
    StartStage,
    StartWorkflow,
)
from stabilize_celery.models.stage import Phase, StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.persistence.audit import Standing
from stabilize_celery.persistence.rows import waits_in
from stabilize_celery.recovery.findings import Family, Problem, Remedy

#: Messages that take a running stage further, or end it.
_DRIVERS = {
    "StartTask",
    "RunTask",
    "CompleteTask",
    "CompleteStage",
    "ContinueParentStage",
    "JumpToStage",
    "CancelStage",
    "SkipStage",
}
_STARTERS = {"StartStage", "SkipStage", "CancelStage"}
_SUB_WORKFLOW_TYPES = ("sub_workflow", "subworkflow")


def examine(standing: Standing) -> tuple[Counter[str], list[Problem]]:
    """The causes of a workflow that has not ended and of its stages, and what has none."""
    examined = _Examination(standing)
    examined.workflow_level()
    return examined.causes, examined.problems


class _Examination:
    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self.workflow = standing.workflow
        self.family = Family(standing.workflow)
        self.causes: Counter[str] = Counter()
        self.problems: list[Problem] = []
        self.types = {row["type"] for row in standing.messages}
        self.by_stage: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        for row in standing.messages:
            if row["stage_id"] is not None:
                self.by_stage[row["stage_id"], row["generation"]].append(row)
            elif row["type"] == "StartStages":
                for stage_id, generation in row["payload"].get("stages", ()):
                    self.by_stage[stage_id, generation].append({**row, "type": "StartStage"})

    # ------------------------------------------------------------------ the workflow itself

    def workflow_level(self) -> None:
        workflow = self.workflow
        self._check_slot()
        if "CancelWorkflow" in self.types:
            self.causes["is being canceled"] += 1
            return
        if workflow.status is S.NOT_STARTED:
            self._expect("StartWorkflow", "not started, and no message starts it", self._start())
        elif workflow.status is S.PAUSED:
            self.causes["workflow paused"] += 1
        elif workflow.status is S.BUFFERED:
            self._buffered()
        elif self._is_failing():
            self.causes["is being ended"] += 1
            return
        if workflow.start_time is not None:
            self._check_counts()
            for stage in workflow.stages:
                if not stage.status.is_complete:
                    self._stage(stage)

    def _start(self) -> Message:
        return StartWorkflow(
            workflow_id=self.workflow.id, pipeline_config_id=self.workflow.pipeline_config_id
        )

    def _buffered(self) -> None:
        workflow = self.workflow
        if workflow.is_canceled:
            cancel = CancelWorkflow(
                workflow_id=workflow.id, user="system", reason=workflow.cancellation_reason or ""
            )
            self._problem(
                "no message", "it was sent away, and no message cancels it", Remedy.SEND, message=cancel
            )
        elif self.standing.holds_slot:
            resume = ResumeWorkflow(
                workflow_id=workflow.id, pipeline_config_id=workflow.pipeline_config_id, admitted=True
            )
            self._expect("ResumeWorkflow", "it has a slot, and no message lets it go on", resume)
        else:
            self.causes["waits for a slot"] += 1

    def _is_failing(self) -> bool:
        halted = any(
            r["type"] == "CompleteWorkflow" and r["payload"].get("halted") for r in self.standing.messages
        )
        return halted and any(stage.ends_workflow for stage in self.workflow.top_level_stages())

    def _check_slot(self) -> None:
        workflow = self.workflow
        if workflow.pipeline_config_id is None:
            return
        if workflow.status is S.RUNNING and not self.standing.holds_slot:
            self._problem("no slot", "it runs without a slot of its configuration", Remedy.TAKE_SLOT)

    def _check_counts(self) -> None:
        workflow = self.workflow
        top = workflow.top_level_stages()
        count = recount(top)
        running = workflow.status is S.RUNNING
        if running and workflow.live_branches != count.live:
            self._problem(
                "wrong count",
                f"it counts {workflow.live_branches} branches, and has {count.live}",
                Remedy.RECOUNT,
            )
        elif running and count.live == 0:
            self._expect(
                "CompleteWorkflow", "nothing is left to do, and no message ends it", None, Remedy.RECOUNT
            )
        if running and workflow.has_halted != count.halted:
            told = "a stage halted" if count.halted else "no stage halted"
            self._problem("wrong count", f"it does not know that {told}", Remedy.RECOUNT)
        if running or not any(stage.ends_workflow for stage in top):
            self._check_arrivals(top, count.arrivals)
        for stage in count.ready if running else ():
            if not self._sent(stage) & _STARTERS:
                self._problem("no message", "it is ready, and no message starts it", Remedy.RECOUNT, stage)

    def _check_arrivals(self, top: Iterable[StageExecution], arrivals: dict[str, tuple[int, bool]]) -> None:
        for stage in top:
            counted = (stage.open_upstreams, stage.blocked)
            if stage.id not in arrivals or counted == arrivals[stage.id]:
                continue
            still_open, blocked = arrivals[stage.id]
            self._problem(
                "wrong count",
                f"it waits for {_stages(*counted)}, and should wait for {_stages(still_open, blocked)}",
                Remedy.RECOUNT,
                stage,
            )

    # ------------------------------------------------------------------ its stages

    def _stage(self, stage: StageExecution) -> None:
        if stage.status is S.NOT_STARTED:
            self._not_started(stage)
            return
        self._check_timers(stage)
        if stage.status is S.RUNNING:
            self._running(stage)
        elif stage.status is S.SUSPENDED:
            self._suspended(stage)
        elif stage.status is S.PAUSED:
            self._paused(stage)
        else:
            self._puzzle(stage, f"a stage is never {stage.status}")

    def _not_started(self, stage: StageExecution) -> None:
        parent = self.family.by_id.get(stage.parent_stage_id or "")
        if stage.blocked or (stage.is_synthetic and (parent is None or parent.status.is_complete)):
            self.causes["stage never starts"] += 1
        elif stage.is_synthetic and stage.open_upstreams and self.family.wrong_arrivals(stage):
            self._problem(
                "wrong count",
                f"it waits for {_stages(stage.open_upstreams, False)}, and that is not so",
                Remedy.RECOUNT_CHILDREN,
                stage,
            )
        elif self._sent(stage) & _STARTERS:
            self.causes["message"] += 1
        elif stage.open_upstreams or not stage.is_synthetic:
            # What is wrong with those of the workflow itself shows in its counts.
            self.causes["waits for other stages"] += 1
        else:
            start = StartStage(**stage_ids(stage))
            self._problem("no message", "it is ready, and no message starts it", Remedy.SEND, stage, start)

    def _running(self, stage: StageExecution) -> None:
        sent = self._sent(stage)
        running = [task for task in stage.tasks if task.status is S.RUNNING]
        for task in running:
            row = self._message_of(stage, task)
            if row is not None:
                self.causes[_where(row)] += 1
            elif sent & {"JumpToStage", "CancelStage", "SkipStage"}:
                self.causes["message"] += 1
            else:
                self._problem(
                    "no message", f"task {task.name} runs, and no message stands for it", Remedy.DRIVE, stage
                )
        if running:
            return
        kept = self.family.open_children(stage)
        if kept is not None and kept != stage.open_children:
            self._problem(
                "wrong count",
                f"it counts {stage.open_children} synthetic stages, and has {kept}",
                Remedy.RECOUNT_CHILDREN,
                stage,
            )
        elif sent & _DRIVERS:
            self.causes["message"] += 1
        elif self.family.live_children(stage):
            self.causes["waits for its synthetic stages"] += 1
        elif any(task.status in (S.SUSPENDED, S.PAUSED) for task in stage.tasks):
            self._puzzle(stage, "it is RUNNING, and its task is not")
        else:
            self._problem("no message", "it runs, and no message takes it further", Remedy.DRIVE, stage)

    def _suspended(self, stage: StageExecution) -> None:
        task = next((task for task in stage.tasks if task.status is S.SUSPENDED), None)
        sent = self._sent(stage)
        if sent & {"SignalStage", "CancelStage", "SkipStage"}:
            self.causes["message"] += 1
        elif task is None:
            self._puzzle(stage, "it is SUSPENDED, and none of its tasks is")
        elif self._awaited(stage, task):
            self.causes["sub-workflow"] += 1
        else:
            limited = "" if task.waits_until is None else ", with a time limit"
            self.causes[f"waits for a signal{limited}"] += 1

    def _check_timers(self, stage: StageExecution) -> None:
        """The time limits of a stage and of its suspended tasks; a paused workflow sets them when it is resumed."""
        if self.workflow.status is S.PAUSED:
            return
        sent = self._sent(stage)
        timers: list[tuple[datetime | None, str, Message]] = []
        if Phase.ON_FAILURE.value not in stage.planned:
            timers.append((stage.deadline, "it has a time limit", ExpireStage(**stage_ids(stage))))
        for task in stage.tasks:
            if task.status is S.SUSPENDED:
                expire = ExpireSuspension(**stage_ids(stage), task_id=task.id, suspension=task.suspensions)
                timers.append((task.waits_until, "it waits for a signal with a time limit", expire))
        for end, what, message in timers:
            if end is not None and message.type not in sent:
                left = max(0.0, (end - self.standing.now).total_seconds())
                told = f"{what}, and no message stands for the limit"
                self._problem("no message", told, Remedy.SEND, stage, message, left)

    def _awaited(self, stage: StageExecution, task: TaskExecution) -> bool:
        """Whether a task waits for a sub-workflow; one that has ended without anybody hearing of it is a problem."""
        if task.implementing_class not in _SUB_WORKFLOW_TYPES:
            return False
        mine = [
            s
            for s in self.standing.sub_workflows
            if (s.stage_id, s.generation) == (stage.id, stage.generation)
        ]
        if not any(not sub.status.is_complete for sub in mine):
            ended = f"sub-workflow {mine[-1].id} has ended" if mine else "its sub-workflow is gone"
            told: dict[str, Any] = (
                {"workflow_id": mine[-1].id, "status": mine[-1].status.name} if mine else {}
            )
            signal = SignalStage(
                **stage_ids(stage), signal_name="_sub_workflow_ended", signal_data=told, persistent=True
            )
            self._problem("no message", f"{ended}, and no message says so", Remedy.SEND, stage, signal)
        return True

    def _paused(self, stage: StageExecution) -> None:
        if self.workflow.status in (S.PAUSED, S.BUFFERED):
            self.causes["stage paused"] += 1
        else:
            self._problem("not woken", "it is PAUSED, and its workflow is not", Remedy.WAKE, stage)

    # ------------------------------------------------------------------ small parts

    def _sent(self, stage: StageExecution) -> set[str]:
        return {row["type"] for row in self.by_stage.get((stage.id, stage.generation), ())}

    def _message_of(self, stage: StageExecution, task: TaskExecution) -> dict[str, Any] | None:
        for row in self.by_stage.get((stage.id, stage.generation), ()):
            if row["task_id"] == task.id and row["type"] in ("RunTask", "CompleteTask"):
                return row
        return None

    def _expect(
        self, kind: str, otherwise: str, message: Message | None, remedy: Remedy = Remedy.SEND
    ) -> None:
        if kind in self.types:
            self.causes["message"] += 1
        else:
            self._problem("no message", otherwise, remedy, message=message)

    def _puzzle(self, stage: StageExecution, what: str) -> None:
        advice = "skip or cancel the stage, then restart it"
        self._problem("contradiction", what, None, stage, advice=advice)

    def _problem(
        self,
        kind: str,
        what: str,
        remedy: Remedy | None,
        stage: StageExecution | None = None,
        message: Message | None = None,
        delay: float = 0.0,
        advice: str = "",
    ) -> None:
        self.problems.append(
            Problem(
                kind,
                what,
                self.workflow.id,
                None if stage is None else stage.called,
                advice,
                remedy=remedy,
                stage_id=None if stage is None else stage.id,
                message=message,
                delay=delay,
            )
        )


def _where(row: dict[str, Any]) -> str:
    if row["type"] != "RunTask" or row["lease_owner"] is None:
        return "message"
    return "task in a Celery queue" if waits_in(row) else "task at work"


def _stages(still_open: int, blocked: bool) -> str:
    return "nothing any more" if blocked else f"{still_open} stages"
