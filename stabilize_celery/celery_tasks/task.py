"""The task type ``celery``: any Celery task of the deployment, unchanged, as the work of a stage.

The user's task is sent as itself, to its own queue and with its own options, carrying a header that names the message
row whose work it is.  The process that executes it takes over the row's lease and reports the result
(``celery_tasks/signals.py``); no result backend is involved.  In a process without a broker the task is called in
place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stabilize_celery.canvas.call import (
    ERRBACKS,
    FAILED,
    RESULT_KEY,
    RESULTS_OF,
    CeleryCall,
    plain,
    refs_of,
    shaped,
)
from stabilize_celery.dag.graph import StageGraphBuilder
from stabilize_celery.errors import (
    ConfigurationError,
    InvalidOutputError,
    PermanentError,
    TransientError,
    describe_error,
    error_text,
)
from stabilize_celery.models.stage import StageExecution, SyntheticStageOwner
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.stages.builder import StageDefinitionBuilder
from stabilize_celery.suggestions import did_you_mean
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.result import HandOver, TaskResult
from stabilize_celery.tasks.run import current_run

if TYPE_CHECKING:
    from celery import Celery


#: The message header that says whose work a Celery task is.
HEADER = "stabilize"
#: What Celery's own ``Task.replace`` says when it ends the task it replaces.
_REPLACED = "Replaced by new task"


class CeleryTask(Task):
    """Sends a Celery task to the workers, or calls it in place.

    Args:
        app: the app whose workers do the work; without one the task is looked for in the apps of this process.
        in_place: call the app's tasks here, and leave its workers alone.
    """

    def __init__(self, app: Celery | None = None, *, in_place: bool = False) -> None:
        self._app = app
        self._in_place = in_place

    def execute(self, stage: StageExecution) -> TaskResult:
        call = CeleryCall.of(stage)
        if self._app is None or self._in_place or self._app.conf.task_always_eager:
            app = _app_with(call.task, self._app)
            return _call_in_place(app, _told(app, call, stage), stage)
        call = _told(self._app, call, stage)
        return TaskResult.handed_over(_hand_over(self._app, call, stage))

    def on_cancel(self, stage: StageExecution) -> TaskResult | None:
        run = current_run()
        # A stage that was reset is in a later generation by now, whose task is wanted.
        if self._app is None or self._in_place or run is None:
            return None
        if stage.status is S.CANCELED:
            self._app.control.revoke(celery_task_id(run.task_id, run.generation))
        return None


def celery_task_id(task_id: str, generation: int) -> str:
    """The id under which Celery knows the work of a task: the same however often it is sent."""
    return f"{task_id}-{generation}"


def _told(app: Celery, call: CeleryCall, stage: StageExecution) -> CeleryCall:
    """For an errback: what failed, in the form that its task takes.

    Celery gives the failed task's id to a task of one parameter, and request, error and traceback to one of more.
    """
    failed = stage.own_context.get(FAILED)
    if not isinstance(failed, dict):
        return call
    from celery.utils.functional import arity_greater

    header = getattr(app.tasks.get(call.task), "__header__", None)
    if header is None or not arity_greater(header, 1):
        return replace(call, args=[failed["id"], *call.args])
    details = (stage.context.get("exception") or {}).get("details", {})
    return replace(call, args=[failed, details.get("error"), details.get("traceback"), *call.args])


def _hand_over(app: Celery, call: CeleryCall, stage: StageExecution) -> HandOver:
    run = current_run()
    assert run is not None
    task_id = celery_task_id(run.task_id, run.generation)
    task = app.tasks.get(call.task)
    defaults = {} if task is None else task._get_exec_options()
    options = {key: value for key, value in {**defaults, **call.options}.items() if value is not None}
    # A task made of a class has none.
    header = getattr(task, "__header__", None)
    if header is not None and task.typing:
        # What Celery would refuse now and at every later try.
        header(*call.args, **call.kwargs)
    routed = app.amqp.router.route(dict(options), call.task, call.args, call.kwargs, task)
    queue = getattr(routed.get("queue"), "name", routed.get("queue")) or ""
    options = {**routed, "retries": _retries_so_far(stage, run.task_id)}
    headers = {**(options.pop("headers", None) or {})}

    def publish(work: Mapping[str, str]) -> None:
        headers[HEADER] = dict(work)
        send = app.send_task if task is None else task.apply_async
        target = (call.task,) if task is None else ()
        try:
            send(
                *target,
                call.args,
                call.kwargs,
                task_id=task_id,
                headers=headers,
                add_to_parent=False,
                **options,
            )
        except _connection_errors(app) as error:
            raise TransientError(f"the broker is away: {error}") from error

    delay = float(options.get("countdown") or 0.0)
    return HandOver(queue, publish, delay, {"celery_task": call.task, "celery_task_id": task_id})


def _connection_errors(app: Celery) -> tuple[type[BaseException], ...]:
    """What is raised when the broker cannot be reached, which no message can be blamed for."""
    from kombu.exceptions import OperationalError

    return (OperationalError, *app.connection_for_write().connection_errors)


def _retries_so_far(stage: StageExecution, task_id: str) -> int:
    """Celery's own retries count on when a worker is lost between them."""
    task = stage.task_by_id(task_id)
    last = (task.last_error if task is not None else None) or {}
    return int(last.get("details", {}).get("own_retries", 0))


