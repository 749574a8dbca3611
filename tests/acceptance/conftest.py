"""What every page that is run leaves as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import _state


@pytest.fixture(autouse=True)
def _tasks_of_one_page() -> Iterator[None]:
    """Celery lets every app of a process know the tasks of all others, and pages call theirs by the same names."""
    before = set(_state._on_app_finalizers)
    yield
    _state._on_app_finalizers.intersection_update(before)
