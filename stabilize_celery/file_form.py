"""The form of a workflow file, its JSON Schema, and the errors of a file that has another."""

from __future__ import annotations

from collections.abc import Sequence
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
    WithJsonSchema,
)

from stabilize_celery.suggestions import did_you_mean

#: A date and a time with an offset, as ISO 8601 writes them; the loader knows the calendar as well.
_TIME = r"^[0-9]{4}.{3,6}[^0-9][0-9]{2}.*(Z|[+-][0-9]{2}(:?[0-9]{2}(:?[0-9]{2}(\.[0-9]+)?)?)?)$"


def _time(value: Any) -> Any:
    if isinstance(value, str):
        with suppress(ValueError):
            time = datetime.fromisoformat(value)
            if time.utcoffset() is not None:
                return time
    raise ValueError("a time is ISO 8601 text with a timezone, such as 2030-01-31T12:00:00Z")


Time = Annotated[datetime, BeforeValidator(_time), WithJsonSchema({"type": "string", "pattern": _TIME})]
#: A list of text, or one text without a list.
Refs = Annotated[
    list[str],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


def _key(*spellings: str, **options: Any) -> Any:
    """A key with other spellings: those of Spinnaker's pipelines and of the Python models."""
    return Field(validation_alias=AliasChoices(*spellings), **options)


def _all_spellings(schema: dict[str, Any], form: type[BaseModel]) -> None:
    """Say in the JSON Schema of a form that a file has each key in one of its spellings."""
    properties, required = schema["properties"], schema.pop("required", [])
    schema["description"] = " ".join(str(schema.get("description", "")).replace("``", "`").split())
    for field in form.model_fields.values():
        if not isinstance(field.validation_alias, AliasChoices):
            continue
        names = [str(name) for name in field.validation_alias.choices]
        for other in names[1:]:
            properties[other] = {**properties[names[0]], "description": f"Another spelling of {names[0]}."}
        pairs = [{"required": list(pair)} for pair in combinations(names, 2)]
        once = {"oneOf": [{"required": [name]} for name in names]}
        schema.setdefault("allOf", []).append(once if names[0] in required else {"not": {"anyOf": pairs}})
        required = [name for name in required if name != names[0]]
    if required:
        schema["required"] = required


class _Form(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, use_attribute_docstrings=True, json_schema_extra=_all_spellings
    )


def _task(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


class TaskForm(_Form):
    """A task: its type alone, or a mapping."""

    type: str = _key("type", "implementingClass", "implementing_class", min_length=1)
    """What runs: a registered task type."""
    name: str | None = None
    """For people; by default its type."""


class StageForm(_Form):
    """A stage.  Without ``tasks`` it has one of its own type; ``tasks: []`` leaves them to a builder."""

    ref: str = _key("ref", "refId", "ref_id", min_length=1)
    """What other stages call it; unique in the workflow."""
    type: str = Field(min_length=1)
    """A registered task type or builder, such as shell, python, http, wait or approval."""
    name: str | None = None
    """For people; by default its ref."""
    requires: Refs = _key("requires", "requisiteStageRefIds", "requisite_stage_ref_ids", default_factory=list)
    """The refs of the stages that have to end first; one may stand without a list."""
    context: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the stage, and options such as stageEnabled."""
    tasks: list[Annotated[TaskForm, BeforeValidator(_task)]] | None = None
    """Its tasks, one after the other, if they are not one of the stage's own type."""
    output_reducers: dict[str, str] = _key("output_reducers", "outputReducers", default_factory=dict)
    """How outputs of the same key of several upstream stages are combined, such as sum or collect."""
    start_time_expiry: Time | None = _key("start_time_expiry", "startTimeExpiry", default=None)
    """After this time it is not started any more."""


class ConfigForm(_Form):
    """The limits of the workflow's configuration, under the seeds' names."""

    id: str | None = _key("id", "pipeline_config_id", "pipelineConfigId", default=None)
    """Workflows of the same id share its limits; by default application and name."""
    limitConcurrent: bool = _key("limitConcurrent", "limit_concurrent", default=False)
    """Whether only so many run at once."""
    maxConcurrentExecutions: int = _key(
        "maxConcurrentExecutions", "max_concurrent_executions", default=0, ge=0
    )
    """How many run at once."""
    keepWaitingPipelines: bool = _key("keepWaitingPipelines", "keep_waiting_pipelines", default=False)
    """Whether all that wait are kept, or only the newest."""


class TriggerForm(_Form):
    """What starts it."""

    type: str = "manual"
    user: str = "anonymous"
    parameters: dict[str, Any] = Field(default_factory=dict)
    artifacts: list[dict[str, Any]] = Field(default_factory=list)
    payload: dict[str, Any] = Field(default_factory=dict)


class WorkflowForm(_Form):
    """A whole file.  Only ``stages`` has to be there."""

    editor_schema: str | None = Field(default=None, validation_alias="$schema")
    """For editors: where this schema is."""
    application: str = "default"
    """What the workflow belongs to."""
    name: str | None = None
    """By default that of the file."""
    context: dict[str, Any] = Field(default_factory=dict)
    """What every stage may look at."""
    config: ConfigForm | None = _key("config", "limits", default=None)
    trigger: TriggerForm = Field(default_factory=TriggerForm)
    start_time_expiry: Time | None = _key("start_time_expiry", "startTimeExpiry", default=None)
    """After this time it is not started any more."""
    stages: list[StageForm]


_FORMS: dict[str, type[_Form]] = {
    "stages": StageForm,
    "tasks": TaskForm,
    "config": ConfigForm,
    "limits": ConfigForm,
    "trigger": TriggerForm,
}


def workflow_schema() -> dict[str, Any]:
    """The JSON Schema of a workflow file, for editors and other programs.

    What it accepts is of the right form; whether the graph makes sense only the loader knows.
    """
    schema = WorkflowForm.model_json_schema(by_alias=True, mode="validation")
    schema["title"] = "Workflow of stabilize_celery"
    task = schema["$defs"]["TaskForm"]
    schema["$defs"]["TaskForm"] = {"anyOf": [{"type": "string", "minLength": 1}, task]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def described(problem: Any) -> str:
    """One of pydantic's problems with a file, in our words."""
    loc: tuple[str | int, ...] = problem["loc"]
    if len(loc) > 1 and loc[-1] == "[key]":
        # So pydantic says that the key itself is wrong.
        loc = loc[:-1]
    path = shown_path(loc)
    if problem["type"] == "missing":
        return f"{path} is missing"
    if problem["type"] == "extra_forbidden":
        inside = next((step for step in reversed(loc[:-1]) if isinstance(step, str)), "")
        known = [name for name in _FORMS.get(inside, WorkflowForm).model_fields if name != "editor_schema"]
        hint = did_you_mean(str(loc[-1]), known) or f"; known are {', '.join(known)}"
        return f"{path}: unknown key{hint}"
    text = str(problem["msg"]).removeprefix("Value error, ").replace("Input should", "it should")
    return f"{path}: {text}, not {problem['input']!r:.80}"


def shown_path(loc: Sequence[str | int]) -> str:
    """The keys and indexes of ``loc`` as people write them: ``stages[0].ref``."""
    parts = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)
    return "".join(parts).removeprefix(".")[:200] or "the file"
