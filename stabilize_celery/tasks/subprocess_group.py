"""Run a command in a session of its own, keep what it prints up to a limit, leave nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence

from stabilize_celery.tasks.orphan_guard import guarded
from stabilize_celery.tasks.run import current_run
from stabilize_celery.tasks.supervision import ProcessResult, Supervision


def run_group(
    argv: Sequence[str],
    *,
    timeout: float,
    max_output_size: int,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    pass_fds: Sequence[int] = (),
) -> ProcessResult:
    """Run a command to its end.

    What the command leaves running in its process group gets ``GRACE_SECONDS`` to close the output it shares,
    and is then killed: nobody would watch over it.  A daemon that is meant to stay has to leave the group
    (``setsid``). The current run's interrupt (cancel, engine timeout, lost lease) ends the whole group.

    Args:
        timeout: seconds until the group is ended.
        max_output_size: bytes kept of each stream; the rest is read and dropped, so the command never blocks
            on it.
        stdin: what it can read; nothing when ``None``.

    Raises:
        OSError: it could not be started.
    """

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=cwd,
            env=None if env is None else dict(env),
            pass_fds=pass_fds,
            start_new_session=True,
        )

    with (
        _interruptible() as wake,
        guarded(start) as process,
        Supervision(process, wake, timeout, max_output_size, stdin) as supervision,
    ):
        return supervision.run()


@contextlib.contextmanager
def _interruptible() -> Iterator[int]:
    """A descriptor that becomes readable when the current run is interrupted (from another thread)."""
    reader, writer = os.pipe()
    lock = threading.Lock()
    is_open = True

    def wake() -> None:
        with lock:
            if is_open:
                os.write(writer, b"!")

    run = current_run()
    try:
        with run.on_interrupt(wake) if run else contextlib.nullcontext():
            yield reader
    finally:
        with lock:
            is_open = False
        os.close(reader)
        os.close(writer)
