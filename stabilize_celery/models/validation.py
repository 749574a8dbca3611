"""What is refused when a workflow is created, so that nothing of it can go wrong halfway through a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from stabilize_celery.clock import check_milliseconds
from stabilize_celery.errors import (
    ExpressionError,
    InvalidStageGraphError,
    InvalidWorkflowError,
    UnknownReducerError,
)
from stabilize_celery.expressions import Expression, parse
from stabilize_celery.json_values import ensure_json, is_storable
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.reducers import known_reducers, unknown_reducer
from stabilize_celery.suggestions import did_you_mean
from stabilize_celery.tasks.shell import check_command
from stabilize_celery.topology import topological_order


def enabling_condition(own_context: Mapping[str, Any]) -> Expression | bool:
    """What ``stageEnabled`` says: a fixed answer, or a condition on what the stage sees (behaviour, 3.5).

    Nothing, ``null`` and ``{}`` (which Orca's editor writes) mean that the stage is enabled.

    Raises:
        ExpressionError: the condition cannot be parsed.
        InvalidWorkflowError: it is neither true or false nor
            ``{"type": "expression", "expression": "..."}``.
    """
    option = own_context.get("stageEnabled")
    if option is None or option == {}:
        return True
    if isinstance(option, bool):
        return option
    if isinstance(option, Mapping) and option.get("type") == "expression" and "expression" in option:
        return parse(option["expression"])
    raise InvalidWorkflowError(
        'stageEnabled must be true, false or {"type": "expression", "expression": "..."}, not '
        f"{repr(option)[:200]}"
    )


#: Bytes (as UTF-8) of what is a key somewhere: PostgreSQL's indexes take rows of 2,704.  An application stands in one index
#: with a dedup_key, a ref_id with an id, and without a config id that is made of application and name.
MOST_BYTES = {"application": 600, "name": 1000, "dedup_key": 2000, "pipeline_config_id": 2000, "ref_id": 2000}
#: Characters of an id.
ID_LENGTH = 26


def validate_workflow(workflow: Workflow) -> None:
    """Check a workflow that has not started, then number its stages and mark their first and last tasks.

    The order of the checks of the graph is that of the behaviour contract, section 1.  Sets for every stage
    ``rank`` (``[place in the topological order, 0]``), ``upstream_count`` and ``open_upstreams``; for every
    task ``stage_start`` and ``stage_end``.

    Raises:
        InvalidStageGraphError: ``no_stages:``, ``synthetic_stage:``, ``empty_ref:``, ``duplicate_ref:``,
            ``duplicate_id:``, ``self_edge:`` or ``unknown_ref:``.
        CircularDependencyError: stages that wait for each other.
        UnknownReducerError: ``output_reducers`` names no registered reducer.
        ExpressionError: a condition that cannot be parsed.
        InvalidWorkflowError: anything else that cannot be run or stored.
    """
    _check_refs(workflow)
    requires = {stage.ref_id: stage.requisite_stage_ref_ids for stage in workflow.stages}
    for stage in workflow.stages:
        _check_edges(stage, requires)
    order = topological_order(requires)
    _check_workflow(workflow)
    for stage in workflow.stages:
        check_stage(stage)
    _number(workflow, order)


def check_stage(stage: StageExecution) -> None:
    """Check what belongs to one stage: of a new workflow, or made by a builder.

    Raises:
        InvalidWorkflowError: and its kinds; see :func:`validate_workflow`.
    """
    _check_values(stage)
    check_tasks(stage.tasks, _called(stage))
    _check_options(stage)


def check_tasks(tasks: Iterable[Any], where: str) -> None:
    """Check the tasks of a stage.

    Raises:
        InvalidWorkflowError: something is no task, or cannot be stored.
    """
    for task in tasks:
        if not isinstance(task, TaskExecution):
            raise InvalidWorkflowError(f"{where}: {task!r:.80} is no TaskExecution; use TaskExecution.create")
        check_text(task.name, f"{where}: name of a task")
        _check_id(task.id, f"{where}: task {task.name:.80}")
        check_text(task.implementing_class, f"{where}: type of task {task.name!r:.80}")


def _check_refs(workflow: Workflow) -> None:
    if not workflow.stages:
        raise InvalidStageGraphError(f"no_stages: workflow {workflow.name!r} has no stages, it needs one")
    for number, stage in enumerate(workflow.stages, start=1):
        called = f"stage {number}" + (f" ({stage.name})" if stage.name else "")
        if stage.is_synthetic:
            raise InvalidStageGraphError(
                f"synthetic_stage: {called} belongs inside another stage; its builder plans it during the run"
            )
        if not _is_text(stage.ref_id) or not stage.ref_id.strip():
            raise InvalidStageGraphError(f"empty_ref: {called} needs text as ref_id, not {stage.ref_id!r}")
        check_text(stage.ref_id, f"ref_id of {called}")
    for kind, values, way_out in (
        (
            "duplicate_ref",
            [stage.ref_id for stage in workflow.stages],
            "each stage needs a ref_id of its own",
        ),
        ("duplicate_id", [stage.id for stage in workflow.stages], "use every StageExecution once"),
        (
            "duplicate_id",
            [task.id for stage in workflow.stages for task in stage.tasks],
            "use every TaskExecution once",
        ),
    ):
        repeated = _repeated(values)
        if repeated:
            raise InvalidStageGraphError(f"{kind}: {_listed(repeated)} occurs more than once; {way_out}")


def _check_edges(stage: StageExecution, requires: dict[str, set[str]]) -> None:
    wanted = stage.requisite_stage_ref_ids
    if stage.ref_id in wanted:
        raise InvalidStageGraphError(f"self_edge: stage {stage.ref_id} requires itself")
    missing = sorted((ref for ref in wanted if ref not in requires), key=str)
    if missing:
        hint = did_you_mean(str(missing[0]), requires)
        raise InvalidStageGraphError(
            f"unknown_ref: stage {stage.ref_id} requires {_listed(missing)},"
            f" which the workflow does not have{hint}"
        )


def _check_workflow(workflow: Workflow) -> None:
    for part in ("application", "name"):
        check_text(getattr(workflow, part), f"{part} of the workflow", MOST_BYTES[part])
    where = f"workflow {workflow.name:.80}"
    _check_id(workflow.id, where)
    for part in ("pipeline_config_id", "dedup_key", "origin", "config_version"):
        if getattr(workflow, part) is not None:
            check_text(getattr(workflow, part), f"{where}: {part}", MOST_BYTES.get(part))
    if workflow.dedup_key == "":
        raise InvalidWorkflowError(
            f"{where}: dedup_key is empty; leave it out if a second start is one of its own"
        )
    if not 0 <= workflow.max_concurrent_executions < 2**31:
        raise InvalidWorkflowError(f"{where}: maxConcurrentExecutions cannot be that large")
    _check_time(workflow.start_time_expiry, f"{where}: start_time_expiry")
    _check_mapping(workflow.context, f"{where}: context")
    trigger = workflow.trigger
    ensure_json([trigger.type, trigger.user], f"{where}: trigger type and user")
    for part in ("parameters", "artifacts", "payload"):
        ensure_json(getattr(trigger, part), f"{where}: trigger.{part}")
    jumps = workflow.context.get("_max_jumps", 0)
    if isinstance(jumps, bool) or not isinstance(jumps, int) or jumps < 0:
        raise InvalidWorkflowError(f"{where}: _max_jumps must be a whole number from 0, not {jumps!r}")


def _check_options(stage: StageExecution) -> None:
    where = f"stage {stage.ref_id}"
    for key, reducer in stage.output_reducers.items():
        if reducer not in known_reducers():
            raise UnknownReducerError(unknown_reducer(reducer, f"{where}: output_reducers[{key!r}]"))
    for task in stage.tasks:
        if task.implementing_class.rpartition(".")[2].lower() == "shell":
            try:
                check_command(stage)
            except ValueError as failure:
                raise InvalidWorkflowError(f"{where}: command: {failure}") from None
    try:
        check_milliseconds(stage.context.get("stageTimeoutMs"), f"{where}: stageTimeoutMs")
    except (TypeError, ValueError) as failure:
        raise InvalidWorkflowError(str(failure)) from None
    try:
        enabling_condition(stage.context)
    except ExpressionError as failure:
        raise ExpressionError(f"{where}: stageEnabled: {failure}") from None
    except InvalidWorkflowError as failure:
        raise InvalidWorkflowError(f"{where}: {failure}") from None


def _check_values(stage: StageExecution) -> None:
    where = _called(stage)
    check_text(stage.ref_id, f"{where}: ref_id", MOST_BYTES["ref_id"])
    _check_id(stage.id, where)
    check_text(stage.type, f"{where}: type")
    check_text(stage.name, f"{where}: name")
    _check_time(stage.start_time_expiry, f"{where}: start_time_expiry")
    for part in ("context", "outputs", "output_reducers"):
        _check_mapping(getattr(stage, part), f"{where}: {part}")


def _called(stage: StageExecution) -> str:
    return f"stage {stage.called!s:.80}"


def check_text(value: Any, where: str, most_bytes: int | None = None) -> None:
    """It goes into a text column, which takes neither NUL nor half of a surrogate pair.

    Args:
        value: what is to be stored.
        where: what it is, for the message.
        most_bytes: what it may have as UTF-8, where it is a key.

    Raises:
        InvalidWorkflowError: it is not text, or cannot be stored.
    """
    if not _is_text(value):
        raise InvalidWorkflowError(f"{where:.200} must be text, not {value!r:.200}")
    if not is_storable(value):
        raise InvalidWorkflowError(f"{where:.200} has characters that cannot be stored: {value!r:.200}")
    size = len(value.encode())
    if most_bytes is not None and size > most_bytes:
        raise InvalidWorkflowError(
            f"{where:.200} has {size:,} bytes, at most {most_bytes:,} can be a key: {value!r:.80}..."
        )


def _check_id(value: Any, where: str) -> None:
    check_text(value, f"{where:.200}: id")
    if not 1 <= len(value) <= ID_LENGTH:
        raise InvalidWorkflowError(
            f"{where:.200}: its id must have 1 to {ID_LENGTH} characters, not {len(value)}: {value!r:.80}. "
            "Leave it to the engine, and give a dedup_key for what is to be started once"
        )


def _check_mapping(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise InvalidWorkflowError(f"{where} must be a mapping, not of type {type(value).__name__}")
    ensure_json(value, where)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _check_time(value: Any, where: str) -> None:
    if value is not None and (not isinstance(value, datetime) or value.utcoffset() is None):
        raise InvalidWorkflowError(f"{where} must be a datetime with a timezone, not {value!r}")


def _number(workflow: Workflow, order: list[str]) -> None:
    place = {ref: index for index, ref in enumerate(order)}
    for stage in workflow.stages:
        stage.rank = [place[stage.ref_id], 0]
        stage.upstream_count = stage.open_upstreams = len(stage.requisite_stage_ref_ids)
        for index, task in enumerate(stage.tasks):
            task.stage_start = index == 0
            task.stage_end = index == len(stage.tasks) - 1


def _repeated(values: Iterable[str]) -> list[str]:
    return sorted(value for value, count in Counter(values).items() if count > 1)


def _listed(refs: list[str]) -> str:
    shown = ", ".join(str(ref) for ref in refs[:10])
    return shown if len(refs) <= 10 else f"{shown} and {len(refs) - 10} more"
