"""Identifiers: ULIDs, which sort by the time they were made."""

from __future__ import annotations

from ulid import ULID

_LENGTH = 26


def is_id(text: str) -> bool:
    """Whether it has the form of such an identifier."""
    return len(text) == _LENGTH and text.isalnum() and text.isupper()


def new_id() -> str:
    """A fresh identifier of 26 characters."""
    return str(ULID())
