"""Processes of tasks: each runs in a group of its own, under limits, and outlives neither its task nor its worker.

The process group, not the process, is ended: a shell that gets SIGTERM while it waits for a child would leave that
child running.  Signals are sent only before the leader is reaped: until then its number belongs to nothing else.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Literal

from stabilize_celery.tasks.run import HandBackError, current_run

#: Seconds between SIGTERM and SIGKILL; also how long output may stay open after the command itself has ended.
GRACE_SECONDS = 5.0
#: Seconds between looks at the leader where the platform has no descriptor of its exit.
_POLL_SECONDS = 0.02
_CHUNK = 65536
#: Reads of one chunk that empty the largest pipe an unprivileged process can have (1 MiB).
_PIPE_CHUNKS = 17
#: Exit codes of a command that was ended by a signal, and of a shell whose command was.
_ENDED = {code for s in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT) for code in (-s, 128 + s)}
#: Seconds within which this process hears of it too.
_SIGN = 0.5

Ending = Literal["exit", "timeout", "interrupt"]


@dataclass(frozen=True)
class ProcessResult:
    """What became of a command.

    Attributes:
        exit_code: its exit code, negative for a signal; -1 if it was ended by a timeout or an interrupt.
        stdout, stderr: the first ``max_output_size`` bytes of each.
        stdout_truncated, stderr_truncated: there was more.
        ended: what ended it.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes
    stdout_truncated: bool
    stderr_truncated: bool
    ended: Ending

    @property
    def truncated(self) -> bool:
        """Something it printed was not kept."""
        return self.stdout_truncated or self.stderr_truncated


@dataclass
class Capture:
    """The first bytes of one stream."""

    limit: int
    data: bytearray = field(default_factory=bytearray)
    truncated: bool = False

    def add(self, chunk: bytes) -> None:
        """Keep what there is room for."""
        room = self.limit - len(self.data)
        self.data += chunk[:room]
        self.truncated = self.truncated or len(chunk) > room


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

    What it leaves running in its process group gets ``GRACE_SECONDS`` to close the output it shares, and is then killed.
    A daemon that is meant to stay has to leave the group (``setsid``). The current run's interrupt (cancel, engine
    timeout, lost lease) ends the whole group.

    Args:
        timeout: seconds until the group is ended.
        max_output_size: bytes kept of each stream; the rest is read and dropped, so that the command never blocks.
        stdin: what it can read.

    Raises:
        OSError: it could not be started.
        HandBackError: it was ended together with this worker, by what ends all processes of a service.
    """
    _guard.ready()
    pipe = subprocess.PIPE
    with (
        _interruptible() as wake,
        selectors.DefaultSelector() as selector,
        nameless_file(stdin or b"") as given,
        subprocess.Popen(
            argv, bufsize=0, stdin=given, stdout=pipe, stderr=pipe, cwd=cwd, env=env, pass_fds=pass_fds,
            start_new_session=True,
        ) as process,
    ):  # fmt: skip
        group = _Group(process, selector, time.monotonic() + timeout, max_output_size)
        try:
            _guard.tell("+", process.pid)
            result = group.run(wake)
        finally:
            # Also on an exception that was raised in this thread from outside.
            group.signal(signal.SIGKILL)
            process.wait()
            _guard.tell("-", process.pid)
    run = current_run()
    if result.ended == "exit" and result.exit_code in _ENDED and run is not None and run.is_ending(_SIGN):
        raise HandBackError(f"ended by signal together with its worker (exit code {result.exit_code})")
    return result


def nameless_file(content: bytes) -> IO[bytes]:
    """A file without a name, in memory where the system can; at its beginning, which a child shares."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("stabilize"), "w+b", buffering=0)
    else:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - the caller closes it
    file.write(content)
    file.seek(0)
    return file


@contextlib.contextmanager
def _interruptible() -> Iterator[int]:
    """A descriptor that becomes readable when the current run is interrupted, from another thread."""
    reader, writer = os.pipe()
    lock, is_open = threading.Lock(), [True]

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
            is_open.clear()
            os.close(writer)
        os.close(reader)


