"""Defects that the simulator found, each with the plan that showed it."""

from __future__ import annotations

import pytest

from tests.simulation.faults import Fault
from tests.simulation.plan import Control, Plan
from tests.simulation.scenario import RandomWorkflows


def stage(ref, scripts=(), requires=(), nested=()):
    return {
        "ref": ref,
        "requires": list(requires),
        "scripts": list(scripts),
        "options": {},
        "children": {},
        "chained": False,
        "nested": list(nested),
    }


WITHIN = [stage("b", [["suspend"]])]


@pytest.mark.parametrize("verb", ["cancel_stage", "skip_stage", "cancel"])
@pytest.mark.parametrize("fault", ["paused", "killed", "outlasted"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_workflow_within_is_canceled_though_its_stage_did_not_know_it_yet(verb, fault, at):
    """Its id was stored with the result of the task that started it; until then it was out of reach."""
    plan = Plan(
        workflows=[[stage("a", nested=WITHIN)]],
        faults=(Fault("task.returned", 0, fault, 5),),
        controls=(Control(at, verb),),
    )
    played = RandomWorkflows().play(plan, told=True)
    assert not played.violations, f"{played.story}\n{played.violations}"


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("fault", ["paused", "killed"])
def test_a_workflow_within_is_canceled_when_another_branch_fails_or_jumps(at, fault):
    for script in (["running"] * at + ["fail"], ["running"] * at + ["jump:a"]):
        plan = Plan(
            workflows=[[stage("a", nested=WITHIN), stage("c", [script])]],
            faults=(
                Fault("task.returned", 0, fault, 6),
                Fault("task.returned", 1, "paused", 6),
                Fault("delivery", 4, "idle", 5),
            ),
        )
        played = RandomWorkflows().play(plan, told=True)
        assert not played.violations, f"{played.story}\n{played.violations}"


def test_a_workflow_within_that_starts_too_late_does_not_run():
    """The worker that starts it is slow: its stage has been skipped meanwhile."""
    plan = Plan(
        workflows=[[stage("a", nested=WITHIN)]],
        faults=(Fault("task.claimed", 0, "paused", 5),),
        controls=(Control(2, "skip_stage"),),
    )
    played = RandomWorkflows().play(plan, told=True)
    assert not played.violations, f"{played.story}\n{played.violations}"
    assert "w0(a) -> CANCELED" in str(played.story)
    assert "w0(a) / b" not in str(played.story)
