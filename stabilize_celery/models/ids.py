"""Identifiers: ULIDs, which sort by the time they were made."""

from __future__ import annotations

from ulid import ULID


def new_id() -> str:
    """A fresh identifier of 26 characters."""
    return str(ULID())
