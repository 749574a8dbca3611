"""Options and data that every task has which starts a process."""

from __future__ import annotations

import codecs
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.redaction import Masker, Redactor
from stabilize_celery.tasks.options import DEFAULT_MAX_OUTPUT_BYTES, TaskOptions
from stabilize_celery.tasks.supervision import GRACE_SECONDS, ProcessResult

#: Seconds a task may take beyond its own ``timeout``, so that its own comes first: it keeps what was printed.
_MARGIN_SECONDS = 4 * GRACE_SECONDS

#: Characters of stderr in an error.
_ERROR_TAIL = 200


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
    timeout: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    cwd: Directory | None = None
    #: Added to the environment of the worker.
    env: Environment = Field(default_factory=dict)
    #: Bytes kept of stdout and of stderr.
    max_output_size: int = Field(default=DEFAULT_MAX_OUTPUT_BYTES, ge=0)

    def environment(self) -> dict[str, str]:
        """The whole environment of the process."""
        return {**os.environ, **self.env}


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


def exit_error(code: int, stderr: str) -> str:
    """What a failed script is reported as: with the end of stderr, where a traceback says what happened."""
    tail = stderr.strip()[-_ERROR_TAIL:]
    return f"Python script failed with exit code {code}" + (f": {tail}" if tail else "")


def seconds(value: float) -> str:
    """A duration as it was written: ``0.5``, and ``60`` for 60.0."""
    return f"{value:g}"
