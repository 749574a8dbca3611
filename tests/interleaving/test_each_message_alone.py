"""Interleaved transactions of one message each, ``stabilize_inline = False``; see ``explore.py``."""

from __future__ import annotations

import pytest

from tests.interleaving.explore import PER_PAIR, Explorer
from tests.interleaving.situations import PAIRS
from tests.interleaving.world import World

#: With the pairs 750 schedules, half of those that every change is tried by.
SEEDS = range(0, 10_000, 1000)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PAIRS)
def test_a_pair(world: World, name: str) -> None:
    Explorer(world).pair(name, False, PER_PAIR)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_histories(world: World, seed: int) -> None:
    Explorer(world).explore(seed, 48, False)
