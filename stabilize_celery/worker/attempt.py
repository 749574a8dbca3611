"""One attempt at a task, from the claim to the outcome."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from typing import Any

from stabilize_celery.clock import check_seconds
from stabilize_celery.crash_points import ProcessDiedError, reach
from stabilize_celery.errors import (
    TaskNotFoundError,
    TaskTimeoutError,
    describe_error,
    is_transient,
    named_text,
    transient_marks,
)
from stabilize_celery.messages import Message, RunHook, RunTask
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.observe import Ended, watched
from stabilize_celery.observe.logs import SCOPE, Scope, discreet_logger, hiding, scoped
from stabilize_celery.persistence.database import is_unavailable, patiently
from stabilize_celery.persistence.leases import Claimed
from stabilize_celery.persistence.loading import lend, stage_of
from stabilize_celery.persistence.rows import last_failure
from stabilize_celery.redaction import Redactor, redactor_of
from stabilize_celery.tasks.interface import RetryableTask, Task
from stabilize_celery.tasks.outcome import LONGEST_REASON, Attempt, Outcome, Verdict
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import HandBackError, TaskRun, running
from stabilize_celery.worker.ending import ENDING
from stabilize_celery.worker.failures import failure_to_tell
from stabilize_celery.worker.leases import Lease
from stabilize_celery.worker.limits import (
    failure,
    judge,
    period,
    running_time,
    stage_time_left,
    storable,
)
from stabilize_celery.worker.task_worker import TaskWorker, launched, own_retries

logger = discreet_logger(__name__)

#: Told of an attempt that failed for good; where that happened is its ``stabilize_scope``.
OnFailure = Callable[[Exception], None]
#: Results a task may not return: it cannot put itself into these states.
_IMPOSSIBLE = (S.NOT_STARTED, S.PAUSED, S.BUFFERED)


def run_attempt(
    worker: TaskWorker, message: Message, claimed: Claimed, on_failure: OnFailure | None = None
) -> None:
    """Run the task of a message.

    Args:
        worker: of this process.
        message: what the row says.
        claimed: the row, and its stage.
        on_failure: told of a failure once it is recorded; without it, it is logged.
    """
    assert isinstance(message, RunTask | RunHook)
    reach("task.claimed")
    with scoped(Scope(claimed.row["id"])) as scope:
        scope.turn_to(message)
        attempt = RunningAttempt(worker, message, claimed)
        attempt.perform()
        if attempt.failed is None:
            return
        if on_failure is not None:
            on_failure(attempt.failed)
            return
        extra = hiding(worker.settings.redact_keys)
        logger.error(
            "%s failed", getattr(attempt.failed, SCOPE, "a task"), exc_info=attempt.failed, extra=extra
        )


class RunningAttempt:
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
        if self._stage is not None:
            lend(self._stage, lambda id: patiently(lambda: worker.store.retrieve(id), worker.settings.lease))
        self._problem = claimed.problem
        self._number: int = claimed.row["attempts"]
        #: How it failed, once that is recorded.
        self.failed: Exception | None = None
        #: That it took too long is recorded.
        self._expired = threading.Event()
        #: Once it has been made, which runs code of the user's.
        self._implementation: Task | None = None
        #: The time limit that counts is that of the stage, to whose failures its policy applies.
        self._by_stage = False
        #: What the user's code was left with because its process is being ended.
        self._ended_by: BaseException | None = None

    @property
    def stage(self) -> StageExecution:
        """The stage it belongs to."""
        assert self._stage is not None
        return self._stage

    @cached_property
    def _task(self) -> TaskExecution:
        task = self.stage.task_by_id(self._message.task_id)
        assert task is not None
        return task

    def perform(self) -> None:
        outcome = self._refused()
        if outcome is None:
            outcome = self._call()
        if outcome is not None:
            self._finish(outcome)
        if not isinstance(self._ended_by, Exception | HandBackError | None):
            raise self._ended_by

    def _finish(self, outcome: Outcome) -> bool:
        if outcome.verdict is Verdict.HANDED_BACK:
            logger.warning("message %s is handed back: its worker is being ended", self._row["id"])
            self._worker.hand_back(self._row["id"], self._row["claims"])
            return True
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
        if accepted:
            self._tell(outcome)
        if accepted and outcome.hand_over is not None:
            self._worker.publish(self._row["id"], outcome.hand_over)
        return accepted

    def _tell(self, outcome: Outcome) -> None:
        if outcome.verdict is Verdict.RETRY:
            where, reason = self._scope(), outcome.reason
            logger.warning("%s failed and is repeated in %.3g s: %s", where, outcome.delay, reason)
        elif outcome.verdict is Verdict.RETURNED and outcome.result and outcome.result.status.is_failure:
            self.failed = failure_to_tell(outcome, outcome.result.status, self._scope())

    def _redacted(self, outcome: Outcome) -> Outcome:
        """What it says of a failure without the secrets the stage knows by now: its code may have found more."""
        result = outcome.result
        returned = () if result is None else (result.context, result.outputs)
        try:
            return outcome.redacted(lambda: self._redactor(outcome.context_update, *returned))
        except Exception as problem:
            # A body left its stage in a state in which its secrets cannot be looked for: nothing is told of them.
            logger.warning("the error of message %s is not shown", self._row["id"], exc_info=problem)
            kind = (outcome.error or {}).get("details", {}).get("type", "an error")
            told = f"{kind}; its text is not shown, because the stage was left unreadable"
            return replace(failure(RuntimeError(told), unmapped=outcome.unmapped), clean=True)

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
            and bool(stage.tasks)
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
            self._message, self._stage, counted, self._settings.max_attempts, last_failure(self._row)
        )
        if verdict is None and self._problem is not None:
            return failure(self._problem)
        return verdict

    def _call(self) -> Outcome | None:
        """Run the user's code under the lease; ``None`` if the deadline has settled it already."""
        stage, task = self.stage, self._task
        run = TaskRun(
            stage.execution.id,
            stage.id,
            task.id,
            stage.generation,
            self._number,
            int(self._row["claims"]),
            clock=self._worker.store.clock,
            output_limit=self._settings.max_output_bytes,
            is_ending=ENDING.awaited,
        )
        # What comes before the call, such as the constructor of the task, has the time of a call.
        lease = Lease(self._row["id"], run.fencing_token, run, math.inf, lambda: self._expire(lease))
        lease.limit_to(self._settings.task_time_limit)
        clock = self._worker.store.clock
        with clock.keeping(), self._worker.keeper.keep(lease), self._inside(run, stage, task) as ended:
            outcome = self._redacted(self._outcome(lambda: self._execute(lease)))
            if lease.stopped:
                outcome = Outcome(Verdict.HANDED_BACK)
            if ended is not None:
                ended(None if lease.expired else outcome)
        if lease.expired:
            # Then that is what is told of this attempt, also if the code came back by itself meanwhile.
            self._expired.wait(self._settings.lease)
            return None
        return outcome

    def _execute(self, lease: Lease) -> Any:
        """Everything of the user's that a call needs: constructor, hooks, body."""
        stage, message = self.stage, self._message
        try:
            implementation = self._resolved()
        except TaskNotFoundError as error:
            if self._worker.registry.is_excluded(self._task.implementing_class):
                return failure(error, unmapped=True)
            return self._worker.unknown(f"task type {self._task.implementing_class!r}", str(error), self._row)
        if isinstance(message, RunHook):
            self._worker.keeper.limit(lease, self._settings.hook_time_limit)
            result = getattr(implementation, message.hook)(stage)
            # on_cleanup has nothing to return, so whatever that is, it is no mistake.
            nothing = not isinstance(result, TaskResult) if message.hook == "on_cleanup" else result is None
            return TaskResult.success() if nothing else result
        late = self._too_late()
        if late is not None:
            return late
        limit, left = (
            self._worker.limit(implementation, stage),
            stage_time_left(stage, self._worker.store.now()),
        )
        self._by_stage = left is not None and left < limit
        self._worker.keeper.limit(
            lease, (left if left is not None and left < limit else limit).total_seconds()
        )
        if lease.expired:
            # Its hooks took all the time there was; that is settled already.
            return TaskResult.running()
        return implementation.execute(stage)

    def _resolved(self) -> Task:
        if self._implementation is None:
            self._implementation = self._worker.registry.resolve(self._task.implementing_class)
        return self._implementation

    def _expire(self, lease: Lease) -> None:
        """The time is over: settle it from here, whatever its code does."""
        what = f"timed out after {lease.limit:g}s"
        message = self._message
        try:
            if isinstance(message, RunHook):
                error = TaskTimeoutError(f"{message.hook} {what}", task_name=self._task.name)
                self._finish(failure(error))
            else:
                self._finish(self._outcome(lambda: self._timed_out(what)))
        finally:
            self._expired.set()
        lease.run.interrupt()

    def _too_late(self) -> Outcome | None:
        stage, now = self.stage, self._worker.store.now()
        left = stage_time_left(stage, now)
        implementation = self._resolved()
        if left is not None and left <= timedelta():
            self._by_stage = True
            return self._timed_out("exceeded its stage's stageTimeoutMs")
        if isinstance(implementation, RetryableTask):
            total = period(implementation.get_dynamic_timeout(stage), "get_dynamic_timeout", stage)
            if running_time(self._task, now) > total:
                return self._timed_out(f"exceeded total timeout ({total})")
        return None

    def _timed_out(self, what: str) -> Outcome:
        error = TaskTimeoutError(f"Task {what}", task_name=self._task.name)
        replacement = None
        if self._implementation is not None:
            try:
                replacement = self._implementation.on_timeout(self.stage)
                if not isinstance(replacement, TaskResult | None):
                    raise TypeError(
                        f"on_timeout of task {self._task.name} returned {type(replacement).__name__}; "
                        "return a TaskResult or None"
                    )
            except Exception as problem:
                # Both are told: what its hook raised is why nothing took the place of the failure.
                problem.__cause__ = problem.__cause__ or error
                return failure(problem, unmapped=not self._by_stage)
        if replacement is None:
            return failure(error, unmapped=not self._by_stage)
        outcome = self._returned(replacement)
        return outcome if outcome.error else replace(outcome, reason=f"on_timeout after {what}")

    @contextmanager
    def _inside(self, run: TaskRun, stage: StageExecution, task: TaskExecution) -> Iterator[Ended | None]:
        """What user code finds around itself: its run, what logs say of it, and what plugins enter."""
        hooks = self._worker.attempt_hooks
        called = self._message.hook if isinstance(self._message, RunHook) else ""
        entered = watched(hooks, run, stage, task, called) if hooks else nullcontext()
        with running(run), scoped(self._scope()), entered as ended:
            yield ended

    def _scope(self) -> Scope:
        message, stage = self._message, self._stage
        scope = Scope(self._row["id"], attempt=self._number)
        scope.turn_to(message)
        task = None if stage is None else stage.task_by_id(message.task_id)
        if stage is not None and task is not None:
            scope.workflow, scope.stage = stage.execution.name, stage.ref_id
            scope.task = task.implementing_class
        return scope

    def _outcome(self, call: Callable[[], Any]) -> Outcome:
        """The outcome of user code: whatever it raises is the failure of this task, with its own text."""
        try:
            with ENDING.released():
                result = call()
            if isinstance(result, Outcome):
                return self._storable(result)
            if not isinstance(result, TaskResult):
                called = self._message.hook if isinstance(self._message, RunHook) else "execute"
                raise TypeError(
                    f"{called} of task {self._task.name} returned {type(result).__name__}; return a TaskResult"
                )
            return self._storable(self._returned(result))
        except ProcessDiedError:
            raise
        except BaseException as error:
            return self._cut_short(error) or self._raised(error)

    def _cut_short(self, error: BaseException) -> Outcome | None:
        """The outcome of a body that was ended by its pool; ``None`` if the error is its own."""
        is_end = ENDING.is_end(error)
        if is_end:
            self._ended_by = error
        limit = ENDING.limit_exceeded(error)
        if limit is not None:
            return failure(
                TaskTimeoutError(f"Task exceeded {limit}", task_name=self._task.name), unmapped=True
            )
        return Outcome(Verdict.HANDED_BACK) if is_end else None

    def _returned(self, result: TaskResult) -> Outcome:
        target: Any = result.target_stage_ref_id
        if result.status is S.REDIRECT and target is None:
            return failure(ValueError("REDIRECT result without target_stage_ref_id"))
        if not isinstance(target, str | None):
            kind = type(target).__name__
            return failure(TypeError(f"the target of a jump is a ref_id, not of type {kind}"))
        if result.status in _IMPOSSIBLE:
            return failure(ValueError(f"task {self._task.name} returned the status {result.status}"))
        if result.hand_over is not None:
            return launched(result.hand_over, self._settings)
        if result.status is not S.RUNNING:
            told = result.context.get("exception") if result.status.is_failure else None
            reason = str(result.context.get("error", ""))[:500]
            return Outcome(Verdict.RETURNED, result, told if isinstance(told, dict) else None, reason=reason)
        delay = result.retry_after
        if delay is None:
            delay = self._backoff_of_poll(self._settings.poll_delay)
        return Outcome(Verdict.RETURNED, result, delay=delay)

    def _backoff_of_poll(self, otherwise: float) -> float:
        """Seconds that a polling task wants to wait; ``otherwise`` those of any other task."""
        implementation = self._implementation
        if not isinstance(implementation, RetryableTask):
            return otherwise
        so_far = running_time(self._task, self._worker.store.now())
        wanted = implementation.get_backoff_period(self.stage, so_far)
        seconds = period(wanted, "get_backoff_period", self.stage).total_seconds()
        check_seconds(seconds, f"get_backoff_period of stage {self.stage.ref_id}")
        return seconds

    def _raised(self, error: BaseException) -> Outcome:
        transient = is_transient(error)
        described = describe_error(error, transient)
        update = _context_update(error)
        if transient and self._number < self._settings.max_attempts:
            try:
                reason, delay = named_text(error)[:LONGEST_REASON], self._delay_after(error)
                retry = Outcome(
                    Verdict.RETRY, error=described, delay=delay, context_update=update, reason=reason
                )
                return self._storable(retry)
            except ProcessDiedError:
                raise
            except BaseException as problem:
                # It asks for a delay that is none, or its hook raised.
                error, described = problem, describe_error(problem, transient=False)
        return self._storable(failure(error, described, context=update))

    def _storable(self, outcome: Outcome) -> Outcome:
        return storable(outcome, f"stage {self.stage.ref_id}", self._settings.max_output_bytes)

    def _delay_after(self, error: BaseException) -> float:
        for mark in transient_marks(error):
            if mark.retry_after is not None:
                # It may have been set after the error was made.
                check_seconds(mark.retry_after, f"retry_after of {type(mark).__name__}")
                return float(mark.retry_after)
        return self._backoff_of_poll(self._worker.backoff(self._number))


def _context_update(error: BaseException) -> dict[str, Any]:
    """What the error wants remembered; of several the outermost wins."""
    update: dict[str, Any] = {}
    for mark in transient_marks(error):
        if isinstance(mark.context_update, Mapping):
            update = {**mark.context_update, **update}
    return update