def _app_with(name: str, app: Celery | None) -> Celery:
    """The app that knows a task.

    Raises:
        ConfigurationError: no app of this process does.
    """
    from celery import _state, current_app

    known: set[str] = set()
    candidates = [app] if app is not None else [current_app._get_current_object(), *_state._get_active_apps()]
    for candidate in candidates:
        if name in candidate.tasks:
            return candidate
        known.update(candidate.tasks)
    raise ConfigurationError(
        f"no Celery app in this process has a task {name!r}{did_you_mean(name, known)};"
        " import the module that defines it"
    )


def _call_in_place(app: Celery, call: CeleryCall, stage: StageExecution) -> TaskResult:
    run = current_run()
    task_id = None if run is None else celery_task_id(run.task_id, run.generation)
    links = {key: call.options.get(key) for key in ("link", "link_error")}
    args, kwargs = _restored([call.args, call.kwargs])
    result = app.tasks[call.task].apply(args, kwargs, task_id=task_id, throw=False, **links)
    return conclude(stage, result.state, result.result, ignored=bool(app.tasks[call.task].ignore_result))


def conclude(stage: StageExecution, state: str | None, value: Any, ignored: bool = False) -> TaskResult:
    """What a Celery task that has ended means for its stage.

    Args:
        stage: the stage.
        state: Celery's name for how it ended.
        value: what it returned or raised.
        ignored: its result is not meant to be seen, so one that is not JSON is no failure.

    Raises:
        TransientError: it was raised by the task.
    """
    if state == "SUCCESS":
        return TaskResult.success(outputs=_outputs(stage, value, ignored))
    if state == "IGNORED" and str(value) != _REPLACED:
        return TaskResult.skipped()
    if isinstance(value, TransientError):
        raise value
    return _failed(_error(stage, state, value))


def _error(stage: StageExecution, state: str | None, value: Any) -> BaseException:
    name = stage.own_context.get("task")
    if state == "IGNORED":
        return PermanentError(
            f"Celery task {name} replaced itself with another, whose result a stage cannot follow;"
            " make the other one a stage"
        )
    if state == "REJECTED":
        return PermanentError(f"Celery task {name} rejected its message: {getattr(value, 'reason', value)}")
    if isinstance(value, SystemExit):
        return PermanentError(f"Celery task {name} ended its process: exit code {value.code}")
    if isinstance(value, BaseException):
        return value
    return PermanentError(f"Celery task {name} ended {state or 'without a result'}: {value}")


def _failed(error: BaseException) -> TaskResult:
    described = describe_error(error, transient=False)
    return TaskResult(S.TERMINAL, {"exception": described, "error": error_text(error)})


def _outputs(stage: StageExecution, value: Any, ignored: bool) -> dict[str, Any]:
    key = stage.own_context.get(RESULT_KEY)
    if key == "":
        return {}
    # A time or a decimal is a mapping only in the form in which it is stored.
    merged = isinstance(value, dict)
    try:
        value = plain(value)
    except InvalidOutputError:
        if ignored:
            return {}
        raise
    if key:
        return {str(key): value}
    if isinstance(value, dict) and (merged or "__type__" not in value):
        return value
    return {} if value is None else {"result": value}


def _restored(value: Any) -> Any:
    """What a worker would make of a value that Celery's JSON carries."""
    from kombu.utils import json as kombu_json

    loads: Any = kombu_json.loads
    text = json.dumps(value)
    return loads(text) if '"__type__"' in text else value


class CeleryResultsTask(Task):
    """Gives the output ``result``: the results of the stages that the option ``results_of`` names."""

    def execute(self, stage: StageExecution) -> TaskResult:
        shape = stage.own_context[RESULTS_OF]
        return TaskResult.success(outputs={"result": shaped(shape, stage.outputs_of(refs_of(shape)))})


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
