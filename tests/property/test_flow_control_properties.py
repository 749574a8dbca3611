"""Whatever a workflow does and whatever is done to it: it ends, or waits for something that has a name."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.property.flow_machine import PHASES, Control, Machine, Plan

REFS = ("a", "b", "c", "d", "e")
ORDINARY = ("ok", "ok", "ok", "yield")
UNUSUAL = (
    "fail",
    "raise",
    "transient",
    "running",
    "suspend",
    "suspend",
    "suspend_timeout",
    "stopped",
    "canceled",
    "failed_continue",
    "skipped",
    "yield",
    "lose",
    "crash",
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {},
    {"continuePipelineOnFailure": True},
    {"failPipeline": False},
    {"failPipeline": False, "completeOtherBranchesThenFail": True},
    {"allowSiblingStagesToContinueOnFailure": True, "continuePipelineOnFailure": True},
    {"stageEnabled": False},
    {"manualSkip": True},
    {"stageTimeoutMs": 20_000},
)
VERBS = (
    "cancel",
    "pause",
    "resume",
    "resume",
    "cancel_stage",
    "skip_stage",
    "restart_stage",
    "restart_stage",
    "signal",
    "duplicate",
)


@st.composite
def scripts(draw: Any, targets: tuple[str, ...]) -> list[str]:
    jump = st.sampled_from(targets).map("jump:{}".format)
    step = st.one_of(st.sampled_from(ORDINARY), st.sampled_from(UNUSUAL), st.sampled_from(UNUSUAL), jump)
    return draw(st.lists(step, max_size=4))


@st.composite
def bodies(draw: Any, targets: tuple[str, ...], depth: int) -> dict[str, Any]:
    """What a stage does: its tasks, its options, its synthetic stages."""
    children: dict[str, Any] = {}
    if depth and draw(st.integers(0, 2)) == 0:
        for phase in PHASES:
            if draw(st.booleans()):
                nested = st.lists(bodies(targets, depth - 1), min_size=1, max_size=3)
                children[phase] = draw(st.one_of(nested, nested, nested, st.just("raise")))
    return {
        "scripts": draw(st.lists(scripts(targets), max_size=2)),
        "options": draw(st.sampled_from(OPTIONS)),
        "children": children,
        "chained": draw(st.booleans()),
    }


@st.composite
def stage_lists(draw: Any, most: int = 5) -> list[dict[str, Any]]:
    refs = REFS[: draw(st.integers(1, most))]
    targets = (*refs, *refs, "nowhere")
    stages = []
    for index, ref in enumerate(refs):
        requires = sorted(draw(st.sets(st.sampled_from(refs[:index]), max_size=2))) if index else []
        stages.append({"ref": ref, "requires": requires, **draw(bodies(targets, 2))})
    return stages


CONTROLS = st.builds(
    Control,
    at=st.integers(0, 25),
    verb=st.sampled_from(VERBS),
    workflow=st.integers(0, 3),
    target=st.integers(0, 8),
    flag=st.booleans(),
)
ORDERS = st.lists(st.integers(0, 3), max_size=8)


PLANS = st.builds(
    Plan,
    workflows=stage_lists().map(lambda stages: [stages]),
    max_jumps=st.integers(0, 3),
    inline=st.booleans(),
    late=st.booleans(),
    controls=st.lists(CONTROLS, max_size=8),
    order=ORDERS,
)
LIMITED_PLANS = st.builds(
    Plan,
    workflows=st.lists(stage_lists(2), min_size=2, max_size=5),
    limit=st.integers(1, 2),
    keep_waiting=st.booleans(),
    inline=st.booleans(),
    late=st.booleans(),
    controls=st.lists(CONTROLS, max_size=8),
    order=ORDERS,
)


@given(PLANS)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_workflow_ends_or_waits_for_a_named_reason(plan: Plan) -> None:
    Machine(plan).run()


@given(LIMITED_PLANS)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_limit_is_kept_and_everybody_gets_a_slot_in_the_end(plan: Plan) -> None:
    Machine(plan).run()
