"""The end of this process, told apart from what a task's own code raises.

A pool process that is told to end raises ``SystemExit`` wherever it happens to be.  In a task's body that is no failure
of the task: its attempt is handed back.  In the middle of a claim or of a commit it would lose what was done: there the
signal is held until the engine is through with the message.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from stabilize_celery.tasks.run import HandBackError

#: Seconds after a signal in which the next one is taken for the same order: it must not interrupt cleaning up.
_SAME_ORDER = 1.0


class Ending:
    """What is known of the end of one process.

    Attributes:
        signalled: a signal has told it to end.
        signs: each says whether it is being ended for a reason that only its pool knows.
        stopping: each says whether it ends as soon as its tasks have.
        limits: each says of an error which time limit of the pool's was exceeded, or gives ``None``.
    """

    def __init__(self) -> None:
        self.signs: list[Callable[[], bool]] = []
        self.stopping: list[Callable[[], bool]] = []
        self.limits: list[Callable[[BaseException], str | None]] = []
        self._before_raising: Callable[[], None] = lambda: None
        self.reset()
        os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        """Nothing is known."""
        self.signalled = False
        self._signals: Sequence[int] = ()
        self._guards = False
        self._held = False
        self._pending: int | None = None
        self._late = False
        #: When the message that is handled was started, by ``time.monotonic``.
        self.held_at = 0.0
        self._soft: int | None = None
        self._raised_at = -_SAME_ORDER
        self._originals: dict[int, Any] = {}

    # ------------------------------------------------------------------ asked by the worker

    def is_end(self, error: BaseException) -> bool:
        """Whether what a body raised means that the process is being ended, and not that the task failed.

        Any exception counts once the process is told to end: cleaning up may have replaced the first one.
        """
        return isinstance(error, HandBackError) or self.signalled or any(sign() for sign in self.signs)

    def limit_exceeded(self, error: BaseException) -> str | None:
        """Which time limit of the pool's ended the body, in words; ``None`` if none did."""
        return next((found for limit in self.limits if (found := limit(error)) is not None), None)

    def awaited(self, seconds: float) -> bool:
        """Whether the process turns out to be ending or stopping within that time."""
        end = time.monotonic() + seconds
        while True:
            if self.signalled or any(sign() for sign in (*self.signs, *self.stopping)):
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)

    # ------------------------------------------------------------------ signals

    def guard(self, ends: Sequence[int], soft: int | None, before_raising: Callable[[], None]) -> None:
        """In a pool process: take over the handlers of some signals as soon as it handles its first message.

        Args:
            ends: those that tell it to end; their handlers raise ``SystemExit``.
            soft: the one of a time limit, whose handler raises an exception.
            before_raising: called when the process is told to end.
        """
        self._signals = ends if soft is None else (*ends, soft)
        self._soft, self._before_raising = soft, before_raising

    @contextmanager
    def held(self) -> Iterator[None]:
        """Signals wait until the end of the block, or for a :meth:`released` one in it."""
        if self._signals:
            self._install()
        if not self._guards or self._held or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._held, self.held_at = True, time.monotonic()
        try:
            yield
        finally:
            self._held = False
            if isinstance(sys.exc_info()[1], Exception | None):
                self._deliver(in_body=False)

    @contextmanager
    def released(self) -> Iterator[None]:
        """User code runs in the block: a signal interrupts it."""
        if not self._held or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._held = False
        try:
            self._deliver(in_body=True)
            yield
        finally:
            self._held = True

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C in the block is an end of the process, if it would raise ``KeyboardInterrupt`` in this thread."""
        main = threading.current_thread() is threading.main_thread()
        if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._on_signal)
        self._guards = True
        try:
            with self.held():
                yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._guards = self.signalled = False

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self._signals:
            original = signal.getsignal(number)
            if callable(original) and original is not self._on_signal:
                self._originals[number] = original
                signal.signal(number, self._on_signal)
        self._signals, self._guards = (), True

    def _on_signal(self, number: int, frame: Any) -> None:
        if number == self._soft:
            if self._held:
                self._late = True
            else:
                self._originals[number](number, frame)
            return
        repeated = time.monotonic() - self._raised_at < _SAME_ORDER
        self.signalled = True
        if self._held:
            self._pending = number
        elif not repeated:
            self._raise(number)

    def _deliver(self, *, in_body: bool) -> None:
        number, self._pending = self._pending, None
        late, self._late = self._late, False
        if number is not None:
            self._raise(number)
        if late and in_body and self._soft is not None:
            # Anywhere else the time limit has nothing to stop any more.
            self._originals[self._soft](self._soft, None)

    def _raise(self, number: int) -> None:
        self._raised_at = time.monotonic()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        self._before_raising()
        sys.exit(-(256 - number))


#: Of this process.
ENDING = Ending()


def describe_limit(which: int, seconds: float | None) -> str:
    """A time limit of Celery's in words: the hard one (0) or the soft one (1)."""
    name, kind = (
        ("task_time_limit", "TimeLimitExceeded"),
        ("task_soft_time_limit", "SoftTimeLimitExceeded"),
    )[which]
    return f"Celery's {name}{'' if seconds is None else f' of {seconds:g}s'} ({kind})"
