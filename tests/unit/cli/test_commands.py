"""Looking at workflows and controlling them."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import click
import pytest

from stabilize_celery.cli import main
from stabilize_celery.engine import Stabilize
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence import schema
from stabilize_celery.run import VERBS, WorkflowRun
from tests.unit.cli.conftest import MAKE, refusal


def order(name: str, application: str = "shop") -> Workflow:
    return Workflow.create(application, name, [StageExecution.single("make", "make")])


# ---------------------------------------------------------------------------------------------- list


@pytest.fixture
def three(engine: Stabilize) -> list[str]:
    """Two that ended, and one that has not begun; oldest first."""
    ended = [engine.run(order("first"), timeout=30).id, engine.run(order("second", "bank"), timeout=30).id]
    return [*ended, engine.start(order("third")).id]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], [2, 1, 0]),
        (["--application", "shop"], [2, 0]),
        (["--name", "second"], [1]),
        (["--status", "succeeded"], [1, 0]),
        (["--limit", "1"], [2]),
        (["--since", "2h"], [2, 1, 0]),
        (["--since", "2999-01-01"], []),
        (["--since", "2000-01-01T00:00:00+02:00", "--application", "bank"], [1]),
    ],
)
def test_list_filters(answer, three: list[str], filters: list[str], expected: list[int]) -> None:
    assert [found["id"] for found in answer("list", *filters)] == [three[number] for number in expected]


def test_list_as_a_table(cli, three: list[str]) -> None:
    lines = cli("list").stdout.splitlines()
    assert lines[0].split() == ["ID", "APPLICATION", "NAME", "STATUS", "STARTED", "ELAPSED"]
    assert [line.split()[:4] for line in lines[1:]] == [
        [three[2], "shop", "third", "NOT_STARTED"],
        [three[1], "bank", "second", "SUCCEEDED"],
        [three[0], "shop", "first", "SUCCEEDED"],
    ]


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("application", ["shop", "a-rather-long-application-of-somewhere"])
def test_list_fits_into_the_terminal(
    cli, engine: Stabilize, monkeypatch, width: int, application: str
) -> None:
    made = [engine.start(order(name, application)).id for name in ("nightly-settlement", "b")]
    ended = engine.run(order("third", application), timeout=30).id
    monkeypatch.setenv("COLUMNS", str(width))
    shown = cli("list").stdout
    assert max(map(len, shown.splitlines())) <= width
    for id in (*made, ended):
        assert re.search(rf"^{id} ", shown, re.MULTILINE)
    assert " SUCCEEDED " in shown
    assert "…" not in shown
    assert ("STARTED" in shown) is (width > 60)


def test_list_of_nothing(cli, engine: Stabilize) -> None:
    engine.create_tables()
    result = cli("list")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No workflows.\n")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--since", "yesterday"), ("--since", "9" * 6 + "w"), ("--status", "DONE"), ("--limit", "0")],
)
def test_list_refuses_what_means_nothing(cli, engine: Stabilize, option: str, value: str) -> None:
    assert option in refusal(cli("list", option, value), code=2)


# ---------------------------------------------------------------------------------------------- show


@pytest.fixture
def failed(engine: Stabilize) -> str:
    def fail() -> None:
        raise ValueError("token=topsecret")

    engine.task("fail")(fail)
    return engine.run(Workflow.create("shop", "bad", [StageExecution.single("fail", "fail")]), timeout=30).id


def test_show_in_json(answer, waiting: WorkflowRun) -> None:
    shown = answer("show", waiting.id, "--history")
    assert set(shown) == {
        "complete", "now", "is_canceled", "started_by", "parent_workflow_id",
        "id", "application", "name", "status", "created_at", "start_time", "end_time", "elapsed_seconds", "trigger",
        "context", "pipeline_config_id", "dedup_key", "canceled_by", "cancellation_reason", "paused_by", "stages",
        "outputs", "history",
    }  # fmt: skip
    stages = {stage["ref_id"]: stage for stage in shown["stages"]}
    assert {ref: stage["status"] for ref, stage in stages.items()} == {
        "make": "SUCCEEDED",
        "ask": "SUSPENDED",
        "end": "NOT_STARTED",
    }
    assert stages["end"]["requires"] == ["ask"]
    assert stages["make"]["outputs"] == shown["outputs"] == {"made": 3}
    assert set(stages["make"]) >= {
        "id", "ref_id", "name", "type", "status", "requires", "parent_id", "phase", "start_time", "end_time",
        "elapsed_seconds", "attempts", "error", "outputs", "tasks",
    }  # fmt: skip
    assert set(stages["make"]["tasks"][0]) >= {
        "id", "name", "type", "status", "start_time", "end_time", "elapsed_seconds", "attempts", "last_error",
    }  # fmt: skip
    assert set(shown["history"][0]) >= {
        "at", "event", "stage", "stage_id", "task", "task_id", "generation", "from", "to", "reason", "actor",
        "worker", "details",
    }  # fmt: skip
    assert datetime.fromisoformat(stages["make"]["end_time"]).utcoffset() is not None
    assert stages["make"]["tasks"][0]["type"] == "make"
    steps = [(entry["event"], entry["stage"], entry["to"]) for entry in shown["history"]]
    assert ("stage", "make", "SUCCEEDED") in steps
    assert all(datetime.fromisoformat(entry["at"]).utcoffset() is not None for entry in shown["history"])


def test_show_with_tracebacks(cli, engine: Stabilize, failed: str) -> None:
    assert "Traceback" not in cli("show", failed).stdout
    shown = cli("show", failed, "--traceback").stdout
    assert "ValueError: token=***" in shown
    told = shown[shown.index("stage fail:\n") :]
    assert told.splitlines()[1] == "Traceback (most recent call last):"
    assert told.splitlines()[-1] == "ValueError: token=***"
    assert "topsecret" not in shown


def test_watch_and_ctrl_c(cli, waiting: WorkflowRun, monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkflowRun, "wait", interrupted)
    for options in ([], ["--json"]):
        result = cli("watch", waiting.id, *options)
        assert result.exit_code == 1
        assert f"Workflow {waiting.id} goes on; `watch {waiting.id}` shows it again" in result.stderr
        assert "Aborted" not in result.stderr
    assert not waiting.ready()


def test_show_as_a_tree(cli, waiting: WorkflowRun) -> None:
    shown = cli("show", waiting.id, "--history", "--outputs").stdout
    assert "├── ✔ make  SUCCEEDED" in shown
    assert re.search(r"◌ ask +SUSPENDED .* waits for a signal  after make", shown)
    assert re.search(r"^make +made +3", shown, re.MULTILINE)
    assert re.search(r"stage make +RUNNING +SUCCEEDED", shown)
    assert len(re.findall(r"^STAGE|^AT", cli("show", waiting.id).stdout, re.MULTILINE)) == 0


@pytest.mark.parametrize("part", [slice(None), slice(-6, None), slice(-10, None), slice(1, None)])
def test_an_id_may_be_shortened(answer, waiting: WorkflowRun, part: slice) -> None:
    assert answer("show", waiting.id[part])["id"] == waiting.id
    assert answer("show", waiting.id[part].lower())["id"] == waiting.id


def test_an_end_that_several_ids_have_is_refused(cli, engine: Stabilize) -> None:
    made = [order(name) for name in ("first", "second")]
    for number, workflow in enumerate(made):
        workflow.id = f"01ARZ3NDE{number}TSV4RRFFQ69G5FAV"
        engine.start(workflow)
    said = refusal(cli("show", "69G5FAV"))
    assert said == f"69G5FAV may be any of {made[1].id}, {made[0].id}; write more of it"


def test_unknown_ids(cli, waiting: WorkflowRun) -> None:
    close = waiting.id[:-1] + ("0" if waiting.id[-1] != "0" else "1")
    assert refusal(cli("show", close)).endswith(f"did you mean {waiting.id}?")
    assert refusal(cli("show", close[-8:])).endswith(f"did you mean {waiting.id}?")
    assert refusal(cli("show", "ZZZZZZZZZZZZZZZZZZZZZZZZZZ")).endswith("`list` shows those there are")
    assert refusal(cli("show", waiting.id[-3:])).endswith("write an id, or 6 or more characters of its end")
    assert "there is no workflow %%%%%%% in" in refusal(cli("show", "%%%%%%%"))


# ---------------------------------------------------------------------------------------------- control


def test_control(answer, waiting: WorkflowRun, engine: Stabilize) -> None:
    def now() -> str:
        engine.processor.drain(30)
        return str(waiting.status)

    ask = {"id": waiting.id, "accepted": True, "stage": None}
    assert answer("pause", waiting.id, "--user", "kim") == {**ask, "command": "pause"}
    assert now() == "PAUSED"
    assert answer("show", waiting.id)["paused_by"] == "kim"
    answer("resume", waiting.id)
    assert now() == "RUNNING"
    answer("skip", waiting.id, "ask", "--reason", "nobody there")
    assert now() == "SUCCEEDED"
    assert "nobody there" in {entry["reason"] for entry in answer("show", waiting.id, "--history")["history"]}
    answer("restart", waiting.id, "ask", "--user", "kim")
    assert now() == "RUNNING"
    answer("cancel", waiting.id, "--force", "--user", "kim", "--reason", "enough")
    assert now() == "CANCELED"
    shown = answer("show", waiting.id)
    assert (shown["canceled_by"], shown["cancellation_reason"]) == ("kim", "enough")


def test_cancel_a_stage(answer, waiting: WorkflowRun, engine: Stabilize) -> None:
    assert answer("cancel-stage", waiting.id, "ask", "--reason", "no")["stage"] == "ask"
    engine.processor.drain(30)
    stages = {stage["ref_id"]: stage["status"] for stage in answer("show", waiting.id)["stages"]}
    assert stages["ask"] == "CANCELED"


def test_every_verb_of_a_run_is_a_command() -> None:
    listed = main.list_commands(click.Context(main))
    assert [name for name in listed if name in VERBS] == list(VERBS)


@pytest.mark.parametrize(("verb", "status"), [("approve", "SUCCEEDED"), ("reject", "TERMINAL")])
def test_an_approval_is_answered(answer, engine: Stabilize, verb: str, status: str) -> None:
    run = engine.run(
        Workflow.create("shop", "refund", [StageExecution.single("ask", "approval")]), timeout=30
    )
    answer(verb, run.id, "ask", '{"note": "seen"}', "--user", "kim")
    engine.processor.drain(30)
    (ask,) = answer("show", run.id)["stages"]
    assert ask["status"] == status
    assert verb == "reject" or ask["outputs"]["approval"] == {"note": "seen"}


def test_who_does_it_is_who_is_logged_in(
    answer, waiting: WorkflowRun, engine: Stabilize, monkeypatch
) -> None:
    monkeypatch.setenv("LOGNAME", "robin")
    answer("cancel", waiting.id)
    engine.processor.drain(30)
    assert answer("show", waiting.id)["canceled_by"] == "robin"


def test_without_workers_it_is_said_who_does_it(cli, waiting: WorkflowRun) -> None:
    result = cli("pause", waiting.id)
    assert result.stdout == f"pause of workflow {waiting.id} is under way\n"
    assert "`run FILE --continue ID` does what is under way" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume", "ID"], "is RUNNING, not PAUSED; there is nothing to resume"),
        (["restart", "ID", "ask"], "stage ask is SUSPENDED; only a stage that has ended can be restarted"),
        (["skip", "ID", "make"], "cannot skip stage make: it ended SUCCEEDED"),
        (["signal", "ID", "aks", "go"], "has no stage 'aks', did you mean 'ask'?"),
        (["signal", "ID", "ask", ""], "a signal needs a name"),
    ],
)
def test_what_makes_no_sense_is_refused(
    cli, waiting: WorkflowRun, arguments: list[str], message: str
) -> None:
    said = refusal(cli(*(waiting.id if argument == "ID" else argument for argument in arguments)))
    assert message in said


@pytest.mark.parametrize("data", ["{", "yes", "[]"])
def test_a_signal_takes_a_json_object(cli, waiting: WorkflowRun, data: str) -> None:
    assert "JSON" in refusal(cli("signal", waiting.id, "ask", "go", data), code=2)


def test_watch_ends_with_the_workflow(cli, answer, engine: Stabilize) -> None:
    run = engine.run(order("quick"), timeout=30)
    watched = cli("watch", run.id[-8:])
    assert watched.exit_code == 0
    assert "✔ make  SUCCEEDED" in watched.stdout


def test_watch_fails_when_the_workflow_did_not_succeed(cli, waiting: WorkflowRun, engine: Stabilize) -> None:
    assert "is RUNNING after 0 s" in refusal(cli("watch", waiting.id, "--timeout", "0", "--json"))
    waiting.cancel()
    engine.processor.drain(30)
    assert cli("watch", waiting.id).exit_code == 1


# ---------------------------------------------------------------------------------------------- files


def test_validate(cli, answer, flow) -> None:
    path = flow(MAKE)
    assert cli("validate", path).stdout == f"{path}: shop/order, 1 stage, can be started\n"
    said = {"file": path, "valid": True, "problems": [], "application": "shop", "name": "order", "stages": 1}
    assert answer("validate", path) == said


def test_validate_a_file_that_lacks_a_task(cli, answer, flow, tmp_path: Path) -> None:
    path = flow('StageExecution.single("a", "makes")')
    result = cli("validate", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "stage a: no task type 'makes' is registered, did you mean 'make'?" in result.stderr
    assert answer("validate", path, code=1)["valid"] is False


def test_validate_cannot_know_the_tasks_of_an_app_that_is_not_named(cli, tmp_path: Path) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text("stages: [{ref: a, type: charge}]")
    result = cli("validate", str(path))
    assert result.exit_code == 0
    assert "no task type 'charge' is registered here; name the app that knows it with -A" in result.stderr


def test_validate_names_every_problem_of_a_file(answer, cli, tmp_path: Path) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text("stages:\n- {ref: a, typ: noop}\n")
    result = cli("validate", str(path))
    assert result.exit_code == 1
    assert f"{path}:2:12" in result.stderr
    problems = answer("validate", str(path), code=1)["problems"]
    assert len(problems) == len(result.stderr.splitlines()) == 2


def test_validate_several_files(answer, cli, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("stages: [{ref: a, type: noop}]")
    bad.write_text("stages:\n- {ref: a, type: noop, requires: b}\n")
    result = cli("validate", str(good), str(bad))
    assert result.exit_code == 1
    assert f"{good}: default/good, 1 stage, can be started" in result.stdout
    assert result.stderr.startswith(f"{bad}:2:3: unknown_ref: stage a requires b")
    told = answer("validate", str(good), str(bad), code=1)
    assert [each["valid"] for each in told] == [True, False]
    assert cli("validate", str(good), str(good)).exit_code == 0
    assert cli("validate").exit_code == 2


def test_validate_shows_where_an_unknown_type_stands(cli, tmp_path: Path) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text("stages:\n- ref: a\n  type: builder\n  tasks: [noop, {name: b, type: charge}]\n")
    assert f"{path}:4:33: stage a: no task type 'charge' is registered" in cli("validate", str(path)).stderr


def test_graph_of_a_file_and_of_a_workflow(cli, answer, flow, waiting: WorkflowRun) -> None:
    assert cli("graph", flow(MAKE)).stdout.startswith('flowchart LR\n  s0["make"]:::NOT_STARTED\n')
    assert cli("graph", flow(MAKE), "--format", "dot").stdout.startswith('digraph "order" {')
    assert ":::SUSPENDED" in answer("graph", waiting.id)["graph"]
    assert refusal(cli("graph", "ZZZZZZZZZZZZZZZZZZZZZZZZZZ")).startswith("there is no workflow ZZZ")


# ---------------------------------------------------------------------------------------------- databases


def test_migrate(cli, answer, url) -> None:
    assert "from no tables to version 0001 is to be done" in cli("migrate", "--check").stdout
    assert cli("migrate", "--check").exit_code == 1
    assert "CREATE TABLE stabilize_workflows" in cli("migrate", "--sql").stdout
    step = {"revision": "0001", "title": "The first tables", "phase": "expand"}
    first = {"before": None, "after": "0001", "steps": [step], "left": [], "changed": True}
    assert answer("migrate") == first
    assert answer("migrate", "--check") == {**first, "before": "0001", "steps": [], "changed": False}
    assert cli("migrate").stdout == f"{url}: version 0001, nothing to do\n"
    assert cli("migrate", "--sql").stdout == f"-- {url} is of version 0001 already\n"
    assert "exclude" in refusal(cli("migrate", "--sql", "--check"), code=2)
    assert "exclude" in refusal(cli("migrate", "--before-deploy", "--after-deploy"), code=2)


def test_databases_that_cannot_be_used(cli, flow, tmp_path: Path) -> None:
    assert refusal(cli("list")).endswith("flows.db; `migrate` and `run` make one")
    nowhere = "postgresql://kim:secret@127.0.0.1:1/shop"
    said = refusal(cli("list", database=nowhere))
    assert re.search(r"database postgresql\+psycopg://kim:\*\*\*@127.0.0.1:1/shop cannot be reached", said)
    assert "is not a database URL" in refusal(cli("list", database="nonsense"))
    assert "mysql is not supported" in refusal(cli("list", database="mysql://x/y"))
    nowhere = f"sqlite:///{tmp_path}/no/x.db"
    assert "there is no folder" in refusal(cli("start", flow(MAKE), database=nowhere))
    (tmp_path / "flows.db").touch()
    assert "tables of stabilize_celery are missing" in refusal(cli("list"))


def test_a_database_of_a_newer_release(cli, engine: Stabilize) -> None:
    with engine.store.database.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999', compatible_since = '9999'"
        )
    for command in (["list"], ["migrate"], ["migrate", "--check"]):
        assert refusal(cli(*command)).endswith("upgrade stabilize-celery")


def test_neither_an_app_nor_a_database(cli) -> None:
    assert "name the app with -A, or the database" in refusal(cli("list", database=None), code=2)
    both = cli("-A", "shop", "list")
    assert "give either -A or --database-url" in refusal(both, code=2)


def test_a_command_that_does_not_exist(cli) -> None:
    assert refusal(cli("pasue"), code=2) == "there is no command 'pasue', did you mean 'pause'?"


def test_traceback_shows_where_an_error_comes_from(cli) -> None:
    result = cli("list", "--traceback", database="nonsense")
    assert type(result.exception).__name__ == "ConfigurationError"


def test_an_error_nobody_thought_of_is_one_line_too(cli, waiting: WorkflowRun, monkeypatch) -> None:
    monkeypatch.setattr(Stabilize, "get", lambda *_: 1 / 0)
    said = refusal(cli("show", waiting.id))
    assert said == "ZeroDivisionError: division by zero (--traceback shows where)"


def test_every_status_can_be_asked_for(cli, engine: Stabilize) -> None:
    for status in WorkflowStatus:
        assert cli("list", "--status", str(status)).exit_code == 0
