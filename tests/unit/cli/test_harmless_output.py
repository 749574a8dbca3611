"""Names and errors come from users: none of them moves the cursor, clears the screen or sets a title."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.text import Text

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery.cli.output import harmless, make_console
from tests.unit.cli.conftest import Cli

#: Clears the screen, sets the title and, in one character, begins a sequence; a line may end between them.
EVIL = "x\x1b[2J\x1b]0;title\x07\x9b31m\x7f\ty"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.fixture
def failed(url: str) -> Iterator[str]:
    """The id of a workflow with a dead letter, in which everything a user names is evil."""
    with Stabilize.embedded(url, concurrency=1, retry_delay=0.01) as engine:

        def fail(stage: StageExecution) -> None:
            raise ValueError(EVIL)

        engine.registry.register("fail", fail)
        stage = StageExecution.single(EVIL, "fail", {"k": EVIL, "failPipeline": False})
        told = StageExecution.single("told", "noop", {"k": EVIL})
        run = engine.run(Workflow.create(EVIL, EVIL, [stage, told], config={"id": EVIL}), timeout=60)
        with engine.store.database.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO stabilize_dead_letters VALUES (?, 'RunTask', ?, NULL, NULL, ?, ?, ?, 1, ?)",
                (
                    "01ARZ3NDEKTSV4RRFFQ69G5FAV",
                    run.id,
                    EVIL,
                    '{"payload": {}, "queue": "q"}',
                    '{"details": {"error": "\\u001b[2J", "type": "E", "traceback": "T\\u001b[2J"}}',
                    "2026-01-01 00:00:00.000000",
                ),
            )
        yield run.id


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["show", "ID", "--history", "--outputs"],
        ["graph", "ID"],
        ["graph", "ID", "--format", "dot"],
        ["dead-letters", "list"],
        ["dead-letters", "show", "01ARZ3NDEKTSV4RRFFQ69G5FAV"],
        ["list", "--json"],
        ["show", "ID", "--json"],
        ["restart", "ID", EVIL],
        ["restart", "ID", EVIL + "none"],
        ["signal", "ID", "told", EVIL],
    ],
    ids=lambda arguments: " ".join(arguments[:2]).replace(EVIL, ""),
)
def test_no_command_prints_what_a_terminal_obeys(cli: Cli, failed: str, arguments: list[str]) -> None:
    result = cli(*[failed if word == "ID" else word for word in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.output
    assert CONTROL.findall(result.output) == []


def test_what_json_tells_is_what_was_named(answer: Callable[..., Any], failed: str) -> None:
    assert [each["name"] for each in answer("list")] == [EVIL]


def test_its_own_colours_and_line_ends_stay(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_console()
    console._force_terminal, console._color_system = True, 1  # type: ignore[assignment]
    with console.capture() as written:
        console.print(Text("a\x1b[2J", style="red"), Text("b\nc"))
    assert "\x1b[31m" in written.get()
    assert "\x1b[2J" not in written.get()
    assert "b\nc" in written.get()


def test_text_that_is_harmless_stays() -> None:
    assert harmless("a\tb\nc é ✓ \\x1b") == "a\tb\nc é ✓ \\x1b"
    assert harmless("\x1b[0m\r\x85") == "\\x1b[0m\\x0d\\x85"
