"""The form of a workflow file: its keys and values, its JSON Schema, and the way from it to a workflow and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import combinations
from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from stabilize_celery.errors import InvalidWorkflowError, WorkflowFileError
from stabilize_celery.jsonable import dumps_json
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.trigger import Trigger
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.suggestions import did_you_mean

#: Where a value stands: the keys and positions that lead to it.
Loc = Sequence[str | int]

#: Other spellings of a key, as in Spinnaker's pipelines and in the Python models.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "ref": ("refId", "ref_id"),
    "requires": ("requisiteStageRefIds", "requisite_stage_ref_ids"),
    "output_reducers": ("outputReducers",),
    "start_time_expiry": ("startTimeExpiry",),
    "type": ("implementingClass", "implementing_class"),
    "config": ("limits",),
    "id": ("pipeline_config_id", "pipelineConfigId"),
    "limitConcurrent": ("limit_concurrent",),
    "maxConcurrentExecutions": ("max_concurrent_executions",),
    "keepWaitingPipelines": ("keep_waiting_pipelines",),
}


def _spelled(name: str) -> AliasChoices:
    return AliasChoices(name, *SPELLINGS[name])


def _iso_text(value: Any) -> Any:
    if isinstance(value, str):
        with suppress(ValueError):
            time = datetime.fromisoformat(value)
            if time.utcoffset() is not None:
                return time
    raise ValueError("a time is ISO 8601 text with a timezone, such as 2030-01-31T12:00:00Z")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _typed(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


Time = Annotated[datetime, BeforeValidator(_iso_text)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TaskForm(_Form):
    """A task: its type alone, or a mapping."""

    type: str = Field(
        validation_alias=_spelled("type"), min_length=1, description="What runs: a registered task type."
    )
    name: str | None = Field(default=None, description="For people; by default its type.")


class StageForm(_Form):
    """A stage.  Without ``tasks`` it has one of its own type; ``tasks: []`` leaves them to a builder."""

    ref: str = Field(
        validation_alias=_spelled("ref"),
        min_length=1,
        description="What other stages call it; unique in the workflow.",
    )
    type: str = Field(
        min_length=1,
        description="A registered task type or builder, such as shell, python, http, wait or approval.",
    )
    name: str | None = Field(default=None, description="For people; by default its ref.")
    requires: Annotated[list[str], BeforeValidator(_listed)] = Field(
        default_factory=list,
        validation_alias=_spelled("requires"),
        description="The refs of the stages that have to end first; one may stand without a list.",
    )
    context: dict[str, Any] = Field(
        default_factory=dict, description="Parameters of the stage, and options such as stageEnabled."
    )
    tasks: list[Annotated[TaskForm, BeforeValidator(_typed)]] | None = Field(
        default=None,
        description="Its tasks, one after the other, if they are not one of the stage's own type.",
    )
    output_reducers: dict[str, str] = Field(
        default_factory=dict,
        validation_alias=_spelled("output_reducers"),
        description="How outputs of the same key of several upstream stages are combined, such as sum or collect.",
    )
    start_time_expiry: Time | None = Field(
        default=None,
        validation_alias=_spelled("start_time_expiry"),
        description="After this time it is not started any more.",
    )


class ConfigForm(_Form):
    """The limits of the workflow's configuration, under the seeds' names."""

    id: str | None = Field(
        default=None,
        validation_alias=_spelled("id"),
        description="Workflows of the same id share its limits; by default application and name.",
    )
    limitConcurrent: bool = Field(
        default=False,
        validation_alias=_spelled("limitConcurrent"),
        description="Whether only so many run at once.",
    )
    maxConcurrentExecutions: int = Field(
        default=0,
        ge=0,
        validation_alias=_spelled("maxConcurrentExecutions"),
        description="How many run at once.",
    )
    keepWaitingPipelines: bool = Field(
        default=False,
        validation_alias=_spelled("keepWaitingPipelines"),
        description="Whether all that wait are kept, or only the newest.",
    )


class TriggerForm(_Form):
    """What starts it."""

    type: str = "manual"
    user: str = "anonymous"
    parameters: dict[str, Any] = Field(default_factory=dict)
    artifacts: list[dict[str, Any]] = Field(default_factory=list)
    payload: dict[str, Any] = Field(default_factory=dict)


class WorkflowForm(_Form):
    """A whole file.  Only ``stages`` has to be there."""

    editor_schema: str | None = Field(
        default=None, validation_alias="$schema", description="For editors: where this schema is."
    )
    application: str = Field(default="default", description="What the workflow belongs to.")
    name: str | None = Field(default=None, description="By default that of the file.")
    context: dict[str, Any] = Field(default_factory=dict, description="What every stage may look at.")
    config: ConfigForm | None = Field(default=None, validation_alias=_spelled("config"))
    trigger: TriggerForm = Field(default_factory=TriggerForm)
    start_time_expiry: Time | None = Field(
        default=None,
        validation_alias=_spelled("start_time_expiry"),
        description="After this time it is not started any more.",
    )
    stages: list[StageForm]


def read_form(data: Any, error: Callable[..., WorkflowFileError]) -> WorkflowForm:
    """The checked content of a file; ``error`` makes an error of a problem, a place and whether the key is meant.

    Raises:
        WorkflowFileError: it does not have that form; one line with its place per problem (up to ten).
    """
    if not isinstance(data, dict):
        raise error("a workflow file is a mapping with the key 'stages'")
    try:
        return WorkflowForm.model_validate(data)
    except ValidationError as failure:
        problems = failure.errors(include_url=False)
        lines = [str(_described(problem, error)) for problem in problems[:10]]
        if len(problems) > 10:
            lines.append(f"... and {len(problems) - 10} more")
        raise WorkflowFileError("\n".join(lines)) from None


def _shown(value: Any) -> str:
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):  # a number with too many digits, or nested too deeply
        return f"what was given ({type(value).__name__})"


def _described(problem: Any, error: Callable[..., WorkflowFileError]) -> WorkflowFileError:
    """One of pydantic's problems in our words, at its place."""
    loc: tuple[str | int, ...] = problem["loc"]
    if problem["type"] == "extra_forbidden":
        known = _known_keys(loc[:-1])
        hint = did_you_mean(str(loc[-1]), known) or f"; known are {', '.join(known)}"
        return error(f"{_path(loc)}: unknown key{hint}", loc, at_key=True)
    if len(loc) > 1 and loc[-1] == "[key]":
        # So pydantic says that the key itself is wrong.
        loc = loc[:-1]
    if problem["type"] == "missing":
        return error(f"{_path(loc)} is missing", loc)
    said = str(problem["msg"]).removeprefix("Value error, ").replace("Input should", "it should")
    return error(f"{_path(loc)}: {said}, not {_shown(problem['input'])}", loc)


