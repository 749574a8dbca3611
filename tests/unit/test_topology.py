"""The order of a graph, by example."""

from __future__ import annotations

import time

import pytest

from stabilize_celery.errors import CircularDependencyError
from stabilize_celery.topology import (
    downstream_closure,
    downstream_index,
    find_cycle,
    topological_order,
    upstream_closure,
)

DIAMOND = {"d": {"b", "c"}, "b": {"a"}, "c": {"a"}, "a": set(), "z": {"d"}}


def test_of_the_ready_ones_the_smallest_comes_next() -> None:
    # z is ready from the beginning but stays behind everything smaller; b becomes ready only after z.
    assert topological_order({"z": [], "b": ["z"], "m": [], "a": ["m"]}) == ["m", "a", "z", "b"]


def test_nothing_has_an_order() -> None:
    assert topological_order({}) == []


def test_closures_do_not_contain_the_stage_itself() -> None:
    assert downstream_closure(DIAMOND, "b") == {"d", "z"}
    assert upstream_closure(DIAMOND, "d") == {"a", "b", "c"}
    assert downstream_closure({"a": ["b"], "b": ["a"]}, "a") == {"b"}


def test_downstream_index_turns_the_edges_around() -> None:
    assert downstream_index(DIAMOND) == {"d": ["z"], "b": ["d"], "c": ["d"], "a": ["b", "c"], "z": []}


@pytest.mark.parametrize("function", [topological_order, find_cycle, downstream_index])
def test_a_requirement_outside_the_graph_is_an_error(function) -> None:
    with pytest.raises(ValueError, match="'a' requires 'ghost'"):
        function({"a": ["ghost"]})


@pytest.mark.parametrize("closure", [downstream_closure, upstream_closure])
def test_the_closure_of_a_stranger_is_an_error(closure) -> None:
    with pytest.raises(ValueError, match="'ghost' is not in the graph"):
        closure(DIAMOND, "ghost")


def test_a_cycle_is_named_in_running_order_from_its_smallest_member() -> None:
    # before and after hang on the cycle without being part of it.
    requires = {
        "before": [],
        "c": ["b", "before"],
        "b": ["a"],
        "a": ["c"],
        "after": ["c"],
        "Also after": ["after"],
    }
    assert find_cycle(requires) == ["a", "b", "c"]
    with pytest.raises(CircularDependencyError, match="a -> b -> c -> a") as caught:
        topological_order(requires)
    assert caught.value.stages == ["a", "b", "c"]


def test_a_graph_without_a_cycle_has_none() -> None:
    assert find_cycle(DIAMOND) == []


def test_a_stage_that_requires_itself_is_a_cycle_of_one() -> None:
    assert find_cycle({"a": ["a"], "b": []}) == ["a"]


@pytest.mark.parametrize("shape", ["chain", "fan"])
def test_a_hundred_thousand_stages_are_no_special_case(shape: str) -> None:
    refs = [f"{number:06}" for number in range(100_000)]
    if shape == "chain":
        requires = {ref: refs[index - 1 : index] if index else [] for index, ref in enumerate(refs)}
    else:
        requires = {ref: refs[:1] if index else [] for index, ref in enumerate(refs)}
    started = time.perf_counter()
    assert topological_order(requires) == refs
    assert len(downstream_closure(requires, refs[0])) == 99_999
    assert time.perf_counter() - started < 20
