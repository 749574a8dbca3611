"""Identifiers: ULIDs, which sort by the time they were made."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from ulid import ULID

_LENGTH = 26
_numbers: Iterator[int] | None = None


def is_id(text: str) -> bool:
    """Whether it has the form of such an identifier."""
    return len(text) == _LENGTH and text.isalnum() and text.isupper()


def new_id() -> str:
    """A fresh identifier of 26 characters."""
    if _numbers is not None:
        return f"T{next(_numbers):0{_LENGTH - 1}d}"
    return str(ULID())


@contextmanager
def numbered_ids() -> Iterator[None]:
    """Number identifiers within the block, so that tests do the same thing each time; one block at a time."""
    global _numbers  # noqa: PLW0603 - identifiers are made everywhere in the process
    before, _numbers = _numbers, itertools.count()
    try:
        yield
    finally:
        _numbers = before
