"""``pytest --stabilize-simulate``: a user's workflow under faults, with a user's words for what is wrong with it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

SHOP = """
import pytest
from stabilize_celery import Stabilize, StageExecution, TransientError, Workflow, current_run

stabilize = Stabilize.embedded()
charged = {}

@stabilize.task("charge")
def charge(order_id: int):
    KEYED charged.setdefault(current_run().idempotency_key, order_id)
    COUNTED charged[len(charged)] = order_id
    return {"charge_id": f"ch_{order_id}"}

@stabilize.task("ship")
def ship(charge_id: str):
    return {"parcel": f"parcel for {charge_id}"}

def order():
    charged.clear()
    return Workflow.create("shop", "order", [
        StageExecution.single("charge", "charge", {"order_id": 42}),
        StageExecution.single("check", "noop"),
        StageExecution.single("ship", "ship", requires={"charge", "check"}),
    ])
"""
SAFE = SHOP.replace("    COUNTED", "    #").replace("KEYED ", "")
UNSAFE = SHOP.replace("    KEYED", "    #").replace("COUNTED ", "")
TEST = """
def charged_once(run):
    assert len(charged) == 1, f"charged {len(charged)} times"

def test_an_order_is_charged_once(stabilize_simulate):
    run = stabilize_simulate(order, stabilize, check=charged_once)
    assert run.get()["parcel"] == "parcel for ch_42"
"""


def test_without_the_option_it_runs_once_without_faults(pytester):
    pytester.makepyfile(UNSAFE + TEST)
    result = pytester.runpytest_subprocess("-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*::test_an_order_is_charged_once PASSED*"])


def test_with_the_option_it_runs_under_so_many_seeds(pytester):
    pytester.makepyfile(SAFE + TEST)
    result = pytester.runpytest_subprocess("--stabilize-simulate=10", "-v")
    result.assert_outcomes(passed=10)
    result.stdout.fnmatch_lines(["*::test_an_order_is_charged_once?seed9? PASSED*"])


def test_code_that_must_not_run_twice_is_found_and_its_story_told(pytester):
    pytester.makepyfile(UNSAFE + TEST)
    result = pytester.runpytest_subprocess("--stabilize-simulate=60", "-x")
    result.assert_outcomes(failed=1, passed=result.parseoutcomes().get("passed", 0))
    told = result.stdout.str()
    assert "breaks check (your own check)" in told
    assert "AssertionError: charged 2 times" in told
    assert told.split("simulated history")[1].count("  ! ") <= 3, "one fault is enough"

    (again,) = {
        line.split("to see it again: pytest ")[1] for line in told.splitlines() if "see it again: " in line
    }
    node, *options = again.split()
    result = pytester.runpytest_subprocess(node, *options)
    result.assert_outcomes(failed=1)
    assert "charged 2 times" in result.stdout.str()


def test_a_test_that_fails_afterwards_tells_the_history_too(pytester):
    pytester.makepyfile(
        SAFE
        + """
def test_it(stabilize_simulate):
    run = stabilize_simulate(order, stabilize)
    assert run.get()["parcel"] == "parcel for nobody"
"""
    )
    result = pytester.runpytest_subprocess("--stabilize-simulate=1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*simulated history*", "*StartWorkflow of order is delivered"])


def test_an_engine_that_is_broken_is_found_by_a_users_test(pytester):
    pytester.makepyfile(
        SAFE
        + TEST
        + """
@pytest.fixture(autouse=True)
def broken(monkeypatch):
    from sqlalchemy import bindparam, delete
    from stabilize_celery.persistence.message_queries import Queries
    from stabilize_celery.persistence.tables import messages
    anybody = delete(messages).where(messages.c.id == bindparam("message_id")).returning(*messages.c)
    monkeypatch.setattr(Queries, "_settle", lambda self: anybody)
"""
    )
    result = pytester.runpytest_subprocess("--stabilize-simulate=60", "-x")
    assert "breaks results_of_lost_leases_are_refused" in result.stdout.str()


def test_waiting_workflows_are_driven_by_the_test(pytester):
    pytester.makepyfile(
        """
import pytest
from stabilize_celery import StageExecution, TransientError, Workflow

def flaky(stage):
    if not stage.context.get("tried"):
        raise TransientError("not now", context_update={"tried": True})
    return {"asked": True}

def make():
    return Workflow.create("shop", "approval", [
        StageExecution.single("flaky", "flaky"),
        StageExecution.single("ask", "approval", {}, {"flaky"}),
        StageExecution.single("later", "wait", {"seconds": 86400}, {"ask"}),
    ])

@pytest.mark.stabilize_simulate(histories=3)
def test_it(stabilize_simulate):
    waiting = stabilize_simulate(make, tasks={"flaky": flaky})
    assert waiting.workflow().stage_by_ref_id("ask").status.name == "SUSPENDED"
    done = stabilize_simulate(make, tasks={"flaky": flaky}, when_waiting=lambda run: run.approve("ask", "kim"))
    assert done.successful()
"""
    )
    pytester.runpytest_subprocess("--stabilize-simulate").assert_outcomes(passed=3)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_a_path_is_not_taken_for_a_number(pytester):
    pytester.makepyfile(test_shop=SAFE + TEST)
    result = pytester.runpytest_subprocess("--stabilize-simulate", "test_shop.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*write --stabilize-simulate=N, or --stabilize-simulate last"])


def test_a_run_that_does_not_use_it_imports_next_to_nothing():
    code = """
import sys, pytest
before = set(sys.modules)
import stabilize_celery.testing.plugin
print(sorted(name for name in set(sys.modules) - before if name.partition('.')[0] != 'stabilize_celery'))
print(sorted(name for name in sys.modules if name.startswith('stabilize_celery')))
"""
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True
    )
    others, ours = told.stdout.splitlines()
    assert others == "[]"
    assert ours == "['stabilize_celery', 'stabilize_celery.testing', 'stabilize_celery.testing.plugin']"
