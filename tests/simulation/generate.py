"""Random histories: workflows with everything the engine has to offer, controls, and faults."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from tests.simulation.faults import random_faults
from tests.simulation.plan import Control, Plan

#: Attempts at a task in random workflows.
MAX_ATTEMPTS = 4
_REFS = ("a", "b", "c", "d", "e", "f")
#: What one execution of a task does, and how often that is chosen; ``patient`` fails as often as it may.
_STEPS = {
    "ok": 12,
    "suspend": 3,
    "suspend_timeout": 1,
    "running": 3,
    "transient": 3,
    "patient": 1,
    "fail": 2,
    "raise": 1,
    "stopped": 1,
    "canceled": 1,
    "failed_continue": 1,
    "skipped": 1,
    "overtime": 1,
    "jump": 6,
}
_OPTIONS: tuple[dict[str, Any], ...] = (
    {"continuePipelineOnFailure": True},
    {"continuePipelineOnFailure": True},
    {"failPipeline": False},
    {"failPipeline": False, "completeOtherBranchesThenFail": True},
    {"allowSiblingStagesToContinueOnFailure": True, "continuePipelineOnFailure": True},
    {"stageEnabled": False},
    {"manualSkip": True},
    {"stageTimeoutMs": 20_000},
)
_VERBS = (
    "cancel_stage",
    "skip_stage",
    "restart_stage",
    "restart_stage",
    "signal",
    "pause",
    "resume",
    "pause and resume",
    "pause and resume",
)
#: What people do to a workflow in which something failed, one thing after the other.
_REPAIRS = (
    "restart_failed",
    "restart_failed",
    "restart_ended",
    "restart_ended",
    "pause",
    "resume",
    "skip_stage",
    "cancel_stage",
    "signal",
)
_PHASES = ("before", "after", "on_failure")


def random_plan(seed: int) -> Plan:
    """The history of a seed: always the same."""
    random = Random(f"history {seed}")
    limited = random.random() < 0.25
    number, most = (random.randint(2, 4), 2) if limited else (1, 6)
    workflows = [_stages(random, most) for _ in range(number)]
    stages = sum(map(len, workflows))
    plan = Plan(
        workflows=workflows,
        max_jumps=random.randint(0, 3),
        limit=random.randint(1, 2) if limited else None,
        keep_waiting=random.random() < 0.7,
        inline=random.random() < 0.6,
        controls=tuple(_controls(random)),
        faults=tuple(random_faults(random, length=4 + 3 * stages)),
    )
    # Drawn apart, so that the other histories of known seeds stay what they are.
    repairs = Random(f"repairs {seed}")
    if repairs.random() < 0.3:
        plan = replace(plan, controls=(*plan.controls, *_repairs(repairs)))
    return plan


def _stages(random: Random, most: int, depth: int = 2) -> list[dict[str, Any]]:
    """Stages of a workflow, some of which run a workflow of their own, down to a ``depth``."""
    refs = _REFS[: random.randint(min(2, most), most)]
    stages = []
    for index, ref in enumerate(refs):
        requires = sorted(random.sample(refs[:index], min(index, random.choice((0, 1, 1, 2, 2, 3)))))
        nested = _stages(random, 2, depth - 1) if depth and random.random() < 0.08 else []
        stages.append({"ref": ref, "requires": requires, "nested": nested, **_body(random, refs, 2)})
    return stages


def _body(random: Random, refs: tuple[str, ...], depth: int) -> dict[str, Any]:
    children: dict[str, Any] = {}
    if depth and random.randrange(10) < depth:
        for phase in random.sample(_PHASES, random.choice((1, 1, 2))):
            nested = [_body(random, refs, depth - 1) for _ in range(random.randint(1, 2))]
            children[phase] = nested if random.randrange(10) else "raise"
    return {
        "scripts": [_script(random, refs) for _ in range(random.choice((0, 1, 1, 1, 2)))],
        "options": random.choice(_OPTIONS) if random.random() < 0.3 else {},
        "children": children,
        "chained": random.random() < 0.5,
    }


def _script(random: Random, refs: tuple[str, ...]) -> list[str]:
    steps: list[str] = []
    for step in random.choices(list(_STEPS), list(_STEPS.values()), k=random.choice((1, 1, 2, 3))):
        if step == "patient":
            steps += ["transient"] * MAX_ATTEMPTS
        elif step == "jump":
            steps.append(f"jump:{random.choice((*refs, *refs, *refs, 'nowhere'))}")
        else:
            steps.append(step)
    return steps


def _repairs(random: Random) -> list[Control]:
    """People repair: they restart what failed, or something else, and go on with what they can do."""
    workflow, at = random.randrange(4), random.randint(6, 40)
    made = [Control(at, random.choice(("restart_failed", "restart_ended")), workflow, random.randrange(9))]
    for _ in range(random.randint(1, 4)):
        at += random.choice((1, 1, 2, 3, 8))
        made.append(
            Control(at, random.choice(_REPAIRS), workflow, random.randrange(9), random.random() < 0.5)
        )
    return made


def _controls(random: Random) -> list[Control]:
    """Things people do, some of them close together; nothing at all in half of the histories."""
    made = []
    for _ in range(random.choice((0, 0, 0, 1, 2, 3, 4))):
        at, verb = random.randint(0, 18), random.choice(_VERBS)
        workflow, target, flag = random.randrange(4), random.randrange(9), random.random() < 0.5
        if verb == "pause and resume":
            made.append(Control(at, "pause", workflow))
            made.append(Control(at + random.randint(1, 6), "resume", workflow))
        else:
            made.append(Control(at, verb, workflow, target, flag))
    if random.random() < 0.1:
        made.append(Control(random.randint(0, 18), "cancel", 0, 0, random.random() < 0.5))
    return made
