"""All changes, and those that are made today."""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random

from tests.mutations import branches, controls, interleaved, rules, storage, tasks, work
from tests.mutations.change import Change

CHANGES: list[Change] = [
    *branches.CHANGES,
    *controls.CHANGES,
    *tasks.CHANGES,
    *rules.CHANGES,
    *storage.CHANGES,
    *work.CHANGES,
    *interleaved.CHANGES,
]


def drawn(number: int, seed: str | None = None) -> list[Change]:
    """Some of them, drawn by a seed, or by the date (in UTC)."""
    return Random(seed or datetime.now(UTC).date().isoformat()).sample(CHANGES, number)
