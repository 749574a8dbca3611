"""PythonTask: a script, a script file or a function, run in a fresh interpreter.

What starting an interpreter costs, measured on an idle core: 10 ms for Python and its site-packages, 4 ms for
this task's own part.  ``-S`` would save 3 ms and take away installed packages, ``-I`` saves nothing and takes
away ``PYTHONPATH`` and the working directory, ``-X frozen_modules`` is the default already; so no flags.  What
does pay is to import nothing: see ``python_child.py``.  ``in_process`` costs no start at all, and isolates nothing.
"""

from __future__ import annotations

import json
import marshal
import os
import sys
import tempfile
from datetime import timedelta
from functools import cache
from importlib.resources import files
from typing import IO, Any

from pydantic import Field, model_validator

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.tasks.in_process import run_in_process
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.options import (
    OptionError,
    masker_of,
    read_options,
    redactor_of,
    stage_label,
    visible_data,
)
from stabilize_celery.tasks.process_options import (
    PlainText,
    ProcessOptions,
    execution_timeout,
    exit_error,
    printed,
    seconds,
)
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.subprocess_group import run_group
from stabilize_celery.tasks.supervision import ProcessResult

#: Bytes; a RESULT beyond this belongs into a file or a table, with only its name in RESULT.
MAX_RESULT_BYTES = 64 * 1024 * 1024
#: Marshal format every Python 3 reads, whatever version ``python_path`` is.
_MARSHAL_VERSION = 2


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
    #: Run it in the worker's own interpreter; see :mod:`stabilize_celery.tasks.in_process` for what that
    #: gives up.
    in_process: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> PythonOptions:
        given = [name for name in ("script", "script_file", "module") if getattr(self, name) is not None]
        if not given:
            raise ValueError("One of 'script', 'script_file', or 'module' must be specified")
        if len(given) > 1:
            raise ValueError("Only one of 'script', 'script_file', or 'module' can be specified")
        if self.module is not None and self.function is None:
            raise ValueError("'function' is required when using 'module' mode")
        if self.in_process:
            process_wide = {"cwd", "env", "python_path", "args"} & self.model_fields_set
            if process_wide:
                raise ValueError(f"'in_process' cannot be combined with {', '.join(sorted(process_wide))}")
        return self


class PythonTask(Task):
    """Runs Python code with ``INPUT``; what it leaves in ``RESULT`` becomes the output ``result``.

    Outputs: ``stdout`` (stripped), ``stderr``, ``exit_code``, ``truncated``, and ``result`` unless RESULT is
        None. RESULT travels over a file of its own, so nothing a script prints can pass for it or push it
        out.
    """

    def execute(self, stage: StageExecution) -> TaskResult:
        """Run the code of ``stage``."""
        try:
            options = read_options(PythonOptions, stage)
            given = {**visible_data(PythonOptions, stage), **options.inputs}
            job = _job(options, stage, given)
        except OptionError as error:
            return TaskResult.terminal(str(error))
        masker = masker_of(stage)
        if options.in_process:
            return run_in_process(job, options, masker)
        try:
            with _file(job) as channel:
                process = _start(options, channel)
                result = _received(channel) if process.exit_code == 0 else None
        except OSError as error:
            return options.failure(masker.text(f"Python execution failed: {error}"))
        return _result(options, process, result, stage)

    def get_execution_timeout(self, stage: StageExecution) -> timedelta | None:
        """The option ``timeout`` and some room to end the process."""
        return execution_timeout(stage)


def _job(options: PythonOptions, stage: StageExecution, given: dict[str, Any]) -> dict[str, Any]:
    """Everything the child needs to know.

    Raises:
        OptionError: the script cannot be read, or INPUT holds something that no other process can be given.
    """
    name = f"<script of stage {stage_label(stage)!r}>"
    source: str | bytes | None = options.script
    path = None
    if options.script_file is not None:
        name, source = _read(options.script_file, options.cwd)
        path = os.path.dirname(name)
    job = {
        "name": name,
        "source": source,
        "file": name if options.script_file is not None else None,
        "path": path,
        "module": options.module,
        "function": options.function,
        "argv": [options.script_file or name, *map(str, options.args)],
        "input": given,
    }
    for key, value in given.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise OptionError(f"Failed to generate script: INPUT[{key!r}] is not JSON: {error}") from None
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


def _file(job: dict[str, Any]) -> IO[bytes]:
    """A file without a name that holds the job and will hold the result; in memory where the system can."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("stabilize-python"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(marshal.dumps(job, _MARSHAL_VERSION))
    file.flush()
    file.seek(0)
    return file


@cache
def _child_source() -> str:
    return files("stabilize_celery.tasks").joinpath("python_child.py").read_text("utf-8")


def _start(options: PythonOptions, channel: IO[bytes]) -> ProcessResult:
    return run_group(
        [options.python_path, "-c", _child_source(), str(channel.fileno())],
        timeout=options.timeout,
        max_output_size=options.max_output_size,
        cwd=options.cwd,
        env=options.environment(),
        pass_fds=[channel.fileno()],
    )


def _received(channel: IO[bytes]) -> bytes:
    """What the child wrote, one byte beyond the limit at most."""
    channel.seek(0)
    return channel.read(MAX_RESULT_BYTES + 1)


def _result(
    options: PythonOptions, process: ProcessResult, sent: bytes | None, stage: StageExecution
) -> TaskResult:
    masker = masker_of(stage)
    out, err = printed(process, masker if process.exit_code == 0 else redactor_of(stage))
    data: dict[str, Any] = {
        "stdout": out.strip(),
        "stderr": err,
        "exit_code": process.exit_code,
        "truncated": process.truncated,
    }
    if process.ended == "interrupt":
        return TaskResult.terminal("Python script was interrupted", context=data)
    if process.ended == "timeout":
        return options.failure(f"Python script timed out after {seconds(options.timeout)}s", data)
    if process.exit_code != 0:
        return options.failure(exit_error(process.exit_code, err), data)
    if sent:
        if len(sent) > MAX_RESULT_BYTES:
            return options.failure(f"RESULT is larger than {MAX_RESULT_BYTES} bytes", data)
        try:
            data["result"] = masker.value(json.loads(sent))
        except ValueError as error:
            return options.failure(f"RESULT was damaged: {error}", data)
    return TaskResult.success(outputs=data)
