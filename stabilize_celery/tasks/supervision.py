"""Watch one process group from its start to its end.

One thread waits for everything at once (output, input, exit, timeout, interrupt), so a chatty, a silent and a
stuck command are all handled the same way.  The group is killed before its leader is reaped: until then its
number cannot belong to anything else.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import IO, Literal

#: Seconds between SIGTERM and SIGKILL; also how long output may stay open after the command itself has ended.
GRACE_SECONDS = 5.0
#: Seconds between looks at the child where the platform has no descriptor that becomes readable when it
#: exits.
_POLL_SECONDS = 0.02
_CHUNK = 65536
#: Reads of one chunk that empty the largest pipe an unprivileged process can have (1 MiB).
_PIPE_CHUNKS = 17

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


class Supervision:
    """Watches one process and its group.

    Args:
        process: the leader of the group.
        wake: a descriptor that becomes readable when the group is to be ended.
        timeout: seconds until it is ended anyway.
        limit: bytes kept of each stream.
        stdin: what the process can read.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], wake: int, timeout: float, limit: int, stdin: bytes | None
    ) -> None:
        self._process = process
        self._wake = wake
        self._deadline = time.monotonic() + timeout
        self._kill_at: float | None = None
        self._ended: Ending = "exit"
        self._captures: dict[int, Capture] = {}
        self._stdout, self._stderr = Capture(limit), Capture(limit)
        self._input = memoryview(stdin or b"")
        self._selector = selectors.DefaultSelector()
        self._pidfd: int | None = None
        with contextlib.suppress(AttributeError, OSError):
            self._pidfd = os.pidfd_open(process.pid)

    def __enter__(self) -> Supervision:
        """Start listening."""
        for stream, capture in ((self._process.stdout, self._stdout), (self._process.stderr, self._stderr)):
            fd = _fileno(stream)
            self._captures[fd] = capture
            self._watch(fd, selectors.EVENT_READ)
        if self._process.stdin is not None:
            self._watch(_fileno(self._process.stdin), selectors.EVENT_WRITE)
        self._watch(self._wake, selectors.EVENT_READ)
        if self._pidfd is not None:
            self._watch(self._pidfd, selectors.EVENT_READ)
        return self

    def __exit__(self, *_: object) -> None:
        # Also on an error or an asynchronous exception in this thread: nothing of the group survives.
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self._pidfd is not None:
            os.close(self._pidfd)

    def _watch(self, fd: int, event: int) -> None:
        if fd != self._wake and fd != self._pidfd:
            os.set_blocking(fd, False)
        self._selector.register(fd, event)

    def run(self) -> ProcessResult:
        """Wait until the command and what shares its output have ended, one way or another."""
        while not self._has_exited():
            self._step()
        drained_by = self._kill_at or time.monotonic() + GRACE_SECONDS
        while self._outputs_open() and time.monotonic() < drained_by:
            self._step(until=drained_by)
        self._signal(signal.SIGKILL)
        for fd in self._captures:
            # What the pipe still holds.  Bounded: a daemon that left the group may go on writing for ever.
            for _ in range(_PIPE_CHUNKS):
                if not self._read(fd):
                    break
        code = self._process.wait()
        return ProcessResult(
            exit_code=code if self._ended == "exit" else -1,
            stdout=bytes(self._stdout.data),
            stderr=bytes(self._stderr.data),
            stdout_truncated=self._stdout.truncated,
            stderr_truncated=self._stderr.truncated,
            ended=self._ended,
        )

    def _has_exited(self) -> bool:
        """Whether the leader has exited, without reaping it where that can be told."""
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return self._process.poll() is not None

    def _outputs_open(self) -> bool:
        return any(fd in self._selector.get_map() for fd in self._captures)

    def _step(self, until: float | None = None) -> None:
        """Wait for the next thing to happen and deal with it."""
        now = time.monotonic()
        if until is None:
            until = self._deadline if self._kill_at is None else self._kill_at
            if now >= until:
                self._escalate()
                return
        wait = max(0.0, until - now)
        for key, _ in self._selector.select(wait if self._pidfd is not None else min(wait, _POLL_SECONDS)):
            if key.fd in self._captures:
                self._read(key.fd)
            elif key.fd == self._wake:
                self._selector.unregister(key.fd)
                self._end("interrupt")
            elif key.fd == self._pidfd:
                self._selector.unregister(key.fd)
            else:
                self._feed(key.fd)

    def _escalate(self) -> None:
        if self._kill_at is None:
            self._end("timeout")
        else:
            self._signal(signal.SIGKILL)
            self._kill_at = time.monotonic() + GRACE_SECONDS

    def _end(self, why: Ending) -> None:
        if self._kill_at is None:
            self._ended = why
            self._kill_at = time.monotonic() + GRACE_SECONDS
            self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _read(self, fd: int) -> bool:
        """Take the next chunk; false when there is none now."""
        try:
            chunk = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
            return False
        self._captures[fd].add(chunk)
        return True

    def _feed(self, fd: int) -> None:
        """Write the next part of the input; a command may stop reading whenever it likes."""
        try:
            self._input = self._input[os.write(fd, self._input[:_CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:
            self._input = self._input[:0]
        if not self._input:
            self._selector.unregister(fd)
            _close(self._process.stdin)


def _fileno(stream: IO[bytes] | None) -> int:
    if stream is None:
        raise ValueError("not a pipe")
    return stream.fileno()


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.close()