class _Group:
    """A process group, its output and its deadline."""

    def __init__(
        self, process: subprocess.Popen[bytes], selector: selectors.BaseSelector, deadline: float, limit: int
    ) -> None:
        self._process = process
        self._selector = selector
        #: When the next signal is sent, unless the command ends before.
        self._next_at = deadline
        self._ended: Ending = "exit"
        self._stopping = False
        self._outputs = {process.stdout: Capture(limit), process.stderr: Capture(limit)}

    def run(self, wake: int) -> ProcessResult:
        """Wait until the command and what shares its output have ended, one way or another."""
        with self._listening(wake) as pause:
            while not self._has_exited():
                if not self._step(self._next_at, pause):
                    self._end("timeout")
            drained_by = self._next_at if self._stopping else time.monotonic() + GRACE_SECONDS
            while self._open_outputs() and self._step(drained_by, pause):
                pass
            self.signal(signal.SIGKILL)
            for stream in self._open_outputs():
                # What the pipe still holds.  Bounded: a daemon that left the group may go on writing for ever.
                for _ in range(_PIPE_CHUNKS):
                    if not self._read(stream):
                        break
        code = self._process.wait()
        out, err = self._outputs.values()
        return ProcessResult(
            exit_code=code if self._ended == "exit" else -1,
            stdout=bytes(out.data),
            stderr=bytes(err.data),
            stdout_truncated=out.truncated,
            stderr_truncated=err.truncated,
            ended=self._ended,
        )

    def signal(self, number: signal.Signals) -> None:
        """To the whole group, unless its leader has been reaped."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    @contextlib.contextmanager
    def _listening(self, wake: int) -> Iterator[float]:
        """Listen to everything that can happen; gives the longest pause between looks at the leader."""
        for stream in self._outputs:
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, self._read)
        self._selector.register(wake, selectors.EVENT_READ, self._interrupted)
        try:
            exited = os.pidfd_open(self._process.pid)
        except (AttributeError, OSError):
            yield _POLL_SECONDS
            return
        try:
            self._selector.register(exited, selectors.EVENT_READ, self._selector.unregister)
            yield math.inf
        finally:
            os.close(exited)

    def _has_exited(self) -> bool:
        """Whether the leader has exited, without reaping it where that can be seen."""
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return self._process.poll() is not None

    def _open_outputs(self) -> list[IO[bytes]]:
        return [key.fileobj for key in self._selector.get_map().values() if key.fileobj in self._outputs]

    def _step(self, until: float, pause: float) -> bool:
        """Wait for the next thing to happen and deal with it; false when it is too late."""
        left = until - time.monotonic()
        if left > 0:
            for key, _ in self._selector.select(min(left, pause)):
                key.data(key.fileobj)
        return left > 0

    def _interrupted(self, wake: int) -> None:
        self._selector.unregister(wake)
        if not self._stopping:
            self._end("interrupt")

    def _end(self, why: Ending) -> None:
        """Ask the group to end; kill it if it was asked already."""
        if not self._stopping:
            self._ended = why
        self.signal(signal.SIGKILL if self._stopping else signal.SIGTERM)
        self._stopping = True
        self._next_at = time.monotonic() + GRACE_SECONDS

    def _read(self, stream: IO[bytes]) -> bool:
        """Read once; returns whether there was anything."""
        try:
            chunk = os.read(stream.fileno(), _CHUNK)
        except BlockingIOError:
            return False
        self._outputs[stream].add(chunk)
        if not chunk:
            self._selector.unregister(stream)
        return bool(chunk)


# A killed worker runs no code any more, and PR_SET_PDEATHSIG reaches only the direct child, and follows the thread that
# forked.  So a worker process that runs commands keeps one small shell beside it, in a session of its own, and writes the
# groups it starts and ends to its standard input.  When the worker dies, however it dies, that input ends, and the shell
# kills the groups still on its list.
_GUARD = """
trap '' INT TERM HUP
groups=' '
while read -r op group; do
  case $op in
    +) groups="$groups$group " ;;
    -) groups="${groups%% $group *} ${groups#* $group }" ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
"""


class _Guard:
    """The shell of one worker process and the groups it knows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shell: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()

    def ready(self) -> None:
        """Start the shell beforehand, so that nothing runs unguarded while it starts."""
        with self._lock:
            if self._shell is None or self._shell.poll() is not None:
                self._start()

    def tell(self, sign: Literal["+", "-"], group: int) -> None:
        """A group begins, or has ended."""
        with self._lock:
            (self._groups.add if sign == "+" else self._groups.discard)(group)
            if not self._write(f"{sign} {group}\n"):
                self._start()

    def close(self) -> None:
        """End the shell; groups that are still on its list are killed."""
        shell, self._shell = self._shell, None
        if shell is not None and shell.stdin is not None:
            with contextlib.suppress(OSError):
                shell.stdin.close()
            shell.wait()

    def forget(self) -> None:
        """In a forked child: the shell is the parent's, and would wait for a copy of its input too."""
        shell = self._shell
        self.__init__()  # type: ignore[misc]
        if shell is not None and shell.stdin is not None:
            shell.stdin.close()
            # Not this process's child: nothing to wait for, nothing to warn about.
            shell.returncode = 0

    def _start(self) -> None:
        self.close()
        null = subprocess.DEVNULL
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD],
            stdin=subprocess.PIPE,
            stdout=null,
            stderr=null,
            cwd="/",
            start_new_session=True,
        )
        self._write("".join(f"+ {group}\n" for group in sorted(self._groups)))

    def _write(self, text: str) -> bool:
        # Far below PIPE_BUF, so a line is never torn.
        with contextlib.suppress(OSError):
            if self._shell is not None and self._shell.stdin is not None:
                os.write(self._shell.stdin.fileno(), text.encode())
                return True
        return False


_guard = _Guard()
atexit.register(_guard.close)
os.register_at_fork(after_in_child=_guard.forget)
