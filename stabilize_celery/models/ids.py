"""Identifiers: ULIDs, which sort by the time they were made."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ulid import ULID

_LENGTH = 26
_numbers: Iterator[int] | None = None
_last = 0
_lock = threading.Lock()


def is_id(text: str) -> bool:
    """Whether it has the form of such an identifier."""
    return len(text) == _LENGTH and text.isalnum() and text.isupper()


def new_id() -> str:
    """A fresh identifier of 26 characters."""
    global _last  # noqa: PLW0603 - one order per process
    if _numbers is not None:
        return f"T{next(_numbers):0{_LENGTH - 1}d}"
    fresh = int(ULID())
    with _lock:
        # Within a millisecond, and while a clock that was set back has not caught up, they go on from the last one.
        _last = fresh = max(fresh, _last + 1)
    return str(ULID.from_int(fresh))


def _forget() -> None:
    """A forked process goes on from a start of its own: from its parent's it would make the same ones."""
    global _last, _lock
    _last, _lock = 0, threading.Lock()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def numbered_ids() -> Iterator[None]:
    """Number identifiers within the block, so that tests do the same thing each time; one block at a time."""
    global _numbers  # noqa: PLW0603 - identifiers are made everywhere in the process
    before, _numbers = _numbers, itertools.count()
    try:
        yield
    finally:
        _numbers = before
