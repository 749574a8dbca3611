"""ShellTask: one command line, run by a shell."""

from __future__ import annotations

import base64
import errno
import logging
import os
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, field_validator

from stabilize_celery.errors import TransientError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.masking import Masker
from stabilize_celery.tasks.options import OptionError, masker_of, read_options, stage_label, visible_data
from stabilize_celery.tasks.process_options import (
    PlainText,
    ProcessOptions,
    execution_timeout,
    printed,
    seconds,
)
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.shell_quoting import UnsafePlaceholderError, quote_into
from stabilize_celery.tasks.subprocess_group import run_group
from stabilize_celery.tasks.substitution import as_text
from stabilize_celery.tasks.supervision import ProcessResult

logger = logging.getLogger(__name__)

#: Characters of stderr in the error: its beginning, where most programs say what is wrong.
_ERROR_HEAD = 200


class ShellOptions(ProcessOptions):
    """Options of a ``shell`` stage."""

    private = ProcessOptions.private | {"command", "stdin"}

    command: PlainText = Field(min_length=1)
    #: ``True`` is /bin/sh; else the absolute path of a shell that understands ``-c`` and POSIX quoting.
    shell: Literal[True] | str = True
    #: What the command can read.
    stdin: str | None = None
    expected_codes: list[int] = Field(default_factory=lambda: [0])
    #: stdout is not text: it is also given as base64 in ``stdout_b64``, and not stripped.
    binary: bool = False
    #: A failure is retried by the engine instead of ending the stage.
    restart_on_failure: bool = False

    @field_validator("shell")
    @classmethod
    def _absolute_executable(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and not (os.path.isabs(value) and os.access(value, os.X_OK)):
            raise ValueError("Shell not found: give the absolute path of an executable")
        return value


class ShellTask(Task):
    """Runs a command line; ``{key}`` in it becomes what the stage sees, quoted for the place it stands in.

    Outputs: ``stdout`` and ``stderr`` (stripped), ``exit_code``, ``truncated``, and ``stdout_b64`` if
        ``binary``.
    """

    def execute(self, stage: StageExecution) -> TaskResult:
        """Run the command of ``stage``.

        Raises:
            TransientError: it failed, and ``restart_on_failure`` is set.
        """
        try:
            options = read_options(ShellOptions, stage)
            masker = masker_of(stage)
            command = _command(options, stage)
        except OptionError as error:
            return TaskResult.terminal(str(error))
        logger.debug("stage %s runs: %s", stage_label(stage), masker.text(command))
        try:
            process = run_group(
                ["/bin/sh" if options.shell is True else options.shell, "-c", command],
                timeout=options.timeout,
                max_output_size=options.max_output_size,
                cwd=options.cwd,
                env=options.environment(),
                stdin=None if options.stdin is None else options.stdin.encode("utf-8", "surrogateescape"),
            )
        except OSError as error:
            return options.failure(_not_started(error, command))
        return _result(options, process, masker)

    def get_execution_timeout(self, stage: StageExecution) -> timedelta | None:
        """The option ``timeout`` and some room to end the processes."""
        return execution_timeout(stage)


def _command(options: ShellOptions, stage: StageExecution) -> str:
    values = {
        key: as_text(value) for key, value in visible_data(ShellOptions, stage).items() if value is not None
    }
    try:
        return quote_into(options.command, values)
    except UnsafePlaceholderError as error:
        raise OptionError(f"Stage '{stage_label(stage)}': option 'command': {error}") from None


def _not_started(error: OSError, command: str) -> str:
    if error.errno == errno.E2BIG:
        return (
            f"Command or environment too long to start (command: {len(command)} characters);"
            " pass large values through 'stdin'"
        )
    return f"Command could not be started: {error.strerror}"


def _result(options: ShellOptions, process: ProcessResult, masker: Masker) -> TaskResult:
    out, err = printed(process, masker)
    data: dict[str, Any] = {
        "stdout": out if options.binary else out.strip(),
        "stderr": err.strip(),
        "exit_code": process.exit_code,
        "truncated": process.truncated,
    }
    if options.binary:
        raw = masker.data(process.stdout, truncated=process.stdout_truncated)
        data["stdout_b64"] = base64.b64encode(raw).decode("ascii")
    if process.ended == "interrupt":
        return TaskResult.terminal("Command was interrupted", context=data)
    if process.ended == "timeout":
        error = f"Command timed out after {seconds(options.timeout)}s"
    elif process.exit_code not in options.expected_codes:
        error = f"Command exited with code {process.exit_code} (expected: {options.expected_codes})"
        if data["stderr"]:
            error += f": {data['stderr'][:_ERROR_HEAD]}"
    else:
        return TaskResult.success(outputs=data)
    if options.restart_on_failure:
        raise TransientError(error, context_update={"_last_outputs": data})
    return options.failure(error, data)
