"""PythonTask: a script, a script file or a function, run in a fresh interpreter.

Starting one takes some 20 ms.  ``-S`` would save 3 ms and take away installed packages; ``-I`` saves nothing and takes away
``PYTHONPATH`` and the working directory.  Code that should cost no start is a function: see ``stabilize.task``.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import Field, model_validator

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.redaction import masker_of, redactor_of
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.options import (
    OptionError,
    PlainText,
    ProcessOptions,
    execution_timeout,
    printed,
    read_options,
    stage_label,
    visible_data,
)
from stabilize_celery.tasks.processes import ProcessResult, nameless_file, run_group
from stabilize_celery.tasks.result import TaskResult

#: Bytes; a RESULT beyond this belongs into a file or a table, with only its name in RESULT.
MAX_RESULT_BYTES = 64 * 1024 * 1024
#: Characters of stderr in an error: its end, where a traceback says what happened.
_ERROR_TAIL = 200


class PythonOptions(ProcessOptions):
    """Options of a ``python`` stage; exactly one of ``script``, ``script_file`` and ``module``."""

    script: str | None = None
    #: Relative to ``cwd``.
    script_file: PlainText | None = None
    module: PlainText | None = None
    #: Called with INPUT in module mode; what it returns is RESULT.
    function: str | None = None
    inputs: dict[str, Any] = Field(default_factory=dict)
    #: ``sys.argv[1:]`` of the script.
    args: list[Any] = Field(default_factory=list)
    python_path: PlainText = Field(default_factory=lambda: sys.executable)
    #: Not to be had any more: code for the worker's own interpreter is a function, registered as a task type.
    in_process: Literal[False] = False

    @model_validator(mode="after")
    def _one_source(self) -> PythonOptions:
        given = [name for name in ("script", "script_file", "module") if getattr(self, name) is not None]
        if not given:
            raise ValueError("One of 'script', 'script_file', or 'module' must be specified")
        if len(given) > 1:
            raise ValueError("Only one of 'script', 'script_file', or 'module' can be specified")
        if self.module is not None and self.function is None:
            raise ValueError("'function' is required when using 'module' mode")
        return self


class PythonTask(Task):
    """Runs Python code with ``INPUT``; what it leaves in ``RESULT`` becomes the output ``result``.

    Outputs: ``stdout`` (stripped), ``stderr``, ``exit_code``, ``truncated``, and ``result`` unless RESULT is None.
    """

    def execute(self, stage: StageExecution) -> TaskResult:
        """Run the code of ``stage``."""
        try:
            options = read_options(PythonOptions, stage)
            given = {**visible_data(PythonOptions, stage), **options.inputs}
            job = _job(options, stage, given)
        except OptionError as error:
            return TaskResult.terminal(str(error))
        try:
            # What a script prints cannot get there: neither pass for RESULT, nor push it out.
            with nameless_file(json.dumps(job).encode("ascii")) as channel:
                process = run_group(
                    [options.python_path, "-c", _child_source(), str(channel.fileno())],
                    timeout=options.timeout,
                    max_output_size=options.max_output_size,
                    cwd=options.cwd,
                    env=options.environment(),
                    pass_fds=[channel.fileno()],
                )
                channel.seek(0)
                sent = channel.read(MAX_RESULT_BYTES + 1) if process.exit_code == 0 else b""
        except OSError as error:
            return options.failure(masker_of(stage).text(f"Python execution failed: {error}"))
        return _result(options, process, sent, stage)

    def get_execution_timeout(self, stage: StageExecution) -> timedelta | None:
        """The option ``timeout`` and some room to end the process."""
        return execution_timeout(stage)


def _job(options: PythonOptions, stage: StageExecution, given: dict[str, Any]) -> dict[str, Any]:
    """Everything the child needs to know.

    Raises:
        OptionError: the script cannot be read, or INPUT holds something that no other process can be given.
    """
    name = f"<script of stage {stage_label(stage)!r}>"
    for key, value in given.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise OptionError(f"Failed to generate script: INPUT[{key!r}] is not JSON: {error}") from None
    job = {
        "name": name,
        "source": options.script,
        "file": None,
        "module": options.module,
        "function": options.function,
        "argv": [options.script_file or name, *map(str, options.args)],
        "input": given,
    }
    if options.script_file is not None:
        path, raw = _read(options.script_file, options.cwd)
        # One character for each byte: the file says its encoding itself.
        job |= {"name": path, "file": path, "source": raw.decode("latin-1")}
    return job


def _read(script_file: str, cwd: str | None) -> tuple[str, bytes]:
    if ".." in script_file.replace("\\", "/").split("/"):
        raise OptionError(
            f"Failed to generate script: Path traversal blocked in script_file: {script_file!r}"
        )
    path = os.path.abspath(os.path.join(cwd or os.getcwd(), script_file))
    try:
        with open(path, "rb") as file:
            return path, file.read()
    except FileNotFoundError:
        raise OptionError(f"Failed to generate script: Script file not found: {script_file}") from None
    except OSError as error:
        raise OptionError(f"Failed to generate script: {script_file}: {error.strerror}") from None


@cache
def _child_source() -> str:
    return files("stabilize_celery.tasks").joinpath("python_child.py").read_text("utf-8")


def _result(options: PythonOptions, process: ProcessResult, sent: bytes, stage: StageExecution) -> TaskResult:
    masker = masker_of(stage)
    out, err = printed(process, masker if process.exit_code == 0 else redactor_of(stage))
    data: dict[str, Any] = {
        "stdout": out.strip(),
        "stderr": err,
        "exit_code": process.exit_code,
        "truncated": process.truncated,
    }
    wrong = None
    if process.exit_code != 0:
        tail = err.strip()[-_ERROR_TAIL:]
        wrong = f"Python script failed with exit code {process.exit_code}" + (f": {tail}" if tail else "")
    elif len(sent) > MAX_RESULT_BYTES:
        wrong = f"RESULT is larger than {MAX_RESULT_BYTES} bytes"
    elif sent:
        try:
            data["result"] = masker.value(json.loads(sent))
        except ValueError as error:
            wrong = f"RESULT was damaged: {error}"
    return options.result(process, data, "Python script", wrong)
