"""Pictures of a workflow."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stabilize_celery.dag.render import COLOURS, to_dot, to_mermaid
from stabilize_celery.models.stage import Phase, StageExecution, SyntheticStageOwner
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import Workflow

HOSTILE = 'say "hi"; <b>&\\n]:::x %% #1; `1. list` \n end'


def deploy() -> Workflow:
    build = StageExecution.single("build", "shell")
    build.status = WorkflowStatus.SUCCEEDED
    ship = StageExecution.single("ship", "deploy", requires={"build"}, name="Ship it")
    workflow = Workflow.create("app", "flow", [ship, build])
    for name, owner, phase, requires in (
        ("check", SyntheticStageOwner.STAGE_BEFORE, Phase.BEFORE, ()),
        ("lock", SyntheticStageOwner.STAGE_BEFORE, Phase.BEFORE, ("check",)),
        ("notify", SyntheticStageOwner.STAGE_AFTER, Phase.AFTER, ()),
        ("tidy", SyntheticStageOwner.STAGE_AFTER, Phase.AFTER, ("notify",)),
        ("roll back", SyntheticStageOwner.STAGE_AFTER, Phase.ON_FAILURE, ()),
    ):
        refs = {other.ref_id for other in workflow.stages if other.name in requires}
        child = StageExecution.create_synthetic("shell", name, ship, owner, requisite_stage_ref_ids=refs)
        child.phase = phase
        workflow.add_stage(child)
    return workflow


def test_mermaid() -> None:
    assert (
        to_mermaid(deploy())
        == """\
flowchart LR
  subgraph s0_all["ship"]
    s0["ship<br/>Ship it<br/>deploy"]:::NOT_STARTED
    s2["check<br/>shell"]:::NOT_STARTED
    s3["lock<br/>shell"]:::NOT_STARTED
    s4["notify<br/>shell"]:::NOT_STARTED
    s5["tidy<br/>shell"]:::NOT_STARTED
    s6["roll back<br/>shell"]:::NOT_STARTED
  end
  s1["build<br/>shell<br/>SUCCEEDED"]:::SUCCEEDED
  s1 --> s0
  s2 --> s3
  s3 -. before .-> s0
  s0 -. after .-> s4
  s4 --> s5
  s0 -. on failure .-> s6
  classDef NOT_STARTED fill:#f3f4f6,stroke:#9ca3af,color:#111827
  classDef SUCCEEDED fill:#dcfce7,stroke:#16a34a,color:#111827
"""
    )


def test_dot() -> None:
    assert (
        to_dot(deploy())
        == """\
digraph "flow" {
  rankdir=LR
  node [shape=box, style="rounded,filled", fontname="Helvetica"]
  subgraph cluster_s0 {
    label="ship"
    s0 [label="ship\\nShip it\\ndeploy", fillcolor="#f3f4f6", color="#9ca3af"]
    s2 [label="check\\nshell", fillcolor="#f3f4f6", color="#9ca3af"]
    s3 [label="lock\\nshell", fillcolor="#f3f4f6", color="#9ca3af"]
    s4 [label="notify\\nshell", fillcolor="#f3f4f6", color="#9ca3af"]
    s5 [label="tidy\\nshell", fillcolor="#f3f4f6", color="#9ca3af"]
    s6 [label="roll back\\nshell", fillcolor="#f3f4f6", color="#9ca3af"]
  }
  s1 [label="build\\nshell\\nSUCCEEDED", fillcolor="#dcfce7", color="#16a34a"]
  s1 -> s0
  s2 -> s3
  s3 -> s0 [style=dashed, label="before"]
  s0 -> s4 [style=dashed, label="after"]
  s4 -> s5
  s0 -> s6 [style=dashed, label="on failure"]
}
"""
    )


@pytest.mark.parametrize("status", WorkflowStatus)
def test_every_status_has_a_colour(status) -> None:
    workflow = Workflow.create("app", "flow", [StageExecution.single("a", "noop")])
    workflow.stages[0].status = status
    fill, _line = COLOURS[status]
    assert f"classDef {status} fill:{fill}" in to_mermaid(workflow)
    assert f'fillcolor="{fill}"' in to_dot(workflow)


@settings(deadline=None)
@given(st.text(min_size=1) | st.just(HOSTILE))
def test_no_label_can_break_out_of_its_quotes(text: str) -> None:
    stage = StageExecution(ref_id="a", type=text, name=text)
    workflow = Workflow(name=text, stages=[stage])
    mermaid = to_mermaid(workflow).splitlines()
    assert len(mermaid) == 3
    assert re.fullmatch(r'  s0\["a(<br/>[^"<>`\[\]%;]*(#\d+;[^"<>`\[\]%;]*)*)*"\]:::NOT_STARTED', mermaid[1])
    dot = to_dot(workflow).splitlines()
    assert len(dot) == 5
    quoted = r'"([^"\\]|\\\\|\\"|\\n)*"'
    assert re.fullmatch(rf"digraph {quoted} {{", dot[0])
    assert re.fullmatch(rf'  s0 \[label={quoted}, fillcolor="#f3f4f6", color="#9ca3af"\]', dot[3])


def test_what_looks_like_a_list_is_not_read_as_markdown() -> None:
    workflow = Workflow(stages=[StageExecution(ref_id="1. a-b - c", type="t")])
    assert 's0["1#46; a-b #45; c<br/>t"]' in to_mermaid(workflow)


def test_a_synthetic_stage_without_its_parent_is_still_drawn() -> None:
    workflow = Workflow(stages=[StageExecution(name="left", parent_stage_id="gone")])
    assert 's0["left"]' in to_mermaid(workflow)
    assert 's0 [label="left"' in to_dot(workflow)
