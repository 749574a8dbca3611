"""What a stage says about the Celery task it runs: its name, arguments and options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stabilize_celery.canvas.references import Stage, resolve, stored
from stabilize_celery.errors import ConfigurationError, InvalidOutputError, InvalidWorkflowError

#: Keys of the stage's own context that are options of ``apply_async``.
OPTIONS = (
    "queue",
    "priority",
    "exchange",
    "routing_key",
    "countdown",
    "eta",
    "expires",
    "time_limit",
    "soft_time_limit",
    "serializer",
    "compression",
    "ignore_result",
    "shadow",
    "headers",
    "retry",
    "retry_policy",
    "link",
)
#: What Celery itself puts into a signature's options: the engine does that work.
_CELERYS_OWN = (
    "task_id",
    "group_id",
    "group_index",
    "chord",
    "chain",
    "root_id",
    "parent_id",
    "reply_to",
    "link_error",
    "stamped_headers",
    "stamps",
    "replaced_task_nesting",
)
#: Everything of the result goes into the output of this name; without it a dict is merged into the outputs.
RESULT_KEY = "result_key"
#: Canvases: the stages whose results come before the arguments, see ``canvas.py``.
RESULTS_OF = "results_of"
#: Stored signatures that are called when the task fails; the stage plans an on-failure stage for each.
ERRBACKS = "errbacks"
#: On such a stage: what failed.
FAILED = "failed"
_SPECIAL = ("chain", "group", "chord")


@dataclass(frozen=True)
class CeleryCall:
    """A call of a Celery task, everything put in."""

    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]

    @classmethod
    def of(cls, stage: Stage) -> CeleryCall:
        """The call that a stage describes.

        Raises:
            ConfigurationError: it names no task.
            UnresolvedReferenceError: an argument refers to something that does not exist.
        """
        own = stage.own_context
        name = own.get("task")
        where = f"stage {stage.called}"
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"{where}: context['task'] names the Celery task, it is {name!r}")
        args = resolve(own.get("args", []), stage, stage.outputs_of, f"{where}: args")
        kwargs = resolve(own.get("kwargs", {}), stage, stage.outputs_of, f"{where}: kwargs")
        if not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
            raise ConfigurationError(f"{where}: args must be a list and kwargs a mapping")
        options = {key: own[key] for key in OPTIONS if own.get(key) is not None}
        return cls(name, [*_results(own, stage), *args], kwargs, options)


def _results(own: Mapping[str, Any], stage: Stage) -> list[Any]:
    """The result that a canvas hands on: what the stages before gave, in the canvas's own shape."""
    if RESULTS_OF not in own:
        return []
    outputs = stage.outputs_of(refs_of(own[RESULTS_OF]))
    return [shaped(own[RESULTS_OF], outputs)]


def refs_of(shape: Any) -> list[str]:
    """The ref_ids in a shape: a ref_id, or a list of shapes."""
    return [shape] if isinstance(shape, str) else [ref for part in shape for ref in refs_of(part)]


def shaped(shape: Any, outputs: Mapping[str, Mapping[str, Any]]) -> Any:
    """Results in the place of the ref_ids of a shape."""
    if isinstance(shape, str):
        return outputs.get(shape, {}).get("result")
    return [shaped(part, outputs) for part in shape]


def call_context(sig: Any, where: str) -> dict[str, Any]:
    """The own context of a stage that runs a signature.

    Raises:
        InvalidWorkflowError: it is no signature of a single task, or cannot be stored.
    """
    if not isinstance(sig, Mapping) or "task" not in sig:
        raise InvalidWorkflowError(
            f"{where}: a Celery signature is wanted, such as send.s(1, to='kim'), not {type(sig).__name__}"
        )
    if sig.get("subtask_type") in _SPECIAL:
        raise InvalidWorkflowError(
            f"{where}: a {sig['subtask_type']} is more than one task; make a workflow of it with"
            " Workflow.from_canvas"
        )
    context = {
        "task": str(sig["task"]),
        "args": stored(sig.get("args") or [], f"{where}: args"),
        "kwargs": stored(sig.get("kwargs") or {}, f"{where}: kwargs"),
    }
    options = sig.get("options") or {}
    errbacks = [
        {**call_context(errback, f"{where}: link_error"), "immutable": bool(errback.get("immutable"))}
        for errback in errbacks_of(options)
    ]
    return {**context, **stored_options(options, where), **({ERRBACKS: errbacks} if errbacks else {})}


def errbacks_of(options: Mapping[str, Any]) -> list[Any]:
    """The signatures in ``link_error`` of a signature's options."""
    found = options.get("link_error") or ()
    return [found] if isinstance(found, Mapping) else list(found)


def stored_options(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options of a signature as keys of a stage's context.

    Raises:
        InvalidWorkflowError: an option that a stage cannot have.
    """
    unknown = sorted(options.keys() - {*OPTIONS, *_CELERYS_OWN})
    if unknown:
        raise InvalidWorkflowError(f"{where}: a stage cannot have the option {', '.join(unknown)}")
    chosen = {key: value for key, value in options.items() if key in OPTIONS and value is not None}
    if "queue" in chosen and not isinstance(chosen["queue"], str):
        chosen["queue"] = chosen["queue"].name
    return chosen


def plain(value: Any) -> Any:
    """A value as Celery's JSON carries it, so that what it restores (times, UUIDs, decimals) it restores here too.

    Raises:
        InvalidOutputError: Celery's JSON cannot carry it.
    """
    from kombu.utils import json as kombu_json

    dumps: Any = kombu_json.dumps

    try:
        return json.loads(dumps(value))
    except (TypeError, ValueError) as error:
        raise InvalidOutputError(f"the result of the Celery task is not JSON: {error}") from error
