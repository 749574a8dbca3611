"""The tree of a workflow: where stages stand, and what their lines say."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from stabilize_celery.cli.output import LOOKS, duration
from stabilize_celery.cli.tree import stage_tree
from stabilize_celery.models.stage import Phase, StageExecution, SyntheticStageOwner
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.workflow import PausedDetails, Workflow

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


def stage(
    ref: str,
    status: S = S.NOT_STARTED,
    requires: Iterable[str] = (),
    took: float = 1.0,
    **fields: Any,
) -> StageExecution:
    made = StageExecution.single(ref, "python", requires=requires, **fields)
    made.status = status
    if status is not S.NOT_STARTED:
        made.start_time = NOW - timedelta(seconds=took)
        made.end_time = NOW if status.is_complete else None
    return made


def workflow(*stages: StageExecution) -> Workflow:
    made = Workflow.create("shop", "order", stages)
    made.id = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    return made


def printed(what: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def lines(made: Workflow, **options: int | bool) -> list[str]:
    return printed(stage_tree(made, NOW, **options)).splitlines()  # type: ignore[arg-type]


def test_a_chain_stays_on_one_level() -> None:
    made = workflow(
        stage("load", S.NOT_STARTED, {"transform"}),
        stage("extract", S.SUCCEEDED, took=0.25),
        stage("transform", S.RUNNING, {"extract"}, took=75),
    )
    made.status, made.start_time = S.RUNNING, NOW
    assert lines(made) == [
        "▶ shop/order  RUNNING  0.00s  01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "├── ✔ extract    SUCCEEDED     0.25s",
        "├── ▶ transform  RUNNING      1m 15s  after extract",
        "└── ○ load       NOT_STARTED          after transform",
    ]


def test_branches_stand_in_topological_order_and_say_what_they_come_after() -> None:
    made = workflow(
        stage("end", requires={"join"}),
        stage("setup"),
        stage("a", requires={"setup"}),
        stage("b", requires={"setup"}),
        stage("b2", requires={"b"}),
        stage("b3", requires={"b2"}),
        stage("join", requires={"a", "b3"}),
    )
    assert lines(made)[1:] == [
        "├── ○ setup  NOT_STARTED",
        "├── ○ a      NOT_STARTED          after setup",
        "├── ○ b      NOT_STARTED          after setup",
        "├── ○ b2     NOT_STARTED          after b",
        "├── ○ b3     NOT_STARTED          after b2",
        "├── ○ join   NOT_STARTED          after a, b3",
        "└── ○ end    NOT_STARTED          after join",
    ]


def test_a_join_of_many_names_the_first_ones() -> None:
    branches = [stage(f"b{number}") for number in range(5)]
    made = workflow(*branches, stage("join", requires={branch.ref_id for branch in branches}))
    assert lines(made)[-1] == "└── ○ join  NOT_STARTED          after b0, b1, b2 and 2 more"


def test_a_stage_that_also_requires_an_earlier_one_says_so() -> None:
    made = workflow(stage("a"), stage("b", requires={"a"}), stage("c", requires={"a", "b"}))
    assert [line.split("  ")[-1].strip() for line in lines(made)[1:]] == [
        "NOT_STARTED",
        "after a",
        "after a, b",
    ]


def test_synthetic_stages_stand_inside_their_parent_in_the_order_of_their_phases() -> None:
    parent = stage("deploy", S.RUNNING)
    made = workflow(parent)
    for name, owner, phase in (
        ("roll back", SyntheticStageOwner.STAGE_AFTER, Phase.ON_FAILURE),
        ("notify", SyntheticStageOwner.STAGE_AFTER, Phase.AFTER),
        ("check", SyntheticStageOwner.STAGE_BEFORE, Phase.BEFORE),
        ("lock", SyntheticStageOwner.STAGE_BEFORE, None),
    ):
        child = StageExecution.create_synthetic("shell", name, parent, owner)
        child.phase = phase
        made.add_stage(child)
    assert [re.split(r"(?<=\w)  ", line)[0] for line in lines(made)[1:]] == [
        "└── ▶ deploy",
        "    ├── ○ before: check",
        "    ├── ○ before: lock",
        "    ├── ○ after: notify",
        "    └── ○ on failure: roll back",
    ]


def test_what_a_synthetic_stage_comes_after_is_its_sibling() -> None:
    parents = [stage("p"), stage("q")]
    made = workflow(*parents)
    for parent in parents:
        for ref, requires in (("first", set()), ("second", {"first"})):
            child = stage(ref, requires=requires, name=f"{ref} of {parent.ref_id}")
            child.parent_stage_id, child.phase = parent.id, Phase.BEFORE
            child.synthetic_stage_owner = SyntheticStageOwner.STAGE_BEFORE
            made.add_stage(child)
    assert [re.sub(r" +NOT_STARTED +", " ", line) for line in lines(made)[1:] if "after" in line] == [
        "│   └── ○ before: second of p after first of p",
        "    └── ○ before: second of q after first of q",
    ]


def test_errors_and_attempts() -> None:
    failed = stage("charge", S.TERMINAL)
    failed.context |= {
        "error": "x",
        "exception": {"details": {"type": "CardError", "error": "declined\nask them"}},
    }
    failed.tasks[0].attempts = 3
    retried = stage("mail", S.RUNNING)
    retried.tasks[0].attempts = 2
    retried.tasks[0].last_error = {"details": {"error": "refused", "type": "ConnectionError"}}
    recovered = stage("ship", S.SUCCEEDED)
    recovered.tasks[0].last_error = {"details": {"error": "not shown: it is over"}}
    recovered.tasks[0].attempts = 1
    assert lines(workflow(failed, retried, recovered))[1:] == [
        "├── ✘ charge  TERMINAL    1.00s  3 attempts",
        "│   CardError: declined",
        "│   ask them",
        "├── ▶ mail    RUNNING     1.00s  2 attempts",
        "│   ConnectionError: refused",
        "└── ✔ ship    SUCCEEDED   1.00s",
    ]


def test_of_a_long_error_the_end_is_shown() -> None:
    failed = stage("charge", S.TERMINAL)
    failed.context["error"] = "\n".join(f"line {number}" for number in range(100))
    drawn = lines(workflow(failed))
    assert drawn[2:] == ["    ...", "    line 95", "    line 96", "    line 97", "    line 98", "    line 99"]


def test_several_tasks_have_lines_of_their_own() -> None:
    made = stage("deploy", S.RUNNING)
    made.tasks = [TaskExecution.create("build", "shell"), TaskExecution.create("", "http")]
    made.tasks[0].status = S.SUCCEEDED
    made.tasks[0].start_time = made.tasks[0].end_time = NOW
    made.tasks[1].attempts = 2
    assert lines(workflow(made))[2:] == [
        "    ├── ✔ task build  SUCCEEDED  0.00s",
        "    └── ○ task http  NOT_STARTED  2 attempts",
    ]


def test_who_canceled_and_who_paused() -> None:
    canceled = workflow(stage("a", S.CANCELED))
    canceled.is_canceled, canceled.canceled_by, canceled.cancellation_reason = True, "kim", "too late"
    assert lines(canceled)[1] == "canceled by kim: too late"
    paused = workflow(stage("a"))
    paused.paused = PausedDetails(paused_by="ops", pause_time=NOW)
    assert lines(paused)[1] == "paused by ops"


def test_of_many_stages_the_interesting_ones_are_drawn_and_the_rest_is_counted() -> None:
    branches = [stage(f"b{i:04}", S.SUCCEEDED, {"s"}) for i in range(2000)]
    branches[700].status, branches[900].status = S.TERMINAL, S.RUNNING
    made = workflow(*branches, stage("s", S.SUCCEEDED))
    assert [line.rstrip(" 0123456789.s") for line in lines(made, most=4)] == [
        "○ shop/order  NOT_STARTED  01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "2,001 stages: 1 RUNNING, 1,999 SUCCEEDED, 1 TERMINAL",
        "├── ✔ s      SUCCEEDED",
        "├── ✔ b0000  SUCCEEDED   1.00s  after",
        "├── … 699 stages: 699 SUCCEEDED",
        "├── ✘ b0700  TERMINAL    1.00s  after",
        "├── … 199 stages: 199 SUCCEEDED",
        "├── ▶ b0900  RUNNING     1.00s  after",
        "└── … 1,099 stages: 1,099 SUCCEEDED",
    ]


def test_of_many_synthetic_stages_the_failed_one_stands_under_its_parent() -> None:
    parents = [stage(f"p{number}", S.SUCCEEDED) for number in range(10)]
    made = workflow(*parents)
    for parent in parents:
        for number in range(3):
            owner = SyntheticStageOwner.STAGE_BEFORE
            child = StageExecution.create_synthetic("shell", f"{parent.ref_id}.{number}", parent, owner)
            child.status = S.TERMINAL if child.name == "p6.1" else S.SUCCEEDED
            made.add_stage(child)
    assert [re.split(r"(?<=\w)  ", line)[0] for line in lines(made, most=2)[2:]] == [
        "├── … 24 stages: 24 SUCCEEDED",
        "├── ✔ p6",
        "│   ├── ✔ before: p6.0",
        "│   └── ✘ before: p6.1",
        "└── … 13 stages: 13 SUCCEEDED",
    ]


def test_a_long_chain_is_no_problem_of_depth() -> None:
    made = workflow(stage("s0"), *(stage(f"s{i}", requires={f"s{i - 1}"}) for i in range(2999, 0, -1)))
    assert [line.split("  ")[0] for line in lines(made, most=2)[2:]] == [
        "├── ○ s0",
        "├── ○ s1",
        "└── … 2,998 stages: 2,998 NOT_STARTED",
    ]


def test_nothing_but_ascii_where_that_is_all_there_is() -> None:
    made = workflow(*(stage(f"s{number}", status) for number, status in enumerate(S)))
    console_text = printed(stage_tree(made, NOW, ascii=True))
    for guide in "├──└│":
        console_text = console_text.replace(guide, "")
    assert console_text.isascii()


@pytest.mark.parametrize("which", [0, 1])
def test_statuses_differ_without_colour(which: int) -> None:
    symbols = [look[which] for look in LOOKS.values()]
    assert len(set(symbols)) == len(list(S))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.00s"),
        (0.004, "0.00s"),
        (9.99, "9.99s"),
        (9.996, "10.0s"),
        (59.94, "59.9s"),
        (59.96, "1m 00s"),
        (3599.6, "1h 00m"),
        (7505, "2h 05m"),
        (90000, "1d 01h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_title_cannot_break_its_line() -> None:
    (drawn,) = lines(workflow(stage("a\nb\x1b[31m")))[1:]
    assert drawn.startswith("└── ○ a b [31m  NOT_STARTED")


@pytest.mark.parametrize("width", [40, 80])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    made = workflow(
        stage("a" * 60, S.SUSPENDED), stage("b", S.TERMINAL, {"a" * 60}), stage("c" * 20, requires={"b"})
    )
    made.stages[1].context["error"] = "word " * 50
    drawn = printed(stage_tree(made, NOW), width).splitlines()
    assert max(map(len, drawn)) <= width
    assert sum(line.startswith(("├──", "└──")) for line in drawn) == 3


@given(st.data())
def test_every_stage_stands_once_below_what_it_requires(data: st.DataObject) -> None:
    """Any graph: the tree holds each stage once, after everything it requires, and names that."""
    size = data.draw(st.integers(1, 12))
    stages = [
        stage(f"s{i}", requires=data.draw(st.sets(st.sampled_from([f"s{j}" for j in range(i)]))) if i else ())
        for i in range(size)
    ]
    drawn = lines(workflow(*data.draw(st.permutations(stages))))[1:]
    order = [re.split(r" +", line)[2] for line in drawn]
    assert sorted(order) == sorted(made.ref_id for made in stages)
    for number, line in enumerate(drawn):
        (made,) = (made for made in stages if made.ref_id == order[number])
        assert set(order[:number]) >= made.requisite_stage_ref_ids
        named = sorted(made.requisite_stage_ref_ids)
        assert line.endswith(f"after {', '.join(named)}" if 0 < len(named) <= 3 else "") or len(named) > 3
