"""What a stage sees equals merging all its ancestors in topological order, for any graph and any outputs."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from stabilize_celery.context.sources import exported_sources, merge_sources, producers, resolve
from stabilize_celery.context.view import inherited_values
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.topology import topological_order, upstream_closure
from tests.property.test_topology_properties import graphs

OUTPUTS = st.dictionaries(st.sampled_from("xyz"), st.integers(0, 9), max_size=3)


@st.composite
def ended_workflows(draw: Any) -> dict[str, StageExecution]:
    """Stages of a graph with outputs, each having taken over what it sees from those directly before it."""
    requires = draw(graphs(min_size=1))
    stages: dict[str, StageExecution] = {}
    for place, ref in enumerate(topological_order(requires)):
        stage = StageExecution(
            id=f"id-{ref}", ref_id=ref, requisite_stage_ref_ids=requires[ref], outputs=draw(OUTPUTS)
        )
        stage.rank = [place, 0]
        stage.sources = merge_sources(exported_sources(stages[upstream]) for upstream in requires[ref])
        stages[ref] = stage
    return stages


def naive_merge(stages: dict[str, StageExecution], ref: str) -> dict[str, Any]:
    requires = {ref: stage.requisite_stage_ref_ids for ref, stage in stages.items()}
    above = upstream_closure(requires, ref)
    merged: dict[str, Any] = {}
    for ancestor in topological_order(requires):
        if ancestor in above:
            merged.update(stages[ancestor].outputs)
    return merged


@settings(deadline=None)
@given(ended_workflows())
def test_a_stage_sees_all_its_ancestors_merged_in_topological_order(
    stages: dict[str, StageExecution],
) -> None:
    outputs = {stage.id: stage.outputs for stage in stages.values()}
    for ref, stage in stages.items():
        expected = naive_merge(stages, ref)

        assert resolve(stage.sources, outputs) == expected
        assert inherited_values(stage, [], outputs) == expected


@settings(deadline=None)
@given(ended_workflows())
def test_only_the_producers_of_what_survives_are_read(stages: dict[str, StageExecution]) -> None:
    for stage in stages.values():
        needed = producers(stage.sources)
        outputs = {other.id: other.outputs for other in stages.values() if other.id in needed}

        assert resolve(stage.sources, outputs) == naive_merge(stages, stage.ref_id)
        assert len(needed) <= len(stage.sources)


@settings(deadline=None)
@given(ended_workflows(), st.randoms(use_true_random=False))
def test_the_order_of_merging_does_not_matter(stages: dict[str, StageExecution], random: Any) -> None:
    maps = [exported_sources(stage) for stage in stages.values()]
    shuffled = random.sample(maps, len(maps))

    assert merge_sources(shuffled) == merge_sources(maps)
    assert merge_sources([merge_sources(maps[:3]), merge_sources(maps[3:])]) == merge_sources(maps)
    assert merge_sources([*maps, *maps]) == merge_sources(maps)


def test_a_key_its_producer_has_no_longer_is_not_seen() -> None:
    sources = {"x": ["gone", 0, 0], "y": ["a", 1, 0]}

    assert resolve(sources, {"a": {"x": 1}}) == {}
