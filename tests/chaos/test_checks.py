"""The checks of the chaos suite find what they are there to find."""

from __future__ import annotations

from pathlib import Path

import pytest

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery import WorkflowStatus as S
from tests.chaos import effects
from tests.chaos.checks import check_steps, check_workflow
from tests.chaos.effects import Effect
from tests.chaos.report import Injection, Report

FINE = [(S.NOT_STARTED, S.RUNNING), (S.RUNNING, S.SUCCEEDED)]


def kinds(steps: list[tuple[S, S]]) -> set[str]:
    return {kind for kind, _ in check_steps(steps)}


@pytest.mark.parametrize(
    "steps",
    [
        FINE,
        FINE[:1],
        list(reversed(FINE)),
        [
            *FINE,
            (S.RUNNING, S.SUSPENDED),
            (S.SUSPENDED, S.RUNNING),
            (S.RUNNING, S.PAUSED),
            (S.PAUSED, S.RUNNING),
        ],
        [(S.NOT_STARTED, S.BUFFERED), (S.BUFFERED, S.NOT_STARTED), *FINE],
    ],
)
def test_a_legal_life(steps: list[tuple[S, S]]) -> None:
    assert kinds(steps) == set()


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([*FINE, FINE[0]], "doubled"),
        ([*FINE, FINE[1]], "doubled"),
        ([*FINE, (S.RUNNING, S.TERMINAL)], "doubled"),
        ([(S.NOT_STARTED, S.SUCCEEDED)], "wrong"),
        ([*FINE, (S.SUCCEEDED, S.RUNNING)], "wrong"),
        ([*FINE, (S.SUSPENDED, S.RUNNING)], "wrong"),
    ],
)
def test_a_life_that_cannot_be(steps: list[tuple[S, S]], kind: str) -> None:
    assert kind in kinds(steps)


@pytest.fixture
def finished() -> tuple[Workflow, list[dict[str, object]]]:
    with Stabilize.embedded() as stabilize:
        made = Workflow.create("tests", "small", [StageExecution.single("a", "noop")])
        run = stabilize.run(made, timeout=30)
        return run.workflow(), run.history()


def test_a_workflow_whose_rows_agree_with_its_history(finished) -> None:
    assert check_workflow(*finished) == []


def test_a_row_that_was_changed_beside_its_history_is_found(finished) -> None:
    workflow, history = finished
    workflow.stages[0].status = S.TERMINAL
    assert [finding.kind for finding in check_workflow(workflow, history)] == ["wrong"]


def test_a_step_that_is_missing_in_the_history_is_found(finished) -> None:
    workflow, history = finished
    kept = [row for row in history if row["event"] != "task"]
    assert {finding.kind for finding in check_workflow(workflow, kept)} == {"wrong"}


def test_a_workflow_that_has_not_ended_is_lost(finished) -> None:
    workflow, history = finished
    workflow.status = S.RUNNING
    kept = [row for row in history if (row["event"], row["to_status"]) != ("workflow", S.SUCCEEDED)]
    assert [finding.kind for finding in check_workflow(workflow, kept)] == ["lost"]


def body(at: float, token: int = 1, generation: int = 0) -> Effect:
    return Effect(at, "w", "s", "t", generation, 1, token, 1)


def test_bodies_with_the_same_token_are_one_too_many() -> None:
    assert list(effects.twice([body(1), body(2, token=2), body(3, generation=1)])) == []
    assert list(effects.twice([body(1), body(2)])) == [(body(1), body(2))]


def test_only_a_crash_between_them_excuses_the_same_token() -> None:
    first, second = body(100), body(110)
    assert effects.is_forgotten(first, second, [100.5])
    assert not effects.is_forgotten(first, second, [90.0, 109.0, 120.0])
    assert not effects.is_forgotten(first, body(100.2), [100.5])


def test_effects_outlive_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "effects"
    monkeypatch.setenv(effects.FILE, str(file))

    def noted(stage: StageExecution) -> dict[str, bool]:
        effects.record()
        return {"done": True}

    with Stabilize.embedded() as stabilize:
        stabilize.registry.register("work", noted)
        stages = [StageExecution.single("a", "work"), StageExecution.single("b", "work", requires={"a"})]
        run = stabilize.run(Workflow.create("tests", "two", stages), timeout=30)
        seen = effects.read(file)
        assert list(effects.check(stabilize, [run.id], seen, [])) == []
        lost = list(effects.check(stabilize, [run.id], seen[:1], []))
    assert [finding.kind for finding in lost] == ["lost"]


def test_a_stall_lasts_from_the_fault_to_the_next_step() -> None:
    report = Report([Injection("first", 10, 11), Injection("second", 20, 21)], [], [], 0)
    report._steps = [1, 9, 14, 15, 24, 25]
    report._lives = {"early": (1, 9), "both": (5, 25), "late": (20.5, 25)}
    assert report.rows() == [("first", 1, 1, 0, 0, 9.0), ("second", 1, 2, 0, 0, 4.0)]
