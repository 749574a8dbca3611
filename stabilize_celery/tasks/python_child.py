"""What a fresh interpreter does for one PythonTask; its text is given to the interpreter with ``-c``.

It runs under whatever interpreter ``python_path`` names, so it uses old syntax and nothing but the standard library.  The
only argument is the descriptor of a file without a name.  The job is read from it, then RESULT is written to it.
"""

from __future__ import annotations

import sys

_first = sys.path.pop(0) if sys.path[:1] == [""] else None
# A json.py beside the script is the script's, and not meant here.
import json  # noqa: E402
import os  # noqa: E402

if _first is not None:
    sys.path.insert(0, _first)
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _report(error: BaseException, job: Any) -> None:
    """Print the traceback as if the script were a file that had been started."""
    import linecache
    import traceback

    if job["source"] is not None:
        text = job["source"]
        if job["file"] is not None:
            text = text.encode("latin-1").decode("utf-8", "replace")
        linecache.cache[job["name"]] = (len(text), None, text.splitlines(True), job["name"])
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == "<string>":
        trace = trace.tb_next
    traceback.print_exception(type(error), error.with_traceback(trace), trace)


def _prepare(job: Any) -> Any:
    """Make this interpreter look like one that was started with the script; returns its namespace."""
    sys.argv = job["argv"]
    for stream in (sys.stdout, sys.stderr):
        # By lines, so that what was printed before a timeout is there.
        stream.reconfigure(  # type: ignore[union-attr]
            encoding="utf-8", errors=stream.errors, line_buffering=True
        )
    main = type(sys)("__main__")
    main.__dict__.update(INPUT=job["input"], RESULT=None, __builtins__=__builtins__)
    if job["file"] is not None:
        sys.path[0] = os.path.dirname(job["file"])
        main.__file__ = job["file"]
    sys.modules["__main__"] = main
    return main.__dict__


def _execute(job: Any, names: Any) -> None:
    if job["module"] is not None:
        __import__(job["module"])
        found = sys.modules[job["module"]]
        for part in job["function"].split("."):
            found = getattr(found, part)
        names["RESULT"] = found(job["input"])  # type: ignore[operator]
    else:
        source = job["source"] if job["file"] is None else job["source"].encode("latin-1")
        exec(compile(source, job["name"], "exec", 0, True), names)


def _run(fd: int) -> None:
    os.set_inheritable(fd, False)
    channel = os.fdopen(fd, "r+b")
    job = json.loads(channel.read().decode("ascii"))
    channel.seek(0)
    channel.truncate()
    names = _prepare(job)
    process = os.getpid()
    try:
        _execute(job, names)
    except SystemExit as stop:
        if stop.code not in (None, 0):
            raise
    except BaseException as error:
        _report(error, job)
        raise SystemExit(1) from None
    # A child that the script forked and that got here has a RESULT of its own, which nothing has asked for.
    if names.get("RESULT") is None or os.getpid() != process:
        return
    try:
        # NaN and infinity are refused, because databases refuse them.
        text = json.dumps(names["RESULT"], allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        sys.stderr.write("RESULT cannot be stored as JSON: " + str(error) + "\n")
        raise SystemExit(1) from None
    channel.write(text.encode("ascii"))
    channel.flush()


if __name__ == "__main__":
    _KEPT = sys.modules["__main__"]  # its functions must outlive its replacement in sys.modules
    _run(int(sys.argv[1]))
