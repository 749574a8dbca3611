"""Options of the built-in tasks: read from the stage's own context only, and checked before anything starts.

An upstream output called ``timeout`` or ``env`` is data.  It must never reconfigure the stages after it, so
options come from ``stage.own_context``; data for scripts and for ``{key}`` comes from ``stage.context``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stabilize_celery.errors import PermanentError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.redaction import DEFAULT_KEYS, Masker, Redactor
from stabilize_celery.tasks.result import TaskResult

#: Ten mebibytes of output are kept unless the stage says otherwise.
DEFAULT_MAX_OUTPUT_BYTES = 10 * 1024 * 1024

#: Keys of a stage's own context that configure the engine; they are no data.
ENGINE_KEYS = frozenset(
    {
        "continuePipelineOnFailure",
        "continuePipeline",
        "failPipeline",
        "completeOtherBranchesThenFail",
        "allowSiblingStagesToContinueOnFailure",
        "stageEnabled",
        "manualSkip",
        "stageTimeoutMs",
        "beforeStagePlanningFailed",
        "exception",
        "error",
        "verification",
        "jump_error",
    }
)
#: Keys beginning with an underscore belong to the engine, except what a signal brought.
_SIGNAL_KEYS = frozenset({"_signal_name", "_signal_data"})


class OptionError(PermanentError):
    """An option of a stage is missing or makes no sense; running the stage again will not help."""


class TaskOptions(BaseModel):
    """Options every built-in task has."""

    model_config = ConfigDict(extra="ignore", frozen=True, arbitrary_types_allowed=True)

    #: Options whose values are not repeated in errors.
    private: ClassVar[frozenset[str]] = frozenset()

    #: A failure becomes FAILED_CONTINUE, with the data as outputs.
    continue_on_failure: bool = False
    #: Names of context keys (or of entries of ``env`` or ``headers``) whose values are shown as ``***``.
    secrets: list[str] = Field(default_factory=list)

    @classmethod
    def names(cls) -> frozenset[str]:
        """The context keys that are options."""
        return frozenset(field.alias or name for name, field in cls.model_fields.items())

    def failure(self, error: str, data: Mapping[str, Any] | None = None) -> TaskResult:
        """A failure that keeps ``data`` in the stage's context, or in its outputs if the workflow goes on."""
        if self.continue_on_failure:
            return TaskResult.failed_continue(error, outputs=data)
        return TaskResult.terminal(error, context=data)


Options = TypeVar("Options", bound=TaskOptions)


def stage_label(stage: StageExecution) -> str:
    """How errors and tracebacks call the stage."""
    return stage.ref_id or stage.name or stage.id


def read_options(model: type[Options], stage: StageExecution) -> Options:
    """The options of a stage.

    Raises:
        OptionError: names the stage, the option and the value.
    """
    names = model.names()
    own = {key: value for key, value in stage.own_context.items() if key in names}
    try:
        return model.model_validate(own)
    except ValidationError as error:
        raise OptionError(_explain(model, stage, error)) from None


def _explain(model: type[TaskOptions], stage: StageExecution, error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False):
        path = [str(part) for part in problem["loc"]]
        name = ".".join(path)
        if problem["type"] == "missing":
            problems.append(f"No '{name}' specified in context")
            continue
        message = problem["msg"].removeprefix("Value error, ")
        if not path or isinstance(problem["input"], Mapping):
            problems.append(f"option '{name}': {message}" if path else message)
        elif path[0] in model.private:
            problems.append(f"option '{name}': {message} (got a {type(problem['input']).__name__})")
        else:
            problems.append(f"option '{name}': {message} (got {problem['input']!r:.80})")
    return masker_of(stage).text(f"Stage '{stage_label(stage)}': {'; '.join(problems)}")


def masker_of(stage: StageExecution, *more: Any) -> Masker:
    """What hides the stage's secrets; ``more`` are values that are secret whether named or not."""
    return Masker([*more, *_named_secrets(stage)])


def redactor_of(
    stage: StageExecution | None,
    keys: Iterable[str] = DEFAULT_KEYS,
    *more: Mapping[str, Any],
    named: Iterable[Any] = (),
) -> Redactor:
    """What hides everything secret that a stage knows in what is said about its failures.

    Args:
        stage: what it sees, and the context and trigger of its workflow, are looked through.
        keys: ``settings.redact_keys``.
        more: further data to be looked through.
        named: values that are secret whether named or not.
    """
    if stage is None:
        return Redactor(more, keys, named)
    workflow = stage._execution
    if workflow is not None:
        trigger = workflow.trigger
        more = (*more, workflow.context, trigger.parameters, trigger.payload)
    # The option "secrets" holds names, which are no secrets.
    seen = (
        {key: value for key, value in each.items() if key != "secrets"} for each in (stage.context, *more)
    )
    return Redactor(seen, keys, [*named, *_named_secrets(stage)])


def _named_secrets(stage: StageExecution) -> Iterable[Any]:
    own = stage.own_context
    names = own.get("secrets")
    for name in names if isinstance(names, (list, tuple)) else ():
        yield from (own.get(name), stage.context.get(name))
        for holder in ("env", "environment", "headers"):
            if isinstance(own.get(holder), Mapping):
                yield own[holder].get(name)


def visible_data(model: type[TaskOptions], stage: StageExecution) -> dict[str, Any]:
    """What a script or a ``{key}`` may use: everything the stage sees but its own options and engine keys."""
    own = stage.own_context
    reserved = ENGINE_KEYS | model.names()
    return {
        key: value
        for key, value in stage.context.items()
        if key not in own or not (key in reserved or (key.startswith("_") and key not in _SIGNAL_KEYS))
    }
