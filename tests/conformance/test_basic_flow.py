"""The order of stages and what a workflow comes to when all goes well (behaviour contract, section 12)."""

from __future__ import annotations

from stabilize_celery import WorkflowStatus as S
from tests.conformance.harness import ConformanceEngine, flow, stage


def test_stages_of_a_chain_run_in_order(engine: ConformanceEngine) -> None:
    """Scenario 1."""
    result = engine.run(flow(stage("a"), stage("b", after=["a"]), stage("c", after=["b"])))

    assert result.order() == ["a", "b", "c"]
    assert result.status is S.SUCCEEDED


def test_a_join_runs_once_after_all_its_branches(engine: ConformanceEngine) -> None:
    """Scenario 2."""
    result = engine.run(
        flow(stage("a"), stage("b", after=["a"]), stage("c", after=["a"]), stage("d", after=["b", "c"]))
    )

    assert result.order()[0] == "a"
    assert sorted(result.order()[1:3]) == ["b", "c"]
    assert result.order()[3:] == ["d"]
    assert result.status is S.SUCCEEDED
