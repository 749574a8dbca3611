"""Which stages a jump resets, and which it passes over."""

from __future__ import annotations

import pytest

from stabilize_celery.dag.branches import exclusive_downstream, is_backward, jump_regions

CHAIN = {"a": [], "b": ["a"], "c": ["b"], "d": ["c"]}
#: x feeds the join from outside of the loop.
FED = {"a": [], "x": [], "b": ["a"], "j": ["b", "x"], "k": ["j"], "z": ["k"]}


@pytest.mark.parametrize(
    ("requires", "source", "target", "reset", "passed"),
    [
        pytest.param(CHAIN, "c", "a", "abcd", "", id="back along a chain"),
        pytest.param(CHAIN, "b", "b", "bcd", "", id="to itself"),
        pytest.param(CHAIN, "a", "d", "d", "bc", id="forward over a chain"),
        pytest.param(CHAIN, "a", "b", "bcd", "", id="to the next"),
        pytest.param(FED, "b", "a", "ab", "", id="a join fed from outside keeps its place"),
        pytest.param(FED, "k", "a", "abjkz", "", id="a join on the way back runs again"),
        pytest.param(FED, "a", "j", "jkz", "b", id="forward into a join"),
        pytest.param(FED, "a", "z", "z", "b", id="forward past a join that others feed"),
        pytest.param({"a": [], "b": [], "j": ["a", "b"]}, "a", "b", "b", "", id="to a branch beside it"),
    ],
)
def test_regions_of_a_jump(
    requires: dict[str, list[str]], source: str, target: str, reset: str, passed: str
) -> None:
    assert jump_regions(requires, source, target) == (set(reset), set(passed))


def test_what_can_only_be_reached_through_some_stages() -> None:
    assert exclusive_downstream(FED, {"a"}) == {"a", "b"}
    assert exclusive_downstream(FED, {"a", "x"}) == set(FED)


def test_back_means_to_itself_or_to_what_comes_before() -> None:
    assert is_backward(CHAIN, "b", "b")
    assert is_backward(CHAIN, "c", "a")
    assert not is_backward(CHAIN, "a", "c")
    assert not is_backward(FED, "x", "a")
