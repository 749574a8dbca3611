"""Python code run in the worker's own interpreter: fast, for code that is trusted and short.

What it gives up against a process of its own:

* ``stdout`` holds what the script's own ``print`` writes; what other modules print goes where the worker's
  output goes.
* A timeout or an interrupt raises an exception in the thread at its next bytecode: code that is inside a C
  function or that catches ``BaseException`` is not stopped.
* The script shares memory, modules and environment with everything else in the worker; a crash of the
  interpreter takes the worker with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import linecache
import threading
import traceback
from collections.abc import Iterator
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from stabilize_celery.redaction import Masker
from stabilize_celery.tasks.process_options import exit_error, seconds
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import current_run

if TYPE_CHECKING:
    from stabilize_celery.tasks.python import PythonOptions


class _TimedOut(BaseException):
    """Raised in the script's thread when its time is over."""


class _Interrupted(BaseException):
    """Raised in the script's thread when its run is told to stop."""


class _Printed:
    """Keeps the first characters that are printed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = io.StringIO()
        self.truncated = False

    def print(self, *values: Any, file: Any = None, **options: Any) -> None:
        """The ``print`` of the script."""
        if file is not None:
            print(*values, file=file, **options)
            return
        options.pop("flush", None)
        text = io.StringIO()
        print(*values, file=text, **options)
        room = self._limit - self._buffer.tell()
        self.truncated = self.truncated or len(text.getvalue()) > room
        self._buffer.write(text.getvalue()[: max(room, 0)])

    def text(self, masker: Masker) -> str:
        return masker.text(self._buffer.getvalue(), truncated=self.truncated)


@contextlib.contextmanager
def _stopped_after(timeout: float) -> Iterator[None]:
    """Raise in this thread when the time is over or the run is interrupted, and never after the block."""
    thread = threading.get_ident()
    lock = threading.Lock()
    is_open = True

    def stop(reason: type[BaseException]) -> None:
        with lock:
            if is_open:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(reason))

    run = current_run()
    timer = threading.Timer(timeout, stop, [_TimedOut])
    timer.daemon = True
    timer.start()
    try:
        with run.on_interrupt(lambda: stop(_Interrupted)) if run else contextlib.nullcontext():
            yield
    finally:
        late: BaseException | None = None
        for _ in range(3):  # each of the two exceptions may still arrive right here, once
            try:
                with lock:
                    is_open = False
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)
                break
            except (_TimedOut, _Interrupted) as error:
                late = error
        timer.cancel()
        if late is not None:
            raise late


def run_in_process(job: dict[str, Any], options: PythonOptions, masker: Masker) -> TaskResult:
    """Run the job here; the same outputs and errors as from a process."""
    printed = _Printed(options.max_output_size)
    # A copy, as a process would have: a script that changes INPUT changes nothing else.
    names = {"__name__": "__main__", "INPUT": json.loads(json.dumps(job["input"])), "RESULT": None}
    names["print"] = printed.print
    exit_code, stderr, ended = 0, "", "exit"
    try:
        with _stopped_after(options.timeout):
            _run(job, names)
        result = json.loads(json.dumps(names["RESULT"], allow_nan=False))
    except _TimedOut:
        exit_code, ended = -1, "timeout"
    except _Interrupted:
        exit_code, ended = -1, "interrupt"
    except Exception as raised:
        exit_code, stderr = 1, masker.text(_traceback(raised, job))
    except SystemExit as stop:
        exit_code = stop.code if isinstance(stop.code, int) else 1
        stderr = "" if isinstance(stop.code, int) else masker.text(f"{stop.code}\n")
    data: dict[str, Any] = {
        "stdout": printed.text(masker).strip(),
        "stderr": stderr[: options.max_output_size],
        "exit_code": exit_code,
        "truncated": printed.truncated or len(stderr) > options.max_output_size,
    }
    if ended == "interrupt":
        return TaskResult.terminal("Python script was interrupted", context=data)
    if ended == "timeout":
        return options.failure(f"Python script timed out after {seconds(options.timeout)}s", data)
    if exit_code != 0:
        return options.failure(exit_error(exit_code, data["stderr"]), data)
    if result is not None:
        data["result"] = masker.value(result)
    return TaskResult.success(outputs=data)


def _run(job: dict[str, Any], names: dict[str, Any]) -> None:
    try:
        if job["module"] is not None:
            function = attrgetter(job["function"])(import_module(job["module"]))
            names["RESULT"] = function(names["INPUT"])
        else:
            exec(compile(job["source"], job["name"], "exec", 0, dont_inherit=True), names)
    except SystemExit as stop:
        if stop.code not in (None, 0):
            raise


def _traceback(error: BaseException, job: dict[str, Any]) -> str:
    """The script's part of the traceback, with its lines."""
    source = job["source"]
    if source is not None:
        text = source if isinstance(source, str) else source.decode("utf-8", "replace")
        linecache.cache[job["name"]] = (len(text), None, text.splitlines(True), job["name"])
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    try:
        return "".join(traceback.format_exception(error.with_traceback(trace)))
    finally:
        linecache.cache.pop(job["name"], None)
