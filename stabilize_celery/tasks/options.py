"""Options of the built-in tasks: read from the stage's own context only, and checked before anything starts.

An upstream output called ``timeout`` or ``env`` is data.  It must never reconfigure the stages after it, so
options come from ``stage.own_context``; data for scripts and for ``{key}`` comes from ``stage.context``.
"""

from __future__ import annotations

import codecs
import json
import logging
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from stabilize_celery.errors import PermanentError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.redaction import Masker, Redactor, masker_of
from stabilize_celery.settings import Seconds
from stabilize_celery.tasks.processes import GRACE_SECONDS, ProcessResult
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import current_run

logger = logging.getLogger(__name__)

#: Ten mebibytes of output are kept unless the stage says otherwise.
DEFAULT_MAX_OUTPUT_BYTES = 10 * 1024 * 1024

#: Seconds a task may take beyond its own ``timeout``, so that its own comes first: it keeps what was printed.
_MARGIN_SECONDS = 4 * GRACE_SECONDS

#: Bytes kept for an error beside what a command has printed.
_BESIDE_OUTPUT = 4096

#: Keys of a stage's own context that configure the engine; they are no data.
ENGINE_KEYS = frozenset(
    {
        "continuePipelineOnFailure", "continuePipeline", "failPipeline", "completeOtherBranchesThenFail",
        "allowSiblingStagesToContinueOnFailure", "stageEnabled", "manualSkip", "stageTimeoutMs", "stageTimedOut",
        "beforeStagePlanningFailed", "exception", "error", "verification", "jump_error",
    }
)  # fmt: skip
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
    return stage.called or stage.id


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


def visible_data(model: type[TaskOptions], stage: StageExecution) -> dict[str, Any]:
    """What a script or a ``{key}`` may use: everything the stage sees but its own options and engine keys."""
    own = stage.own_context
    reserved = ENGINE_KEYS | model.names()
    return {
        key: value
        for key, value in stage.context.items()
        if key not in own or not (key in reserved or (key.startswith("_") and key not in _SIGNAL_KEYS))
    }


def _as_strings(value: Any) -> Any:
    """Numbers and booleans are written as text; ``None`` leaves a variable out."""
    if not isinstance(value, Mapping):
        return value
    return {
        str(name): str(item) if isinstance(item, (int, float)) else item
        for name, item in value.items()
        if item is not None
    }


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value


def _directory(value: str) -> str:
    if not os.path.isdir(value):
        raise ValueError("is no directory")
    return value


PlainText = Annotated[str, AfterValidator(_no_nul)]
Directory = Annotated[str, AfterValidator(_no_nul), AfterValidator(_directory)]
Environment = Annotated[dict[PlainText, PlainText], BeforeValidator(_as_strings)]


class ProcessOptions(TaskOptions):
    """Options of PythonTask and ShellTask alike."""

    private: ClassVar[frozenset[str]] = frozenset({"env"})

    #: Seconds.
    timeout: Seconds = Field(default=60.0, gt=0)
    cwd: Directory | None = None
    #: Added to the environment of the worker.
    env: Environment = Field(default_factory=dict)
    #: Bytes kept of stdout and of stderr.
    max_output_size: int = Field(default=DEFAULT_MAX_OUTPUT_BYTES, ge=0)

    def environment(self) -> dict[str, str]:
        """The whole environment of the process."""
        return {**os.environ, **self.env}

    def result(
        self, process: ProcessResult, data: dict[str, Any], what: str, wrong: str | None
    ) -> TaskResult:
        """The result of a process that has ended.

        Args:
            process: how it ended.
            data: what it came to, of which as much is kept as fits.
            what: what it was, for errors: ``Command``.
            wrong: why it failed, unless it was a timeout or an interrupt; ``None`` if it did not.
        """
        data = fitted(data)
        if process.ended == "interrupt":
            return TaskResult.terminal(f"{what} was interrupted", context=data)
        if process.ended == "timeout":
            wrong = f"{what} timed out after {seconds(self.timeout)}s"
        return TaskResult.success(outputs=data) if wrong is None else self.failure(wrong, data)


def execution_timeout(stage: StageExecution) -> timedelta | None:
    """How long the engine should let a call take whose own limit is the option ``timeout``."""
    timeout = stage.own_context.get("timeout")
    if isinstance(timeout, (int, float)) and timeout > 0:
        return timedelta(seconds=min(timeout, 10**8) + _MARGIN_SECONDS)
    return None


def decode(data: bytes, truncated: bool) -> str:
    """Output as text; a character cut in half at the end is left out."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data, final=not truncated)


def printed(result: ProcessResult, masker: Masker | Redactor) -> tuple[str, str]:
    """stdout and stderr as text without secrets."""
    out = masker.data(result.stdout, truncated=result.stdout_truncated)
    err = masker.data(result.stderr, truncated=result.stderr_truncated)
    return decode(out, result.stdout_truncated), decode(err, result.stderr_truncated)


def fitted(data: dict[str, Any]) -> dict[str, Any]:
    """What a command came to, with as much of what it printed as the outputs of a stage can hold.

    ``truncated`` says that something was left out.  What does not fit for another reason is left to the engine.
    """
    run = current_run()
    if run is None or run.output_limit is None:
        return data
    # Something is left for the error, which stands beside it.
    room = max(run.output_limit - _BESIDE_OUTPUT, run.output_limit // 2)
    low, high = 0, room

    def cut(size: int) -> dict[str, Any]:
        shorter = {"stdout": data["stdout"][:size], "stderr": data["stderr"][:size], "truncated": True}
        if "stdout_b64" in data:
            shorter["stdout_b64"] = data["stdout_b64"][: size // 3 * 4]
        return {**data, **shorter}

    if _json_size(data) <= room or _json_size(cut(0)) > room:
        return data
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _json_size(cut(middle)) <= room else (low, middle - 1)
    return cut(low)


def _json_size(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":")))


def seconds(value: float) -> str:
    """A duration as it was written: ``0.5``, and ``60`` for 60.0."""
    return f"{value:g}"


# ---------------------------------------------------------------------- {key}

#: ``{{..}}`` is matched to be skipped; ``name`` is what stands between single braces.
NAME = re.compile(r"[A-Za-z_][\w.-]*")
PLACEHOLDER = re.compile(r"\{\{[^{}]*\}\}|(?<!\$)\{(?P<name>[^{}]+)\}")


def as_text(value: Any) -> str:
    """How a value is written into text: dicts and lists as JSON, everything else as ``str`` does."""
    return (
        json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (dict, list)) else str(value)
    )


def substitute(template: str, data: Mapping[str, Any], where: str = "") -> str:
    """``template`` with the values of ``data`` put in, unquoted, in one pass: a value is not looked through again.

    ``{{name}}``, ``${NAME}`` and braces around anything that is no key stay; of a name that nothing fills the log
    warns if ``where`` says what the template is.
    """

    def replace(match: re.Match[str]) -> str:
        value = data.get(match["name"]) if match["name"] else None
        if value is None and where and match["name"] and NAME.fullmatch(match["name"]):
            logger.warning("%s: nothing fills {%s}", where, match["name"])
        return match[0] if value is None else as_text(value)

    return PLACEHOLDER.sub(replace, template)
