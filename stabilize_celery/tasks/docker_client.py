"""The connection to a Docker engine, and how to stop waiting for it."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from stabilize_celery.tasks.processes import Capture, Ending
from stabilize_celery.tasks.run import current_run

#: Seconds an action has to end by itself after its container was killed, before its connection is cut.
_CUT_AFTER_SECONDS = 10.0
_CHUNK = 65536
#: Head of a piece of output: stream, three unused bytes, size.
_FRAME = struct.Struct(">BxxxL")


class DockerMissingError(Exception):
    """There is no Docker engine, or no SDK to speak to it."""


def connect(timeout: float) -> Any:
    """A low-level client of the engine that the environment (``DOCKER_HOST`` etc.) names.

    Raises:
        DockerMissingError: none answers, or the extra ``docker`` is not installed.
    """
    try:
        import docker
    except ImportError:
        raise DockerMissingError("install stabilize-celery[docker]") from None
    try:
        # From the first read on, silence may last as long as the whole action.
        return docker.DockerClient.from_env(version="auto", timeout=timeout).api
    except docker.errors.DockerException as error:
        reason = str(error)
    # Out here, so that the sockets the SDK leaves in the traceback go now.
    raise DockerMissingError(reason)


class Watch:
    """Ends an action when its time is over or its run is interrupted.

    While the block runs, :meth:`stopping` says what ends the work at the engine.  If the action has not ended some
    time after that, the responses it waits for are cut off, so that the worker gets on in any case.
    """

    def __init__(self, client: Any, timeout: float) -> None:
        self.ended: Ending = "exit"
        self._timeout = timeout
        self._stops: list[Callable[[], None]] = []
        self._responses: list[Any] = []
        self._cut = False
        self._over = threading.Event()
        self._lock = threading.Lock()
        client.hooks["response"].append(self._note)

    def _note(self, response: Any, *_: Any, **__: Any) -> None:
        """Called by requests when the head of a response has arrived."""
        with self._lock:
            self._responses.append(response)
            cut = self._cut
        if cut:
            _wake(response)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch over the block."""
        run = current_run()
        timer = threading.Timer(self._timeout, self._end, ["timeout"])
        timer.daemon = True
        timer.start()
        try:
            with run.on_interrupt(lambda: self._end("interrupt")) if run else contextlib.nullcontext():
                yield
        finally:
            self._over.set()
            timer.cancel()
            for response in self._responses:
                with contextlib.suppress(Exception):
                    response.close()

    def stopping(self, stop: Callable[[], None]) -> None:
        """``stop`` is called, in another thread, to end the work; at once if that time has come already."""
        with self._lock:
            late = self.ended != "exit"
            self._stops.append(stop)
        if late:
            stop()

    def _end(self, why: Ending) -> None:
        with self._lock:
            if self.ended != "exit" or self._over.is_set():
                return
            self.ended = why
            stops = list(self._stops)
        threading.Thread(target=self._stop, args=[stops], daemon=True).start()

    def _stop(self, stops: list[Callable[[], None]]) -> None:
        for stop in stops:
            stop()
        if stops and self._over.wait(_CUT_AFTER_SECONDS):
            return
        with self._lock:
            self._cut = True
            responses = list(self._responses)
        for response in responses:
            _wake(response)


def _wake(response: Any) -> None:
    """Let whoever reads the response find its end.  It may have ended already, or its transport may not be able to."""
    with contextlib.suppress(Exception):
        response.raw.shutdown()


def frames(response: Any, tty: bool) -> Iterator[tuple[int, bytes]]:
    """The output in a raw response: which stream (1 stdout, 2 stderr) and what it got.

    The SDK reads it past the buffer of the HTTP client, and loses what arrived together with the response's head.
    """
    while tty and (chunk := response.raw.read1(_CHUNK)):
        yield 1, chunk
    while not tty and len(head := response.raw.read(_FRAME.size)) == _FRAME.size:
        stream, size = _FRAME.unpack(head)
        while size > 0 and (chunk := response.raw.read(min(size, _CHUNK))):
            size -= len(chunk)
            yield stream, chunk


def bounded(chunks: Iterable[bytes | str], limit: int) -> Capture:
    """The first ``limit`` bytes of a stream; what follows is not fetched."""
    capture = Capture(limit)
    for chunk in chunks:
        capture.add(chunk.encode() if isinstance(chunk, str) else chunk)
        if capture.truncated:
            break
    close = getattr(chunks, "close", None)
    if close is not None:
        with contextlib.suppress(Exception):
            close()
    return capture
