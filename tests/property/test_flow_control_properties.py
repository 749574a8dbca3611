"""Whatever a workflow does and whatever is done to it: it ends, or waits for something that has a name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.property.flow_machine import MAX_ATTEMPTS, PHASES, Control, Machine, Plan

REFS = ("a", "b", "c", "d", "e")
#: What one execution of a task does; ``patient`` fails as often as it may, ``yield`` lets others go on meanwhile.
STEPS = (
    ("ok", 3),
    ("yield", 8),
    ("suspend", 3),
    ("suspend_timeout", 1),
    ("running", 3),
    ("transient", 1),
    ("patient", 3),
    ("fail", 2),
    ("raise", 1),
    ("stopped", 1),
    ("canceled", 1),
    ("failed_continue", 1),
    ("skipped", 1),
    ("lose", 1),
    ("crash", 1),
    ("jump", 5),
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
    "cancel_stage",
    "skip_stage",
    "restart_stage",
    "restart_stage",
    "signal",
    "pause",
    "resume",
    "duplicate",
)


def weighted(*choices: tuple[Any, int]) -> st.SearchStrategy[Any]:
    return st.sampled_from([choice for choice, weight in choices for _ in range(weight)])


@st.composite
def scripts(draw: Any, targets: tuple[str, ...]) -> list[str]:
    steps: list[str] = []
    for step in draw(st.lists(weighted(*STEPS), min_size=1, max_size=3)):
        if step == "patient":
            steps += ["transient"] * MAX_ATTEMPTS
        elif step == "jump":
            steps.append(f"jump:{draw(st.sampled_from(targets))}")
        else:
            steps.append(step)
    return steps


@st.composite
def bodies(draw: Any, targets: tuple[str, ...], depth: int) -> dict[str, Any]:
    """What a stage does: its tasks, its options, its synthetic stages."""
    children: dict[str, Any] = {}
    if depth and draw(st.integers(0, 3)) < depth:
        for phase in draw(st.sets(st.sampled_from(PHASES), min_size=1)):
            nested = st.lists(bodies(targets, depth - 1), min_size=1, max_size=3)
            children[phase] = draw(nested) if draw(st.integers(0, 9)) else "raise"
    return {
        "scripts": draw(st.lists(scripts(targets), max_size=2)),
        "options": draw(st.sampled_from(OPTIONS)) if draw(st.booleans()) else {},
        "children": children,
        "chained": draw(st.booleans()),
    }


@st.composite
def stage_lists(draw: Any, most: int = 5) -> list[dict[str, Any]]:
    refs = REFS[: draw(st.integers(min(2, most), most))]
    targets = (*refs, *refs, "nowhere")
    stages = []
    for index, ref in enumerate(refs):
        requires = sorted(draw(st.sets(st.sampled_from(refs[:index]), max_size=2))) if index else []
        stages.append({"ref": ref, "requires": requires, **draw(bodies(targets, 2))})
    return stages


@st.composite
def controls(draw: Any, last: int = 18) -> list[Control]:
    """Things people do, some of them close together."""
    made = []
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.one_of(st.just(0), st.integers(1, last), st.integers(1, last)))
        workflow, target = draw(st.integers(0, 3)), draw(st.integers(0, 8))
        flag = draw(st.booleans())
        kind = draw(weighted(*((verb, 1) for verb in VERBS), ("pause and resume", 4)))
        if kind == "pause and resume":
            made.append(Control(at, "pause", workflow, target, flag))
            made.append(Control(at + draw(st.integers(1, 6)), "resume", workflow, target, flag))
        else:
            made.append(Control(at, kind, workflow, target, flag))
    if draw(st.integers(0, 5)) == 0:
        made.append(Control(draw(st.integers(0, last)), "cancel", 0, 0, draw(st.booleans())))
    return made


ORDERS = st.lists(st.integers(0, 3), max_size=8)
PLANS = st.builds(
    Plan,
    workflows=stage_lists().map(lambda stages: [stages]),
    max_jumps=st.integers(0, 3),
    inline=st.booleans(),
    late=st.booleans(),
    controls=controls(),
    order=ORDERS,
)
LIMITED_PLANS = st.builds(
    Plan,
    workflows=st.lists(stage_lists(1), min_size=2, max_size=5),
    limit=st.integers(1, 2),
    keep_waiting=st.booleans(),
    inline=st.booleans(),
    late=st.booleans(),
    controls=controls(),
    order=ORDERS,
)


#: Examples for each hundred that the hypothesis profile in force asks for.
PERCENT = settings().max_examples / 100


@pytest.mark.slow
@given(PLANS)
@settings(max_examples=int(300 * PERCENT), deadline=None, suppress_health_check=list(HealthCheck))
def test_a_workflow_ends_or_waits_for_a_named_reason(plan: Plan) -> None:
    Machine(plan).run()


@given(LIMITED_PLANS)
@settings(max_examples=int(100 * PERCENT), deadline=None, suppress_health_check=list(HealthCheck))
def test_a_limit_is_kept_and_everybody_gets_a_slot_in_the_end(plan: Plan) -> None:
    Machine(plan).run()
