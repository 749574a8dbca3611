"""The form of a workflow file: which keys it has and what their values are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from stabilize_celery.errors import WorkflowFileError
from stabilize_celery.files.document import Document
from stabilize_celery.suggestions import did_you_mean

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


def read_form(document: Document) -> WorkflowForm:
    """The checked content of a file.

    Raises:
        WorkflowFileError: it does not have that form; one line with its place per problem (up to ten).
    """
    if not isinstance(document.data, dict):
        raise document.error("a workflow file is a mapping with the key 'stages'")
    try:
        return WorkflowForm.model_validate(document.data)
    except ValidationError as failure:
        problems = failure.errors(include_url=False)
        lines = [str(_described(document, problem)) for problem in problems[:10]]
        if len(problems) > 10:
            lines.append(f"... and {len(problems) - 10} more")
        raise WorkflowFileError("\n".join(lines)) from None


def _shown(value: Any) -> str:
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):  # a number with too many digits, or nested too deeply
        return f"what was given ({type(value).__name__})"


def _described(document: Document, problem: Any) -> WorkflowFileError:
    """One of pydantic's problems, with its place and in our words."""
    loc: tuple[str | int, ...] = problem["loc"]
    kind = problem["type"]
    if len(loc) > 1 and loc[-1] == "[key]" and kind != "extra_forbidden":
        # So pydantic says that the key itself is wrong.
        loc = loc[:-1]
    path = _path(loc)
    if kind == "extra_forbidden":
        known = _known_keys(loc[:-1])
        hint = did_you_mean(str(loc[-1]), known) or f"; known are {', '.join(known)}"
        return document.error(f"{path}: unknown key{hint}", loc, at_key=True)
    if kind == "missing":
        return document.error(f"{path} is missing", loc)
    said = str(problem["msg"]).removeprefix("Value error, ").replace("Input should", "it should")
    return document.error(f"{path}: {said}, not {_shown(problem['input'])}", loc)


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
