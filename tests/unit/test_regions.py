"""Which stages a jump touches, by examples."""

from __future__ import annotations

import pytest

from stabilize_celery.dag.branches import is_backward, jump_regions, restart_region

#: a -> b -> c -> d, with a side branch b -> x and a join of x with an outside stage: j < x o
GRAPH = {
    "a": set(),
    "b": {"a"},
    "c": {"b"},
    "d": {"c"},
    "x": {"b"},
    "o": set(),
    "j": {"x", "o"},
}


@pytest.mark.parametrize(
    ("source", "target", "backward"),
    [
        ("c", "a", True),
        ("c", "c", True),
        ("a", "d", False),
        ("x", "d", False),
        ("o", "a", False),
        ("j", "o", True),
    ],
)
def test_which_jumps_go_back(source: str, target: str, backward: bool) -> None:
    assert is_backward(GRAPH, source, target) is backward


@pytest.mark.parametrize(
    ("source", "target", "reset", "passed"),
    [
        # Scenario 50: back to the start; the join that is also fed from outside keeps what it waits for.
        ("c", "a", "a b c d x", ""),
        # Scenario 51: a stage that runs itself again.
        ("c", "c", "c d", ""),
        # Scenario 52: over b and c; what comes after b only is passed over too.
        ("a", "d", "d", "b c x"),
        # To a branch that has nothing to do with the source.
        ("o", "c", "c d", ""),
        # Scenario 57: into a join whose other upstream still runs.
        ("b", "j", "j", "c d x"),
    ],
)
def test_what_a_jump_resets_and_what_it_passes_over(
    source: str, target: str, reset: str, passed: str
) -> None:
    assert jump_regions(GRAPH, source, target) == (set(reset.split()), set(passed.split()))


@pytest.mark.parametrize(
    ("start", "canceled_by", "region"),
    [
        pytest.param("c", {}, "cd", id="what follows"),
        pytest.param("c", {"o": ["c"]}, "cdoj", id="what its failure canceled, and what follows that"),
        pytest.param("b", {"o": ["c"]}, "bcdxjo", id="what failed is behind the restarted stage"),
        pytest.param("c", {"o": ["x"]}, "cd", id="another failure canceled it"),
        pytest.param("c", {"x": ["c", "o"], "o": ["x"]}, "cdxjo", id="one failure behind another"),
    ],
)
def test_what_a_restart_runs_again(start: str, canceled_by: dict[str, list[str]], region: str) -> None:
    assert restart_region(GRAPH, start, canceled_by) == set(region)
