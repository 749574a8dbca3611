"""Built-in task types inside a workflow: scenarios 29 to 36 and 38.  Their details have unit tests of their own."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from stabilize_celery import WorkflowStatus as S
from tests.conformance.harness import ConformanceEngine, flow, stage


def test_a_script_gets_its_inputs_and_gives_its_result(engine: ConformanceEngine) -> None:
    """Scenario 29."""
    script = "import sys\nprint('out')\nprint('err', file=sys.stderr)\nRESULT = INPUT['n'] * 2"
    result = engine.run(flow(stage("a", "python", script=script, inputs={"n": 10})))

    assert result.stage("a").outputs == {
        "stdout": "out",
        "stderr": "err\n",
        "exit_code": 0,
        "truncated": False,
        "result": 20,
    }


def test_a_script_gets_the_result_of_the_one_before(engine: ConformanceEngine) -> None:
    """Scenario 30."""
    result = engine.run(
        flow(
            stage("a", "python", script="RESULT = [1, {'two': 2}]"),
            stage("b", "python", ["a"], script="RESULT = INPUT['result'][1]['two']"),
        )
    )

    assert result.stage("b").outputs["result"] == 2


@pytest.mark.parametrize(
    ("own", "inputs", "expected"),
    [({}, {}, "up"), ({"k": "own"}, {}, "own"), ({"k": "own"}, {"k": "in"}, "in"), ({}, {"k": "in"}, "in")],
)
def test_inputs_beat_own_context_and_that_beats_upstream(
    engine: ConformanceEngine, own: dict[str, str], inputs: dict[str, str], expected: str
) -> None:
    """Scenario 30."""
    result = engine.run(
        flow(
            stage("a", outputs={"k": "up"}),
            stage("b", "python", ["a"], script="RESULT = INPUT['k']", inputs=inputs, **own),
        )
    )

    assert result.stage("b").outputs["result"] == expected


def test_a_script_that_exits_with_an_error_fails_its_stage(engine: ConformanceEngine) -> None:
    """Scenario 31."""
    result = engine.run(flow(stage("a", "python", script="import sys; sys.exit(3)")))

    assert result.status is S.TERMINAL
    assert result.stage("a").context["exit_code"] == 3
    assert result.stage("a").context["error"] == "Python script failed with exit code 3"


def test_a_script_may_fail_and_the_workflow_continues_with_its_outputs(engine: ConformanceEngine) -> None:
    """Scenario 31."""
    result = engine.run(
        flow(
            stage("a", "python", script="import sys; print('so far'); sys.exit(3)", continue_on_failure=True),
            stage("b", "see", ["a"]),
        )
    )

    assert result.statuses() == {"a": "FAILED_CONTINUE", "b": "SUCCEEDED"}
    assert result.seen("b")["exit_code"] == 3
    assert result.seen("b")["stdout"] == "so far"
    assert result.status is S.SUCCEEDED


def test_a_script_that_takes_too_long_is_killed(engine: ConformanceEngine) -> None:
    """Scenario 32."""
    result = engine.run(flow(stage("a", "python", script="import time; time.sleep(60)", timeout=0.5)))

    assert result.status is S.TERMINAL
    assert result.stage("a").context["error"] == "Python script timed out after 0.5s"


def test_a_command_gives_its_output(engine: ConformanceEngine) -> None:
    """Scenario 33."""
    result = engine.run(flow(stage("a", "shell", command="echo hi; echo err >&2")))

    assert result.stage("a").outputs == {"stdout": "hi", "stderr": "err", "exit_code": 0, "truncated": False}


def test_a_command_may_name_what_it_sees(engine: ConformanceEngine) -> None:
    """Scenario 34; what is put in is one word, whatever is in it."""
    result = engine.run(
        flow(
            stage("a", "shell", command="echo hi"),
            stage("b", "shell", ["a"], command="echo got {stdout}"),
            stage("evil", outputs={"word": "x; echo injected"}),
            stage("c", "shell", ["evil"], command="echo {word}"),
        )
    )

    assert result.stage("b").outputs["stdout"] == "got hi"
    assert result.stage("c").outputs["stdout"] == "x; echo injected"


@pytest.mark.parametrize(
    ("options", "status", "data"),
    [
        pytest.param({"command": "exit 4"}, "TERMINAL", {"exit_code": 4}, id="fails"),
        pytest.param(
            {"command": "exit 4", "expected_codes": [4]}, "SUCCEEDED", {"exit_code": 4}, id="expected"
        ),
        pytest.param(
            {"command": "echo word: {password}", "password": "hunter2", "secrets": ["password"]},
            "SUCCEEDED",
            {"stdout": "word: ***"},
            id="secret",
        ),
        pytest.param(
            {"command": "printf 1234567890", "max_output_size": 4},
            "SUCCEEDED",
            {"stdout": "1234", "truncated": True},
            id="truncated",
        ),
        pytest.param(
            {"command": "echo begun; sleep 60", "timeout": 0.5},
            "TERMINAL",
            {"exit_code": -1, "stdout": "begun"},
            id="timeout",
        ),
    ],
)
def test_what_becomes_of_a_command(
    engine: ConformanceEngine, options: dict[str, Any], status: str, data: dict[str, Any]
) -> None:
    """Scenario 35."""
    result = engine.run(flow(stage("a", "shell", **options)))

    assert result.statuses() == {"a": status}
    told = result.stage("a").outputs if status == "SUCCEEDED" else result.stage("a").context
    assert {key: told[key] for key in data} == data


def test_http_tasks_do_not_reach_private_addresses_by_default(engine: ConformanceEngine) -> None:
    """Scenario 36."""
    result = engine.run(flow(stage("a", "http", url="http://127.0.0.1:9/")))

    assert result.statuses() == {"a": "TERMINAL"}
    assert "SSRF blocked" in result.stage("a").context["error"]


def test_an_upstream_output_is_no_option_of_a_task(engine: ConformanceEngine) -> None:
    """Scenario 38: neither a timeout nor a command, nor where it runs."""
    outputs = {
        "timeout": 0.001,
        "cwd": "/nowhere",
        "env": 5,
        "python_path": "/bin/false",
        "command": "exit 9",
    }
    result = engine.run(
        flow(
            stage("a", outputs=outputs),
            stage("b", "shell", ["a"], command="sleep 0.1; echo done"),
            stage("c", "python", ["a"], script="import sys; RESULT = sys.executable"),
        )
    )

    assert result.statuses() == {"a": "SUCCEEDED", "b": "SUCCEEDED", "c": "SUCCEEDED"}
    assert result.stage("b").outputs["stdout"] == "done"
    assert result.stage("c").outputs["result"] == sys.executable
