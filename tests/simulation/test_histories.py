"""Random histories hold, are the same each time, and can be told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.__main__ import main
from tests.simulation.generate import random_plan
from tests.simulation.run import failure_of, only, play_many, play_seeds, told_story
from tests.simulation.scenario import RandomWorkflows
from tests.simulation.seeds import CI_SEEDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_random_histories_hold():
    """The long form is ``make simulate``."""
    batches = list(play_many(0, CI_SEEDS, jobs=2))
    failed = [batch.failed for batch in batches if batch.failed is not None]
    assert not failed, f"{failure_of(min(failed))}"
    assert sum(batch.histories for batch in batches) == CI_SEEDS


def test_a_seed_is_the_same_history_each_time():
    seeds = range(20)
    first = {seed: str(told_story(seed).story) for seed in seeds}
    again = {seed: str(told_story(seed).story) for seed in reversed(seeds)}
    assert first == again
    assert len(set(first.values())) == len(seeds)


def test_a_seed_is_the_same_history_in_another_process():
    command = [sys.executable, "-m", "tests.simulation", "--seed", "3", "--story"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, cwd=ROOT)
    assert told.stdout == f"{told_story(3).story}\n\nevery invariant held\n"


def test_histories_are_of_every_kind():
    plans = [random_plan(seed) for seed in range(200)]
    stories = "\n".join(str(told_story(seed).story) for seed in range(60))
    assert {plan.inline for plan in plans} == {True, False}
    assert any(plan.limit for plan in plans)
    assert any(plan.controls for plan in plans)
    assert any(not plan.faults for plan in plans)
    for told in (
        "the process dies",
        "hangs until its leases are over",
        "is refused",
        "the broker delivers it twice",
        "the broker loses it",
        "the broker loses everything",
        "overtake it",
        "delivers its message to others too",
        "a result is refused",
        "BUFFERED",
        "SUSPENDED",
        "REDIRECT",
        "a person: pause",
        "before0",
    ):
        assert told in stories, told


def test_histories_of_a_broken_engine_are_told_as_short_as_they_can_be(monkeypatch, capsys):
    """Stages that end without a word: one of them, alone and without any fault, shows it."""
    forget_stages_that_end(monkeypatch)
    status = main(["--seed", "0", "--histories", "50"])
    told = capsys.readouterr().out
    assert status == 1
    assert "breaks history_replays_to_the_state" in told
    assert " is SUCCEEDED, its history ends with RUNNING" in told
    story, command = told.split("to see it again: ")
    assert story.count(" is committed: ") <= 5, story  # without continuation in place
    assert "!" not in story, "no fault is needed for it"

    arguments = command.split("tests.simulation ")[1].split()
    assert main(arguments) == 1
    again = capsys.readouterr().out
    assert "broken: history_replays_to_the_state" in again
    assert again.split("\n\nbroken")[0] in story


def test_what_is_left_out_changes_nothing_else():
    plan = random_plan(8)
    assert plan.without(()) == plan
    assert only(plan, plan.parts()) == plan
    nothing = only(plan, ())
    assert (nothing.workflows, nothing.faults, nothing.controls) == ([[]] * len(plan.workflows), (), ())
    assert not RandomWorkflows().play(nothing).violations


def test_seeds_that_fail_are_named(monkeypatch):
    forget_stages_that_end(monkeypatch)
    assert play_seeds(range(3, 40)).failed in range(3, 40)


def forget_stages_that_end(monkeypatch):
    from stabilize_celery.models.status import WorkflowStatus as S
    from stabilize_celery.persistence.unit_of_work import UnitOfWork

    record = UnitOfWork.record

    def forgetful(self, event, *args, **options):
        if (event, options.get("new")) != ("stage", S.SUCCEEDED):
            record(self, event, *args, **options)

    monkeypatch.setattr(UnitOfWork, "record", forgetful)
