"""A stage for transactions to meet on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.concurrency.stage_hands import Scene, scene_on


@pytest.fixture
def scene(postgres_url: str, tmp_path: Path) -> Iterator[Scene]:
    """An empty database and whoever is to run into each other there."""
    with scene_on(postgres_url, str(tmp_path / "log")) as made:
        yield made
