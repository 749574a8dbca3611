"""Command lines from strangers: an exit code and a message, never a traceback, and what is refused changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from stabilize_celery import Stabilize, StageExecution, TaskResult, Workflow
from stabilize_celery.cli import main
from stabilize_celery.run import VERBS
from tests.fuzz.hostile import JSON, NASTY, TEXT, cases

#: What a shell can hand over: no NUL, and bytes that are no UTF-8 as lone surrogates.
ARGUMENT = TEXT.map(lambda text: text.replace("\0", ""))
DATA = JSON.map(lambda value: json.dumps(value) if len(repr(value)) < 4000 else "{}") | ARGUMENT
CONTROLS = ["show", "watch", "graph", *VERBS]
OPTIONS = [
    "--json",
    "--user",
    "--reason",
    "--force",
    "--transient",
    "--history",
    "--outputs",
    "--format",
    "--sql",
    "--check",
]
LISTING = ["--application", "--name", "--status", "--since", "--limit"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def url(folder: Path) -> str:
    return f"sqlite:///{folder}/flows.db"


@pytest.fixture(scope="module")
def run_id(url: str) -> Iterator[str]:
    """A workflow that waits, with everything in it that may disturb whoever prints it."""
    nasty = {f"k{index} {text}": text for index, text in enumerate(NASTY)}
    with Stabilize.embedded(url) as engine:
        engine.registry.register("ask", lambda stage: TaskResult.suspend())
        engine.registry.register("say", lambda stage: dict(nasty))

        def fail(stage: StageExecution) -> None:
            raise ValueError("".join(NASTY))

        engine.registry.register("fail", fail)
        name = "[/red] \x1b[2J {x} %s \u202e"
        stages = [
            StageExecution.single("[/say]", "say", dict(nasty)),
            StageExecution.single("fail", "fail", {"failPipeline": False}, requires={"[/say]"}),
            StageExecution.single("ask", "ask", requires={"[/say]"}),
        ]
        run = engine.start(Workflow.create(name, name, stages, context=nasty))
        engine.processor.drain()
        assert run.workflow().stages[2].status.name == "SUSPENDED"
        assert run.workflow().stages[1].status.name == "STOPPED"
        yield run.id


def invoke(url: str, *arguments: str) -> Result:
    result = CliRunner().invoke(main, ["--database-url", url, *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (0, 1, 2)
    assert "Traceback (most recent" not in result.stderr
    assert result.exit_code == 0 or result.stderr.strip() or "--check" in arguments or "--json" in arguments
    return result


@cases(200)
@given(st.data())
def test_any_control_of_any_workflow(url: str, run_id: str, data: st.DataObject) -> None:
    command = data.draw(st.sampled_from(CONTROLS))
    ids = ARGUMENT | st.just("Z" * 26)
    if command in ("show", "graph"):
        ids |= st.sampled_from([run_id, run_id[-8:], run_id.lower()])
    rest = data.draw(st.lists(ARGUMENT | DATA | st.sampled_from(OPTIONS), max_size=4))
    before = Stabilize.embedded(url)
    with before:
        invoke(url, command, data.draw(ids), *rest)
        assert before.get(run_id).status.name == "RUNNING"


@cases(60)
@given(st.lists(st.sampled_from(LISTING) | ARGUMENT | st.sampled_from(OPTIONS), max_size=4))
def test_any_listing(url: str, run_id: str, arguments: list[str]) -> None:
    invoke(url, "list", *arguments)


@cases(60)
@given(ARGUMENT, DATA, st.lists(ARGUMENT, max_size=1))
def test_any_signal_is_kept_as_it_is_or_refused(
    url: str, run_id: str, name: str, data: str, more: list[str]
) -> None:
    with Stabilize.embedded(url) as engine:
        before = engine.store.count_messages()
        result = invoke(url, "signal", run_id, "ask", "--user", "kim", "--", name, data, *more)
        with engine.store.database.begin() as connection:
            found = connection.exec_driver_sql("SELECT id, payload FROM stabilize_messages").all()
            connection.exec_driver_sql("DELETE FROM stabilize_messages")
        assert len(found) - before == (result.exit_code == 0)
        if found:
            stored = json.loads(found[0].payload)
            assert (stored["signal_name"], stored["signal_data"]) == (name, json.loads(data))


@cases(60)
@given(
    st.lists(
        ARGUMENT | st.sampled_from(["run", "validate", "graph", "start", "migrate", *OPTIONS]), max_size=4
    )
)
def test_any_words(url: str, run_id: str, arguments: list[str]) -> None:
    invoke(url, *arguments)


@cases(60)
@given(ARGUMENT)
def test_any_database_url(given_url: str) -> None:
    invoke(given_url.replace("/", ""), "list")


@pytest.mark.parametrize(
    "options", [[], ["--json"], ["--history"], ["--outputs"], ["--history", "--outputs", "--json"]]
)
@pytest.mark.parametrize("command", ["show", "list", "graph"])
def test_what_is_stored_can_be_printed(url: str, run_id: str, command: str, options: list[str]) -> None:
    chosen = options if command == "show" else [option for option in options if option == "--json"]
    result = invoke(url, command, *([run_id] if command != "list" else []), *chosen)
    assert result.exit_code == 0, result.output
    if "--json" in chosen:
        json.loads(result.stdout)
