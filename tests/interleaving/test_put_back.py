"""The explorer finds the faults it is there for: each is put back, and must be found within 2,000 schedules.

A few with each run of the suite, all of them by ``make explore-faults``.
"""

from __future__ import annotations

import os

import pytest

from tests.interleaving.explore import Explorer, FoundError
from tests.interleaving.faults import FAULTS
from tests.interleaving.world import World

MOST = 2000
#: Found within seconds.
QUICK = ("premature_success", "downstream_lock_left_out", "stage_lock_left_out")
CHOSEN = tuple(FAULTS) if os.environ.get("STABILIZE_EXPLORE_FAULTS") == "all" else QUICK


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CHOSEN)
def test_a_fault_is_found(world: World, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    FAULTS[name](monkeypatch, world)
    with pytest.raises(FoundError):
        Explorer(world).hunt(0, MOST)
