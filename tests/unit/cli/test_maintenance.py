"""``audit``, ``dead-letters``, ``prune``, ``rebuild`` on a database without workers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, update

from stabilize_celery.engine import Stabilize
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence.tables import messages, workflows
from stabilize_celery.run import WorkflowRun
from tests.unit.cli.conftest import Cli, refusal

Answer = Callable[..., Any]


@pytest.fixture
def stuck(engine: Stabilize) -> WorkflowRun:
    """A workflow whose first message was lost."""
    run = engine.start(Workflow.create("shop", "order", [StageExecution.single("make", "make")]))
    with engine.store.database.begin() as connection:
        connection.execute(delete(messages))
    return run


@pytest.fixture
def dead(engine: Stabilize) -> tuple[WorkflowRun, str]:
    """A workflow one of whose messages could not be read, and its dead letter."""
    run = engine.start(Workflow.create("shop", "order", [StageExecution.single("make", "make")]))
    with engine.store.database.begin() as connection:
        connection.execute(update(messages).values(payload={"nonsense": 1}))
    engine.processor.drain()
    (letter,) = engine.dead_letters()
    return run, letter["id"]


# ---------------------------------------------------------------------------------------------- audit


def test_audit_of_what_is_well(cli: Cli, answer: Answer, waiting: WorkflowRun) -> None:
    said = cli("audit")
    assert said.exit_code == 0
    assert "1 workflows have not ended" in said.stdout
    assert "1  waits for a signal" in said.stdout
    assert said.stdout.endswith("Nothing is wrong.\n")
    assert answer("audit") == {
        "workflows": 1,
        "causes": {"waits for a signal": 1, "waits for other stages": 1},
        "problems": [],
    }


def test_audit_of_what_is_broken(cli: Cli, answer: Answer, engine: Stabilize, stuck: WorkflowRun) -> None:
    (problem,) = answer("audit", code=1)["problems"]
    assert problem == {
        "kind": "no message",
        "what": "not started, and no message starts it",
        "workflow_id": stuck.id,
        "stage": None,
        "advice": "",
        "repaired": False,
        "repairable": True,
    }
    told = cli("audit", stuck.id[-8:])
    assert told.exit_code == 1
    assert "not started, and no message starts it" in told.stdout
    assert "with --repair" in told.stdout

    mended = answer("audit", "--repair", "--user", "kim")

    assert [p["repaired"] for p in mended["problems"]] == [True]
    assert answer("audit")["problems"] == []
    assert [e["actor"] for e in stuck.history() if e["event"] == "repair"] == ["kim"]
    engine.processor.drain()
    assert stuck.status is S.SUCCEEDED


def test_audit_of_nothing(cli: Cli, engine: Stabilize) -> None:
    engine.create_tables()
    assert cli("audit").exit_code == 0
    assert "there is no workflow" in refusal(cli("audit", "0" * 26))
    for odd in ("-1", "nan", "inf", "1e300", "soon"):
        assert "--overdue" in refusal(cli("audit", "--overdue", odd), code=2)


# ---------------------------------------------------------------------------------------------- dead letters


def test_dead_letters_are_listed_and_shown(cli: Cli, answer: Answer, dead: tuple[WorkflowRun, str]) -> None:
    run, letter_id = dead
    (listed,) = answer("dead-letters", "list")
    assert (listed["id"], listed["type"], listed["workflow_id"]) == (letter_id, "StartWorkflow", run.id)
    assert listed["error"].startswith("InvalidMessageError: message StartWorkflow has unexpected fields")
    assert answer("dead-letters", "list", "--type", "runtask") == []
    assert answer("dead-letters", "list", "--workflow", run.id[-8:]) == [listed]
    assert letter_id in cli("dead-letters", "list").stdout

    shown = answer("dead-letters", "show", letter_id)
    assert shown["row"]["payload"] == {"nonsense": 1}
    assert "Traceback" in shown["error_details"]["details"]["traceback"]
    said = cli("dead-letters", "show", letter_id.lower()).stdout
    assert "Traceback" in said
    assert run.id in said


def test_a_dead_letter_that_makes_no_sense_is_kept_until_it_is_dropped(
    cli: Cli, answer: Answer, dead: tuple[WorkflowRun, str]
) -> None:
    _, letter_id = dead
    assert "cannot be read and would die again" in refusal(cli("dead-letters", "retry", letter_id))
    assert answer("dead-letters", "drop", letter_id) == [
        {"id": letter_id, "command": "drop", "done": "dropped"}
    ]
    said = cli("dead-letters", "list")
    assert (said.stdout, said.stderr) == ("", "No dead letters.\n")
    assert "there is no dead letter" in refusal(cli("dead-letters", "drop", letter_id))


def test_a_dead_letter_is_tried_again(
    cli: Cli, answer: Answer, engine: Stabilize, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engine.start(Workflow.create("shop", "order", [StageExecution.single("make", "make")]))
    (row,) = engine.store.due(10) or [_first_message(engine)]
    engine.dispatcher._bury(row["id"], {"details": {"error": "by hand", "type": "RuntimeError"}})
    assert run.status is S.TERMINAL

    (done,) = answer("dead-letters", "retry", row["id"], "--user", "kim")

    assert done == {"id": row["id"], "command": "retry", "done": "its workflow starts"}
    engine.processor.drain()
    assert run.status is S.SUCCEEDED


def _first_message(engine: Stabilize) -> dict[str, Any]:
    with engine.store.database.begin() as connection:
        return dict(connection.execute(messages.select()).mappings().first() or {})


# ---------------------------------------------------------------------------------------------- prune, rebuild


def test_prune(cli: Cli, answer: Answer, engine: Stabilize, waiting: WorkflowRun) -> None:
    old = engine.run(Workflow.create("shop", "old", [StageExecution.single("make", "make")]), timeout=30)
    with engine.store.database.begin() as connection:
        long_ago = engine.store.now() - timedelta(days=31)
        connection.execute(update(workflows).where(workflows.c.id == old.id).values(end_time=long_ago))
    told = {"workflows": {"SUCCEEDED": 1}, "dead_letters": 0}
    assert answer("prune", "--older-than", "30d", "--dry-run") == {**told, "dry_run": True}
    nothing = {"workflows": {}, "dead_letters": 0, "dry_run": False}
    assert answer("prune", "--older-than", "30d", "--status", "canceled,terminal") == nothing
    assert cli("prune", "--older-than", "30d").stdout == (
        "1 workflows (1 SUCCEEDED) and 0 dead letters were deleted\n"
    )
    assert [found["id"] for found in answer("list")] == [waiting.id]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "say how old with --older-than"),
        (["--older-than", "soon"], "'soon' is no age such as 12h, 30d or 8w"),
        (["--older-than", "30d", "--status", "RUNNING"], "RUNNING is not how a workflow ends"),
        (["--older-than", "30d", "--status", ","], "nothing is not how a workflow ends"),
        (["--older-than", "30d", "--batch", "0"], "--batch"),
    ],
)
def test_prune_refuses_what_means_nothing(
    cli: Cli, engine: Stabilize, arguments: list[str], told: str
) -> None:
    engine.create_tables()
    assert told in refusal(cli("prune", *arguments), code=2)


def test_rebuild_needs_a_broker(cli: Cli, engine: Stabilize) -> None:
    engine.create_tables()
    assert "name the app whose broker" in refusal(cli("rebuild"), code=2)
