"""User tasks that are the work of a stage: what Celery says about them, heard and reported.

In the process that executes a task, its beginning and its end are heard from ``task_prerun`` and ``task_postrun``, the
latter before Celery acknowledges a task that is acknowledged late.  What happens to a task without its process saying
so (it was ended, revoked, or never had a chance) the worker's main process hears from the other signals.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Celery, signals, states
from celery.exceptions import Ignore, Reject, TaskRevokedError, TimeLimitExceeded, WorkerLostError
from kombu.utils.functional import maybe_evaluate

from stabilize_celery.celery_tasks.handover import BegunTask, begin
from stabilize_celery.celery_tasks.task import HEADER, conclude
from stabilize_celery.errors import TaskTimeoutError
from stabilize_celery.messages import MESSAGE_TYPES, TASK_PREFIX
from stabilize_celery.observe.logs import warn_of_stray
from stabilize_celery.persistence.database import is_unavailable
from stabilize_celery.persistence.rows import waits_in
from stabilize_celery.tasks.outcome import Outcome
from stabilize_celery.worker.ending import describe_limit
from stabilize_celery.worker.leases import HAND_BACK_DELAY
from stabilize_celery.worker.limits import failure
from stabilize_celery.worker.task_worker import handed_back

logger = logging.getLogger(__name__)
#: How long a repetition waits for the attempt before it to be reported: it is sent a moment earlier.
_PATIENCE = 3.0
#: The entrypoints that run bodies.
_BODIES = {TASK_PREFIX + name for name, cls in MESSAGE_TYPES.items() if cls.runs_user_code}
#: On a task's request: what was started, or that it was not wanted.
_BEGUN, _REFUSED = "stabilize_begun", "stabilize_refused"
#: In a worker's main process: the requests it has received, by Celery task id.
_received: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def _engine(app: Celery | None) -> Any:
    return getattr(app, "stabilize", None)


def _message_id(headers: Any) -> str | None:
    """The message row whose work a Celery task is, from its headers or its request."""
    header = headers.get(HEADER) if headers is not None else None
    found = header.get("message") if isinstance(header, dict) else None
    return found if isinstance(found, str) else None


# ---------------------------------------------------------------------- in the process that executes the task


@signals.task_prerun.connect
def _on_prerun(task: Any = None, **_: Any) -> None:
    """Take over the lease, or see that the task is not wanted."""
    request = task.request
    message_id = None if request.is_eager else _message_id(request)
    engine = _engine(task.app) if message_id else None
    if engine is None or message_id is None:
        return
    # Until its start is certain, it is refused.
    setattr(request, _REFUSED, True)
    app, celery_id = task.app, request.id

    def stop(by_force: bool) -> None:
        logger.info("Celery task %s is not wanted any more", celery_id)
        app.control.revoke(celery_id, terminate=by_force)

    begun = begin(engine.dispatcher.worker, message_id, stop, _PATIENCE if request.retries else 0.0)
    if begun is None:
        warn_of_stray(
            engine.store.database.identity, f"Celery task {task.name}", request.get(HEADER).get("database")
        )
        return
    setattr(request, _BEGUN, begun)
    setattr(request, _REFUSED, False)


@signals.task_postrun.connect
def _on_postrun(task: Any = None, state: str | None = None, retval: Any = None, **_: Any) -> None:
    """Report how it ended."""
    request = task.request
    begun: BegunTask | None = getattr(request, _BEGUN, None)
    if begun is None:
        return
    setattr(request, _BEGUN, None)
    if state is None:
        retval = sys.exc_info()[1]
    queue = _queue_of(request)
    if state == states.RETRY:
        retries = int(request.retries) + 1
        cause = retval.exc if isinstance(retval.exc, BaseException) else retval
        begun.hand_back(queue, _seconds_until(retval.when), cause, retries, retries=retries)
    elif isinstance(retval, Reject) and retval.requeue:
        begun.hand_back(queue, 0.0, retval, None)
    elif isinstance(retval, BaseException) and state in (None, states.FAILURE) and begun.is_end(retval):
        begun.let_go()
    else:
        ignored = bool(task.ignore_result)
        begun.finish(lambda: conclude(begun.stage, state, retval, ignored))


def _queue_of(request: Any) -> str:
    info = request.delivery_info or {}
    return str(info.get("routing_key") or "")


def _seconds_until(when: Any) -> float:
    when = maybe_evaluate(when)
    if isinstance(when, datetime):
        now = datetime.now(when.tzinfo) if when.tzinfo else datetime.now(UTC).replace(tzinfo=None)
        return max(0.0, (when - now).total_seconds())
    return max(0.0, float(when or 0.0))


def guard_tasks(app: Celery) -> None:
    """Let the app's tasks refuse to run as work that is not wanted: a second delivery, or a canceled stage.

    To be called before a worker's pool starts, because Celery looks for ``before_start`` only then.
    """
    for name, task in app.tasks.items():
        if not name.startswith(TASK_PREFIX):
            _guard(type(task))


def _guard(cls: Any) -> None:
    original = cls.before_start
    if getattr(original, "stabilize_guard", False):
        return

    def before_start(self: Any, task_id: str, args: Any, kwargs: Any) -> None:
        if getattr(self.request, _REFUSED, False):
            raise Ignore("it is not wanted any more, or being done already")
        original(self, task_id, args, kwargs)

    before_start.stabilize_guard = True  # type: ignore[attr-defined]
    cls.before_start = before_start


# ---------------------------------------------------------------------- in the worker's main process


@signals.task_received.connect
def _on_received(request: Any = None, **_: Any) -> None:
    if request.name in _BODIES or _message_id(request.request_dict):
        _received[request.id] = request


def _report(
    app: Celery, message_id: str, pid: Any, outcome_of: Callable[[Any, dict[str, Any]], Outcome | None]
) -> None:
    """Report for a process that cannot, if there is something to report, without keeping the worker's main loop."""
    engine = _engine(app)
    if engine is None:
        return
    owner = f"{socket.gethostname()}:{pid}"

    def report() -> None:
        worker = engine.dispatcher.worker
        try:
            worker.settle_for(message_id, owner, lambda row: outcome_of(worker, row))
        except Exception as error:
            if not is_unavailable(error):
                raise
            logger.warning("the end of message %s is found later: %s", message_id, error)

    threading.Thread(target=report, name="stabilize-report").start()


