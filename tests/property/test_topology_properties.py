"""The order of a graph, for any graph."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stabilize_celery.errors import CircularDependencyError
from stabilize_celery.topology import (
    downstream_closure,
    find_cycle,
    topological_order,
    upstream_closure,
)

REFS = st.text("abcXYZ019-_é", min_size=1, max_size=3)


@st.composite
def graphs(draw, min_size=0):
    """Acyclic: every stage requires only some of those before it in a random arrangement."""
    refs = draw(st.lists(REFS, unique=True, min_size=min_size, max_size=14))
    requires = {}
    for index, ref in enumerate(refs):
        requires[ref] = draw(st.sets(st.sampled_from(refs[:index]), max_size=4)) if index else set()
    return dict(draw(st.permutations(list(requires.items()))))


@st.composite
def cyclic_graphs(draw):
    requires = draw(graphs(min_size=1))
    members = draw(st.lists(st.sampled_from(sorted(requires)), unique=True, min_size=1))
    for index, member in enumerate(members):
        requires[member] = requires[member] | {members[index - 1]}
    return requires


def by_the_definition(requires):
    order = []
    while len(order) < len(requires):
        ready = [ref for ref, needed in requires.items() if ref not in order and needed <= set(order)]
        order.append(min(ready))
    return order


@settings(deadline=None)
@given(graphs())
def test_the_order_is_the_one_that_the_rule_defines(requires) -> None:
    assert topological_order(requires) == by_the_definition(requires)


@settings(deadline=None)
@given(graphs(), st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_the_order_of_declaration(requires, random) -> None:
    items = list(requires.items())
    random.shuffle(items)
    assert topological_order(dict(items)) == topological_order(requires)


@settings(deadline=None)
@given(graphs(min_size=1), st.data())
def test_a_part_with_all_its_requirements_keeps_its_order_within_the_whole(requires, data) -> None:
    chosen = data.draw(st.sets(st.sampled_from(sorted(requires))))
    part = chosen.union(*(upstream_closure(requires, ref) for ref in chosen))
    alone = topological_order({ref: requires[ref] for ref in part})
    assert [ref for ref in topological_order(requires) if ref in part] == alone


@settings(deadline=None)
@given(cyclic_graphs())
def test_every_injected_cycle_leads_to_a_real_one(requires) -> None:
    cycle = find_cycle(requires)
    assert cycle
    assert len(set(cycle)) == len(cycle)
    assert all(cycle[index - 1] in requires[ref] for index, ref in enumerate(cycle))
    with pytest.raises(CircularDependencyError) as caught:
        topological_order(requires)
    assert caught.value.stages == cycle


@settings(deadline=None)
@given(graphs(min_size=1), st.data())
def test_closures_are_what_can_be_reached(requires, data) -> None:
    ref = data.draw(st.sampled_from(sorted(requires)))
    above = set(requires[ref])
    while True:
        more = above.union(*(requires[other] for other in above))
        if more == above:
            break
        above = more
    assert upstream_closure(requires, ref) == above
    assert downstream_closure(requires, ref) == {
        other for other in requires if ref in upstream_closure(requires, other)
    }
