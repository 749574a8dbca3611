"""What a fresh interpreter does for one PythonTask; its text is given to the interpreter with ``-c``.

It runs under whatever interpreter ``python_path`` names, so it uses old syntax and nothing but what every
interpreter has built in: importing ``json`` alone would take as long as starting Python.  The only argument
is the descriptor of a file without a name.  The job is read from it, then RESULT is written to it, where
nothing a script prints can get.
"""

from __future__ import annotations

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _encode(value: Any) -> str:
    """JSON text; NaN and infinity are refused, because databases refuse them."""
    try:
        import _json

        # What json.dumps uses itself, without the import of the decoder and of re: half of the start time
        # saved.
        def refuse(item: Any) -> Any:
            raise TypeError("Object of type " + type(item).__name__ + " is not JSON serializable")

        make = getattr(_json, "make_encoder")  # noqa: B009
        encoder = make({}, refuse, _json.encode_basestring_ascii, None, ": ", ", ", False, False, False)
        return str("".join(encoder(value, 0)))
    except (ImportError, AttributeError, SystemError):
        import json

        return json.dumps(value, allow_nan=False)


def _report(error: BaseException, filename: str, source: Any) -> None:
    """Print the traceback as if the script were a file that had been started."""
    import linecache
    import traceback

    if source is not None:
        text = source if isinstance(source, str) else source.decode("utf-8", "replace")
        linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == "<string>":
        trace = trace.tb_next
    traceback.print_exception(type(error), error.with_traceback(trace), trace)


def _find(name: str, function: str) -> Any:
    __import__(name)
    found = sys.modules[name]
    for part in function.split("."):
        found = getattr(found, part)
    return found


def _receive(fd: int) -> Any:
    """The job; leaves the file empty."""
    os.set_inheritable(fd, False)
    size = os.fstat(fd).st_size
    parts = []
    while size > 0:
        parts.append(os.read(fd, size))
        size -= len(parts[-1])
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, 0)
    return marshal.loads(b"".join(parts))


def _send(fd: int, result: Any) -> None:
    try:
        text = _encode(result).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        sys.stderr.write("RESULT cannot be stored as JSON: " + str(error) + "\n")
        raise SystemExit(1) from None
    while text:
        text = text[os.write(fd, text) :]


def _prepare(job: Any) -> Any:
    """Make this interpreter look like one that was started with the script; returns its namespace."""
    sys.argv = job["argv"]
    if job["path"] is not None:
        sys.path[0] = job["path"]
    for stream in (sys.stdout, sys.stderr):
        # By lines, so that what was printed before a timeout is there.
        stream.reconfigure(  # type: ignore[union-attr]
            encoding="utf-8", errors=stream.errors, line_buffering=True
        )
    main = type(sys)("__main__")
    main.__dict__.update(INPUT=job["input"], RESULT=None, __builtins__=__builtins__)
    if job["file"] is not None:
        main.__file__ = job["file"]
    sys.modules["__main__"] = main
    return main.__dict__


def _run(fd: int) -> None:
    job = _receive(fd)
    names = _prepare(job)
    process = os.getpid()
    try:
        if job["module"] is not None:
            names["RESULT"] = _find(job["module"], job["function"])(job["input"])
        else:
            exec(compile(job["source"], job["name"], "exec", 0, True), names)
    except SystemExit as stop:
        if stop.code not in (None, 0):
            raise
    except BaseException as error:
        _report(error, job["name"], job["source"])
        raise SystemExit(1) from None
    # A child that the script forked and that got here has a RESULT of its own, which nobody asked for.
    if names.get("RESULT") is not None and os.getpid() == process:
        _send(fd, names["RESULT"])


if __name__ == "__main__":
    _KEPT = sys.modules["__main__"]  # its functions must outlive its replacement in sys.modules
    _run(int(sys.argv[1]))