@signals.task_failure.connect
def _on_failure(sender: Any = None, task_id: str = "", exception: Any = None, **_: Any) -> None:
    """A task's process was lost, or ended for taking too long."""
    request = _received.get(task_id)
    if request is None or getattr(sender.request, _BEGUN, None) is not None:
        return
    if request.name in _BODIES:
        _on_body_failure(sender.app, str(request.args[0]), request.worker_pid, exception)
        return
    message_id = _message_id(request.request_dict)
    if message_id is None:
        return
    if isinstance(exception, WorkerLostError):
        _report(sender.app, message_id, request.worker_pid, lambda w, row: _lost(w, row, exception))
    else:
        _report(sender.app, message_id, request.worker_pid, lambda _w, _row: failure(exception))


def _on_body_failure(app: Celery, message_id: str, pid: Any, exception: BaseException) -> None:
    """The same, of a process that ran the engine's own task: a lost one costs its lease no longer."""
    if isinstance(exception, TimeLimitExceeded):
        limit = describe_limit(0, next(iter(exception.args), None))
        error = TaskTimeoutError(f"Task exceeded {limit}")
        _report(app, message_id, pid, lambda _w, _row: failure(error, unmapped=True))
    elif isinstance(exception, WorkerLostError):

        def end_lease(_worker: Any, row: dict[str, Any]) -> None:
            _engine(app).dispatcher.hand_back(message_id, row["claims"], counted=True)

        _report(app, message_id, pid, end_lease)


def _lost(worker: Any, row: dict[str, Any], error: BaseException) -> Outcome | None:
    """The outcome of an attempt whose process was lost; ``None`` if the process could still hand it back."""
    handed_back = row["send_at"] <= worker.store.now() + timedelta(seconds=HAND_BACK_DELAY)
    return None if handed_back and waits_in(row) is None else worker.lost(row, error)


@signals.task_revoked.connect
def _on_revoked(
    sender: Any = None, request: Any = None, terminated: Any = None, expired: Any = None, **_: Any
) -> None:
    message_id = _message_id(request)
    if message_id is None:
        return
    what = (
        "expired before a worker began it" if expired else "was terminated" if terminated else "was revoked"
    )
    error = TaskRevokedError(f"Celery task {sender.name} {what}")
    received = _received.get(request.id)
    pid = None if received is None else received.worker_pid
    _report(sender.app, message_id, pid, lambda _w, _row: failure(error))


@signals.task_retry.connect
def _on_retry(sender: Any = None, request: Any = None, reason: Any = None, **_: Any) -> None:
    """The main process ended a task because its connection was lost, or its pool process was."""
    if getattr(request, _BEGUN, None) is not None:
        return
    received = _received.get(request.id)
    message_id = _message_id(request)
    if received is None or message_id is None:
        return
    if not received.task.acks_late:
        # A cold shutdown: its process has handed it back, and no broker sends it again.
        return
    queue = _queue_of(request)
    error = WorkerLostError(str(reason or "the worker lost its connection to the broker"))
    delay = _seconds_until(getattr(reason, "when", None))

    def outcome(worker: Any, row: dict[str, Any]) -> Outcome:
        described = worker.lost(row, error).error
        return handed_back(queue, delay, worker.settings, described or {}, str(error))

    _report(sender.app, message_id, received.worker_pid, outcome)


@signals.task_unknown.connect
def _on_unknown(sender: Any = None, message: Any = None, exc: Any = None, **_: Any) -> None:
    """This worker does not know the task; a newer one may."""
    message_id = _message_id(message.headers)
    if message_id is not None:
        name = message.headers.get("task")
        told = f"worker {sender.hostname} has no Celery task {name}"
        _report(sender.app, message_id, None, lambda w, row: w.unknown(f"Celery task {name}", told, row))


@signals.task_rejected.connect
def _on_rejected(sender: Any = None, message: Any = None, exc: Any = None, **_: Any) -> None:
    """This worker could not make a task of the message."""
    message_id = _message_id(message.headers)
    if message_id is not None and exc is not None:
        problem = exc
        _report(sender.app, message_id, None, lambda w, row: w.lost(row, problem))