def _path(loc: Sequence[str | int]) -> str:
    parts = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)
    return "".join(parts).removeprefix(".") or "the file"


def _known_keys(loc: Sequence[str | int]) -> list[str]:
    """The keys of the form that stands at ``loc``."""
    names = [step for step in loc if isinstance(step, str)]
    form = _FORMS.get(names[-1] if names else "", WorkflowForm)
    return [name for name in form.model_fields if name != "editor_schema"]


_FORMS: dict[str, type[_Form]] = {
    "": WorkflowForm,
    "stages": StageForm,
    "tasks": TaskForm,
    "config": ConfigForm,
    "limits": ConfigForm,
    "trigger": TriggerForm,
}


# ---------------------------------------------------------------------------------------------- workflows


def to_workflow(form: WorkflowForm, default_name: str) -> Workflow:
    """The workflow of a form.

    Raises:
        InvalidWorkflowError: it is refused as every new workflow may be.
    """
    return Workflow.create(
        application=form.application,
        name=form.name if form.name is not None else default_name,
        stages=[_stage(stage) for stage in form.stages],
        trigger=Trigger(**form.trigger.model_dump()),
        context=form.context,
        config=None if form.config is None else form.config.model_dump(exclude_none=True),
        start_time_expiry=form.start_time_expiry,
    )


def _stage(form: StageForm) -> StageExecution:
    name = form.ref if form.name is None else form.name
    listed = [TaskForm(type=form.type, name=name)] if form.tasks is None else form.tasks
    return StageExecution(
        ref_id=form.ref,
        type=form.type,
        name=name,
        context=form.context,
        tasks=[TaskExecution.create(t.type if t.name is None else t.name, t.type) for t in listed],
        requisite_stage_ref_ids=set(form.requires),
        output_reducers=form.output_reducers,
        start_time_expiry=form.start_time_expiry,
    )


def place_in_stage(data: Any, index: int, key: str) -> tuple[str | int, ...]:
    """Where the value of a stage's key stands, however the key is spelled."""
    written = data["stages"][index]
    spelled = next((name for name in (key, *SPELLINGS.get(key, ())) if name in written), key)
    return ("stages", index, spelled)


