"""`run` and `start`: from a file to a workflow that runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stabilize_celery.engine import Stabilize
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.workflow import Workflow
from tests.unit.cli.conftest import MAKE, refusal

FAIL = 'StageExecution.single("fail", "fail")'
ASK = 'StageExecution.single("ask", "ask")'


def test_run_draws_the_tree_and_prints_the_outputs(cli, flow) -> None:
    result = cli("run", flow(MAKE), database=None)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("✔ shop/order  SUCCEEDED")
    assert lines[1].startswith("└── ✔ make  SUCCEEDED")
    assert lines[2:] == ["OUTPUT  VALUE", "made    3"]


def test_run_fails_when_the_workflow_does(cli, flow) -> None:
    result = cli("run", flow(FAIL), database=None)
    assert result.exit_code == 1
    assert "✘ fail  TERMINAL" in result.stdout
    assert "ValueError: no luck" in result.stdout


def test_run_says_it_in_json_and_lets_nothing_else_into_it(cli, flow) -> None:
    noisy = flow(
        MAKE,
        'StageExecution.single("talk", "talk")',
        more='print("hi")\ntasks["talk"] = lambda stage: print("talk")',
    )
    result = cli("run", noisy, "--json", "--context", '{"order": 7}', "--user", "kim", database=None)
    said = json.loads(result.stdout)
    assert (result.exit_code, said["status"], said["outputs"]) == (0, "SUCCEEDED", {"made": 3})
    assert (said["context"], said["trigger"]["user"]) == ({"order": 7}, "kim")
    assert result.stderr.startswith("hi\ntalk\n")
    assert {stage["ref_id"]: stage["attempts"] for stage in said["stages"]} == {"make": 1, "talk": 1}


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_run_takes_yaml_and_json(cli, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"flow.{suffix}"
    path.write_text('{"name": "plain", "stages": [{"ref": "a", "type": "noop"}]}')
    assert "default/plain  SUCCEEDED" in cli("run", str(path), database=None).stdout


def test_a_file_may_bring_its_tasks_on_an_engine_without_a_database(cli, tmp_path: Path) -> None:
    path = tmp_path / "flow.py"
    path.write_text(
        "from stabilize_celery import Stabilize, StageExecution, Workflow\n"
        "stabilize = Stabilize()\n"
        "@stabilize.task('make')\n"
        "def make(stage):\n    return {'made': 1}\n"
        "workflow = Workflow.create('shop', 'order', [StageExecution.single('a', 'make')])\n"
    )
    assert cli("run", str(path), database=None).exit_code == 0


def test_a_file_may_bring_an_engine_with_its_database(cli, answer, flow, url) -> None:
    own = f"from stabilize_celery import Stabilize\nstabilize = Stabilize.embedded({url!r})"
    made = answer("run", flow(MAKE, more=own), database=None)
    assert [found["id"] for found in answer("list")] == [made["id"]]


def test_a_named_database_comes_before_the_one_of_the_file(answer, flow, tmp_path: Path, url) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    own = f"from stabilize_celery import Stabilize\nstabilize = Stabilize.embedded({other!r})"
    made = answer("run", flow(MAKE, more=own))
    assert [found["id"] for found in answer("list")] == [made["id"]]
    assert answer("list", database=other) == []


def test_a_file_may_bring_builders(answer, flow) -> None:
    more = (
        "from stabilize_celery import StageDefinitionBuilder, TaskExecution\n"
        "class Build(StageDefinitionBuilder):\n"
        "    @property\n"
        "    def type(self):\n        return 'deploy'\n"
        "    def build_tasks(self, stage):\n        return [TaskExecution.create('make', 'make')]\n"
        "builders = [Build()]\n"
    )
    made = answer("run", flow('StageExecution.create("deploy", "deploy", "d")', more=more), database=None)
    assert [task["type"] for task in made["stages"][0]["tasks"]] == ["make"]


def test_what_waits_for_a_signal_goes_on_later(cli, answer, flow) -> None:
    path = flow(ASK)
    result = cli("run", path)
    assert result.exit_code == 1
    (found,) = answer("list")
    assert f"Workflow {found['id']} waits for a signal; `run FILE --continue {found['id']}`" in result.stderr
    accepted = answer("signal", found["id"][-8:].lower(), "ask", "yes", '{"by": "kim"}')
    assert accepted == {"id": found["id"], "command": "signal", "stage": "ask", "accepted": True}
    assert answer("run", path, "--continue", found["id"])["outputs"] == {"answer": {"by": "kim"}}


def test_what_waits_in_memory_is_said_to_be_lost(cli, flow) -> None:
    result = cli("run", flow(ASK), database=None)
    assert result.exit_code == 1
    assert "it was kept in memory" in result.stderr


def test_a_run_that_takes_too_long_is_canceled_when_it_is_kept_in_memory(cli, flow, tmp_path: Path) -> None:
    slow = "import pathlib\n"
    slow += "from stabilize_celery import Task\n"
    slow += "class Slow(Task):\n"
    slow += "    def execute(self, stage):\n        return TaskResult.running()\n"
    slow += f"    def on_cancel(self, stage):\n        pathlib.Path({str(tmp_path)!r}, 'told').touch()\n"
    path = flow('StageExecution.single("slow", "slow")', more=f'{slow}tasks["slow"] = Slow')
    said = refusal(cli("run", path, "--timeout", "0.2", database=None))
    assert "is RUNNING after 0.2 s; it was kept in memory" in said
    assert (tmp_path / "told").exists(), "on_cancel was not called"


@pytest.mark.parametrize("odd", ["nan", "inf", "-1", "soon"])
def test_a_timeout_that_is_none_is_refused(cli, flow, engine: Stabilize, odd: str) -> None:
    path = flow('StageExecution.single("a", "noop")')
    assert "--timeout" in refusal(cli("run", path, "--timeout", odd), code=2)
    assert "--timeout" in refusal(cli("watch", "0" * 26, "--timeout", odd), code=2)
    assert "--timeout" in refusal(cli("doctor", "--timeout", odd), code=2)


def test_the_messages_of_others_are_not_handled(cli, flow, engine: Stabilize) -> None:
    engine.start(Workflow.create("shop", "theirs", [StageExecution.single("a", "make")]))
    said = refusal(cli("run", flow(MAKE)))
    assert "holds 1 unfinished message of other workflows" in said
    assert engine.store.count_messages() == 1


def test_a_key_starts_it_once(cli, answer, flow) -> None:
    path = flow(MAKE)
    first, second = (answer("run", path, "--dedup-key", "k") for _ in range(2))
    assert first["id"] == second["id"]
    assert len(answer("list")) == 1


def test_start_leaves_the_work_to_others(cli, answer, flow, engine: Stabilize) -> None:
    started = cli("start", flow(MAKE))
    assert started.exit_code == 0
    (found,) = answer("list")
    assert (found["id"], found["status"]) == (started.stdout.strip(), "NOT_STARTED")
    engine.processor.drain(30)
    assert answer("watch", found["id"])["status"] == "SUCCEEDED"


def test_start_says_whether_the_key_was_new(answer, flow) -> None:
    path = flow(MAKE)
    first, second = (answer("start", path, "--dedup-key", "k") for _ in range(2))
    assert (first["new"], second["new"]) == (True, False)
    assert first["id"] == second["id"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks = 5", "'tasks' is of type int; it must be a dict of name -> task"),
        ("tasks = {'a': 5}", "'tasks' says 'a': 5; it must be name -> task"),
        ("stabilize = 5", "'stabilize' is of type int; it must be a Stabilize"),
        ("builders = [5]", "'builders' holds 5, which is no StageDefinitionBuilder"),
        ("tasks = {}", "stage make, task make: no task type 'make' is registered"),
        ("tasks = {'makes': print}", "no task type 'make' is registered, did you mean 'makes'?"),
        ("1 / 0", "flow.py:12:1: running it raised ZeroDivisionError: division by zero"),
    ],
)
def test_files_that_are_refused(cli, flow, text: str, message: str) -> None:
    assert message in refusal(cli("run", flow(MAKE, more=text), database=None))


def test_a_file_that_is_not_there(cli) -> None:
    for command in ("run", "start", "graph"):
        assert refusal(cli(command, "no.yaml", database=None)) == "no.yaml: there is no such file"
    # It takes many files, and says what is wrong with each.
    checked = cli("validate", "no.yaml", database=None)
    assert (checked.exit_code, checked.stderr.strip()) == (1, "no.yaml: there is no such file")


@pytest.mark.parametrize("context", ["{", "[1]"])
def test_a_context_that_is_no_json_object(cli, flow, context: str) -> None:
    said = refusal(cli("run", flow(MAKE), "--context", context, database=None), code=2)
    assert "--context" in said
