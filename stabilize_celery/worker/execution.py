"""One attempt at a task, from the claim to the outcome."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any

from stabilize_celery.crash_points import reach
from stabilize_celery.errors import (
    InvalidOutputError,
    TaskNotFoundError,
    TaskTimeoutError,
    TransientError,
    causes_of,
    describe_error,
    is_transient,
)
from stabilize_celery.jsonable import dumps_json
from stabilize_celery.messages import RunHook, RunTask
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.observe.logs import discreet_logger, hiding
from stabilize_celery.observe.scope import Scope, scoped
from stabilize_celery.observe.tracing import NO_SPAN, RunSpan, Tracer
from stabilize_celery.persistence.database import is_unavailable
from stabilize_celery.persistence.lease_store import Claimed
from stabilize_celery.persistence.outbox import message_of
from stabilize_celery.persistence.snapshots import stage_of
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.redaction import Redactor
from stabilize_celery.settings import Settings
from stabilize_celery.tasks.interface import RetryableTask, Task
from stabilize_celery.tasks.options import redactor_of
from stabilize_celery.tasks.outcome import Attempt, Outcome, Verdict
from stabilize_celery.tasks.registry import TaskRegistry
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import TaskRun, running
from stabilize_celery.worker.handover import launched, own_retries, publish
from stabilize_celery.worker.judge import failure, judge, running_time, stage_time_left, timed_out
from stabilize_celery.worker.leases import Lease, LeaseKeeper

logger = discreet_logger(__name__)

#: Records an outcome: message id, fencing token, attempt; false if the lease was lost.
Settle = Callable[[str, int, Attempt], bool]
#: Results a task may not return: it cannot put itself into these states.
_IMPOSSIBLE = (S.NOT_STARTED, S.PAUSED, S.BUFFERED)


class TaskWorker:
    """Claims tasks, calls their code, and hands the outcome to ``settle``."""

    def __init__(
        self,
        store: WorkflowStore,
        registry: TaskRegistry,
        settings: Settings,
        keeper: LeaseKeeper,
        settle: Settle,
        owner: str,
    ) -> None:
        self.store = store
        self.registry = registry
        self.settings = settings
        self.keeper = keeper
        self.settle = settle
        self.owner = owner
        self.tracer = Tracer(settings) if settings.tracing else None

    def run(self, message_id: str) -> bool:
        """Run the task of a message; returns whether there was anything to do."""
        claimed = self.store.claim(message_id, self.owner, self.settings.lease)
        if claimed is None:
            return False
        message = message_of(claimed.row)
        assert isinstance(message, RunTask | RunHook)
        reach("task.claimed")
        with scoped(Scope(message_id)) as scope:
            scope.turn_to(message)
            _Attempt(self, message, claimed).perform()
        return True

    def limit(self, task: Task, stage: StageExecution) -> timedelta:
        """How long one call may take."""
        own = task.get_execution_timeout(stage)
        limits = [own or timedelta(seconds=self.settings.task_time_limit)]
        left = stage_time_left(stage, self.store.now())
        if left is not None:
            limits.append(left)
        return min(limits)

    def backoff(
        self, task: Task | None, stage: StageExecution | None, running_for: timedelta, attempt: int
    ) -> float:
        """Seconds until the next attempt: 1, 2, 4 ... with jitter, or what a polling task wants."""
        if isinstance(task, RetryableTask) and stage is not None:
            return max(0.0, task.get_backoff_period(stage, running_for).total_seconds())
        shortest, longest = self.settings.retry_delay, self.settings.retry_delay_max
        delay = min(longest, shortest * 2 ** min(attempt - 1, 30)) * random.uniform(0.75, 1.25)
        return float(max(shortest, min(longest, delay)))


class _Attempt:
    """One claimed message; the deadline and the task's own return race to settle it, and one of them does."""

    def __init__(
        self,
        worker: TaskWorker,
        message: RunTask | RunHook,
        claimed: Claimed,
    ) -> None:
        self._worker = worker
        self._settings = worker.settings
        self._row = claimed.row
        self._message = message
        self._stage = claimed.stage
        if isinstance(message, RunHook) and message.stage:
            self._stage = stage_of(message.stage, worker.store.head(message.workflow_id))
        self._problem = claimed.problem
        self._number: int = claimed.row["attempts"]

    def perform(self) -> None:
        outcome = self._refused()
        if outcome is None:
            outcome = self._call()
        if outcome is not None:
            self._finish(outcome)

    def _finish(self, outcome: Outcome) -> bool:
        outcome = self._redacted(outcome)
        attempt = Attempt(
            outcome,
            self._number,
            self._worker.owner,
            self._row["claims"],
            self._row["stage_id"],
            self._may_end_stage(outcome),
        )
        reach("task.returned")
        accepted = self._settle(attempt)
        if accepted and outcome.hand_over is not None:
            publish(self._worker, self._row["id"], outcome.hand_over)
        return accepted

    def _redacted(self, outcome: Outcome) -> Outcome:
        """What it says of a failure without the secrets the stage knows by now: its code may have found more."""
        result = outcome.result
        returned = () if result is None else (result.context, result.outputs)
        return outcome.redacted(lambda: self._redactor(outcome.context_update, *returned))

    def _redactor(self, *more: Any) -> Redactor:
        return redactor_of(self._stage, self._settings.redact_keys, *more)

    def _settle(self, attempt: Attempt) -> bool:
        """Record it, for as long as the lease lasts: a short outage of the database is no reason to do the work again."""
        end = time.monotonic() + self._settings.lease
        while True:
            try:
                return self._worker.settle(self._row["id"], self._row["claims"], attempt)
            except Exception as error:
                if not is_unavailable(error) or time.monotonic() >= end:
                    raise
                logger.warning("the result of message %s cannot be recorded yet: %s", self._row["id"], error)
                time.sleep(min(1.0, self._settings.heartbeat))

    def _may_end_stage(self, outcome: Outcome) -> bool:
        stage, result = self._stage, outcome.result
        return (
            isinstance(self._message, RunTask)
            and stage is not None
            and result is not None
            # What follows one that failed may have to be blocked, however deep, which is another order of locks.
            and result.status in (S.SUCCEEDED, S.SKIPPED)
            and stage.tasks[-1].id == self._message.task_id
        )

    def _refused(self) -> Outcome | None:
        if isinstance(self._message, RunHook):
            if self._stage is None or self._stage.task_by_id(self._message.task_id) is None:
                return Outcome(Verdict.DROP)
            if self._number > self._settings.max_attempts:
                return failure(RuntimeError(f"{self._message.hook} was started too often"))
            return None
        counted = self._number - own_retries(self._stage, self._message.task_id)
        verdict = judge(
            self._message, self._stage, counted, self._settings.max_attempts, self._row["last_error"]
        )
        if verdict is None and self._problem is not None:
            return failure(self._problem)
        return verdict

    def _call(self) -> Outcome | None:
        stage, message = self._stage, self._message
        assert stage is not None
        task = stage.task_by_id(message.task_id)
        assert task is not None
        try:
            implementation = self._worker.registry.resolve(task.implementing_class)
        except TaskNotFoundError as error:
            return failure(error, unmapped=True)
        except Exception as error:
            return failure(error)
        if isinstance(message, RunHook):
            return self._within(
                implementation,
                stage,
                task,
                timedelta(seconds=self._settings.hook_time_limit),
                lambda: self._hook(implementation, message.hook, stage),
            )
        late = self._too_late(implementation, stage, task)
        if late is not None:
            return late
        limit = self._worker.limit(implementation, stage)
        return self._within(implementation, stage, task, limit, lambda: implementation.execute(stage))

    def _too_late(self, implementation: Task, stage: StageExecution, task: TaskExecution) -> Outcome | None:
        now = self._worker.store.now()
        left = stage_time_left(stage, now)
        if left is not None and left <= timedelta():
            return self._timed_out(implementation, stage, task, "exceeded its stage's stageTimeoutMs")
        if isinstance(implementation, RetryableTask):
            total = implementation.get_dynamic_timeout(stage)
            if running_time(task, now) > total:
                return self._timed_out(implementation, stage, task, f"exceeded total timeout ({total})")
        return None

    def _timed_out(
        self, implementation: Task, stage: StageExecution, task: TaskExecution, what: str
    ) -> Outcome:
        replacement = None
        try:
            replacement = implementation.on_timeout(stage)
        except Exception:
            logger.exception("on_timeout of task %s failed", task.name, extra=hiding(self._redactor()))
        return self._checked(timed_out(task, what, replacement), stage)

    def _within(
        self,
        implementation: Task,
        stage: StageExecution,
        task: TaskExecution,
        limit: timedelta,
        call: Callable[[], Any],
    ) -> Outcome | None:
        """Call user code within a time limit; ``None`` if the deadline has settled it already."""
        run = TaskRun(
            stage.execution.id,
            stage.id,
            task.id,
            stage.generation,
            self._number,
            int(self._row["claims"]),
            clock=self._worker.store.clock,
            output_limit=self._settings.max_output_bytes,
        )

        def expire() -> None:
            what = f"timed out after {limit.total_seconds():g}s"
            if isinstance(self._message, RunHook):
                self._finish(failure(TaskTimeoutError(f"{self._message.hook} {what}", task_name=task.name)))
            else:
                self._finish(self._timed_out(implementation, stage, task, what))
            run.interrupt()

        lease = Lease(
            self._row["id"], run.fencing_token, run, time.monotonic() + limit.total_seconds(), expire
        )
        with self._worker.keeper.keep(lease), self._inside(run, stage, task) as span:
            outcome = self._redacted(self._outcome(implementation, stage, task, call))
            span.ended(None if lease.expired else outcome)
        return None if lease.expired else outcome

    @contextmanager
    def _inside(self, run: TaskRun, stage: StageExecution, task: TaskExecution) -> Iterator[RunSpan]:
        """What user code finds around itself: its run, what logs say of it, and its span."""
        scope = Scope(
            self._row["id"],
            self._message.type,
            stage.execution.id,
            stage.execution.name,
            stage.id,
            stage.ref_id,
            task.id,
            task.implementing_class,
            run.attempt,
        )
        hook = self._message.hook if isinstance(self._message, RunHook) else ""
        tracer = self._worker.tracer
        traced = nullcontext(NO_SPAN) if tracer is None else tracer.run(run, stage, task, hook)
        with running(run), scoped(scope), traced as span:
            yield span

    def _outcome(
        self, implementation: Task, stage: StageExecution, task: TaskExecution, call: Callable[[], Any]
    ) -> Outcome:
        try:
            result = call()
            if not isinstance(result, TaskResult) and not _is_hook(self._message):
                raise TypeError(
                    f"execute of task {task.name} returned {type(result).__name__}; return a TaskResult"
                )
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return self._raised(implementation, stage, task, error)
        if not isinstance(result, TaskResult):
            result = TaskResult.success()
        return self._checked(self._returned(implementation, stage, task, result), stage)

    def _hook(self, implementation: Task, hook: str, stage: StageExecution) -> TaskResult | None:
        result = getattr(implementation, hook)(stage)
        return result if isinstance(result, TaskResult) else None

    def _returned(
        self, implementation: Task, stage: StageExecution, task: TaskExecution, result: TaskResult
    ) -> Outcome:
        if result.status is S.REDIRECT and result.target_stage_ref_id is None:
            return failure(ValueError("REDIRECT result without target_stage_ref_id"))
        target: Any = result.target_stage_ref_id
        if not isinstance(target, str | None):
            kind = type(target).__name__
            return failure(TypeError(f"the target of a jump is a ref_id, not of type {kind}"))
        if result.status in _IMPOSSIBLE:
            return failure(ValueError(f"task {task.name} returned the status {result.status}"))
        if result.hand_over is not None:
            return launched(result.hand_over, self._settings)
        if result.status is not S.RUNNING:
            told = result.context.get("exception") if result.status.is_failure else None
            reason = str(result.context.get("error", ""))[:500]
            return Outcome(Verdict.RETURNED, result, told if isinstance(told, dict) else None, reason=reason)
        delay = result.retry_after
        if delay is None:
            delay = self._settings.poll_delay
            if isinstance(implementation, RetryableTask):
                so_far = running_time(task, self._worker.store.now())
                delay = implementation.get_backoff_period(stage, so_far).total_seconds()
        return Outcome(Verdict.RETURNED, result, delay=max(0.0, delay))

    def _raised(
        self, implementation: Task, stage: StageExecution, task: TaskExecution, error: BaseException
    ) -> Outcome:
        transient = is_transient(error)
        described = describe_error(error, transient)
        update = _context_update(error)
        if transient and self._number < self._settings.max_attempts:
            so_far = running_time(task, self._worker.store.now())
            delay = self._worker.backoff(implementation, stage, so_far, self._number)
            retry_after = getattr(error, "retry_after", None)
            if retry_after is not None:
                delay = max(0.0, float(retry_after))
            outcome = Outcome(
                Verdict.RETRY,
                error=described,
                delay=delay,
                context_update=update,
                reason=f"{type(error).__name__}: {error}"[:500],
            )
            return self._checked(outcome, stage)
        if logger.isEnabledFor(logging.INFO):
            told = self._redactor(update).text(described["details"]["traceback"])
            logger.info("task %s of stage %s failed\n%s", task.name, stage.ref_id, told)
        return self._checked(failure(error, described, **update), stage)

    def _checked(self, outcome: Outcome, stage: StageExecution) -> Outcome:
        """Refuse what cannot be stored, naming the key."""
        limit = self._settings.max_output_bytes
        result = outcome.result
        try:
            if result is not None:
                if result.outputs:
                    dumps_json(result.outputs, f"stage {stage.ref_id}: outputs", limit)
                if result.context:
                    dumps_json(result.context, f"stage {stage.ref_id}: context", limit)
            if outcome.context_update:
                dumps_json(outcome.context_update, f"stage {stage.ref_id}: context_update", limit)
        except InvalidOutputError as error:
            return replace(failure(error), unmapped=outcome.unmapped)
        return outcome


def _is_hook(message: RunTask | RunHook) -> bool:
    return isinstance(message, RunHook)


def _context_update(error: BaseException | None) -> dict[str, Any]:
    for cause in causes_of(error):
        if isinstance(cause, TransientError) and cause.context_update:
            return dict(cause.context_update)
    return {}
