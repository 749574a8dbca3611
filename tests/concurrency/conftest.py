"""A stage for transactions to meet on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.concurrency.stage_hands import Scene, scene_on


@pytest.fixture
def scene(postgres_url: str, tmp_path: Path) -> Iterator[Scene]:
    """An empty database and whoever is to run into each other there."""
    with scene_on(postgres_url, str(tmp_path / "log")) as made:
        yield made


@pytest.fixture
def scene_with(postgres_url: str, tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    """The same, with settings of the test's choice."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(
            scene_on(postgres_url, str(tmp_path / "log"), **settings)
        )