def place_of_type(data: Any, index: int, task_type: str) -> tuple[str | int, ...]:
    """Where a stage, or one of its tasks, names a task type."""
    tasks = data["stages"][index].get("tasks")
    for number, task in enumerate(tasks if isinstance(tasks, list) else ()):
        keys = ("type", *SPELLINGS["type"]) if isinstance(task, dict) else ()
        spelled = next((key for key in keys if task.get(key) == task_type), None)
        if task == task_type or spelled is not None:
            return ("stages", index, "tasks", number, *([spelled] if spelled else []))
    return ("stages", index, "type")


def workflow_to_dict(workflow: Workflow) -> dict[str, Any]:
    """What a workflow file would say: the definition without ids, statuses and outputs.

    Loading it again gives an equal definition.  Keys that say what holds anyway are left out; synthetic
    stages are no part of a definition.

    Raises:
        InvalidWorkflowError: values that are not JSON.
    """
    expiry = workflow.start_time_expiry
    document = {
        "application": workflow.application,
        "name": workflow.name,
        **_given(
            context=workflow.context,
            config=_given(
                id=workflow.pipeline_config_id,
                limitConcurrent=workflow.is_limit_concurrent,
                maxConcurrentExecutions=workflow.max_concurrent_executions,
                keepWaitingPipelines=workflow.keep_waiting_pipelines,
            ),
            trigger=workflow.trigger.to_dict() if workflow.trigger != Trigger() else None,
            start_time_expiry=None if expiry is None else expiry.isoformat(),
        ),
        "stages": [_stage_to_dict(stage) for stage in workflow.top_level_stages()],
    }
    copied: dict[str, Any] = json.loads(
        dumps_json(document, f"workflow {workflow.name}", error=InvalidWorkflowError)
    )
    return copied


def _stage_to_dict(stage: StageExecution) -> dict[str, Any]:
    tasks = [{"name": task.name, "type": task.implementing_class} for task in stage.tasks]
    expiry = stage.start_time_expiry
    said = {
        "ref": stage.ref_id,
        "type": stage.type,
        **({} if stage.name == stage.ref_id else {"name": stage.name}),
        **_given(
            requires=sorted(stage.requisite_stage_ref_ids),
            context=stage.own_context,
            output_reducers=stage.output_reducers,
            start_time_expiry=None if expiry is None else expiry.isoformat(),
        ),
    }
    return said if tasks == [{"name": stage.name, "type": stage.type}] else {**said, "tasks": tasks}


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}


# ---------------------------------------------------------------------------------------------- JSON Schema

#: A date and a time with an offset, as ISO 8601 writes them; the loader knows the calendar as well.
_TIME = r"^[0-9]{4}.{3,6}[^0-9][0-9]{2}.*(Z|[+-][0-9]{2}(:?[0-9]{2}(:?[0-9]{2}(\.[0-9]+)?)?)?)$"


def workflow_schema() -> dict[str, Any]:
    """The JSON Schema of a workflow file, for editors and other programs.

    What it accepts is of the right form; whether the graph makes sense only the loader knows.
    """
    schema = WorkflowForm.model_json_schema(by_alias=True, mode="validation")
    forms = schema.pop("$defs")
    for form in (schema, *forms.values()):
        _adapt(form)
    for form in forms.values():
        form.pop("title", None)
    schema["title"] = "Workflow of stabilize_celery"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "$defs": forms}


def _adapt(form: dict[str, Any]) -> None:
    """Say of a form what its validators do before they look at a value, and which other spellings it has."""
    properties: dict[str, Any] = form["properties"]
    form["description"] = " ".join(str(form.get("description", "")).replace("``", "`").split())
    for name, said in properties.items():
        said.pop("title", None)
        if name == "requires":
            listed = {"type": said.pop("type"), "items": said.pop("items")}
            said["anyOf"] = [{"type": "string"}, listed]
        elif name == "tasks":
            tasks = said["anyOf"][0]
            tasks["items"] = {"anyOf": [{"type": "string", "minLength": 1}, tasks["items"]]}
        elif name == "start_time_expiry":
            said["anyOf"] = [{"type": "string", "pattern": _TIME}, {"type": "null"}]
    required = form.pop("required", [])
    for name in list(properties):
        spellings = (name, *SPELLINGS.get(name, ()))
        if len(spellings) == 1 or (name == "type" and "ref" in properties):
            continue
        for other in spellings[1:]:
            properties[other] = {**properties[name], "description": f"Another spelling of {name}."}
        each = [{"required": [spelling]} for spelling in spellings]
        pairs = [{"required": list(pair)} for pair in combinations(spellings, 2)]
        form.setdefault("allOf", []).append(
            {"oneOf": each} if name in required else {"not": {"anyOf": pairs}}
        )
        required = [key for key in required if key != name]
    if required:
        form["required"] = required
