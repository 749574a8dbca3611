from __future__ import annotations

import base64
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery.errors import TransientError
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import TaskRun, running
from stabilize_celery.tasks.shell import ShellTask
from tests.unit.tasks.helpers import await_end, stage_of


def run(own: dict[str, Any] | str, inherited: dict[str, Any] | None = None) -> TaskResult:
    own = {"command": own} if isinstance(own, str) else own
    return ShellTask().execute(stage_of(own, inherited))


def outputs(own: dict[str, Any] | str, inherited: dict[str, Any] | None = None) -> dict[str, Any]:
    result = run(own, inherited)
    assert result.status is WorkflowStatus.SUCCEEDED, result.context
    return result.outputs


def failure(own: dict[str, Any] | str) -> str:
    result = run(own)
    assert result.status is WorkflowStatus.TERMINAL
    assert not result.outputs
    return result.context["error"]


def test_the_output_keys_of_the_contract():
    assert outputs("echo hi; echo err >&2") == {
        "stdout": "hi",
        "stderr": "err",
        "exit_code": 0,
        "truncated": False,
    }


def test_an_upstream_output_in_the_command():
    assert outputs("echo got {stdout}", {"stdout": "hi"})["stdout"] == "got hi"


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30))
def test_any_upstream_text_arrives_as_one_argument(text: str):
    got = outputs({"command": "printf '%s' {v} \"{v}\"", "binary": True}, {"v": text})
    assert base64.b64decode(got["stdout_b64"]).decode() == text * 2


def test_braces_of_the_shell_survive():
    own = {"command": "X=a; echo 'one two' | awk '{print $2}'; echo ${X} {nope}", "X": "no"}
    assert outputs(own)["stdout"] == "two\na {nope}"


def test_options_are_no_values_but_upstream_outputs_of_that_name_are():
    assert outputs({"command": "echo {timeout}", "timeout": 5})["stdout"] == "{timeout}"
    assert outputs({"command": "echo {timeout}"}, {"timeout": 5})["stdout"] == "5"


def test_upstream_outputs_do_not_configure():
    inherited = {
        "timeout": 1e-9,
        "cwd": "/no/dir",
        "expected_codes": [9],
        "max_output_size": 1,
        "env": {"A": "b"},
    }
    assert outputs("echo a$A", inherited)["stdout"] == "a"


def test_the_command_must_be_its_own():
    assert "No 'command' specified in context" in run({}, {"command": "echo no"}).context["error"]


def test_a_placeholder_that_cannot_be_quoted():
    error = failure({"command": "cat <<EOF\n{x}\nEOF", "x": "y"})
    assert error.startswith("Stage 's': option 'command': {x} cannot be quoted safely")


def test_a_command_too_long_to_start():
    assert "pass large values through 'stdin'" in failure({"command": "echo {x}", "x": "y" * 3_000_000})


def test_shell_stdin_env_and_directory(tmp_path: Path):
    own = {
        "command": "cat; echo $A $BASH $PWD",
        "shell": "/bin/bash",
        "stdin": "é\n",
        "env": {"A": 1},
        "cwd": str(tmp_path),
    }
    assert outputs(own)["stdout"] == f"é\n1 /bin/bash {tmp_path}"


def test_binary():
    result = outputs({"command": r"printf '\377a\n'", "binary": True})
    assert (result["stdout"], base64.b64decode(result["stdout_b64"])) == ("\ufffda\n", b"\xffa\n")


def test_exit_codes():
    assert failure("echo x; exit 4") == "Command exited with code 4 (expected: [0])"
    assert failure("echo why >&2; exit 4") == "Command exited with code 4 (expected: [0]): why"
    assert outputs({"command": "exit 4", "expected_codes": [0, 4]})["exit_code"] == 4
    assert failure({"command": "true", "expected_codes": [4]}) == "Command exited with code 0 (expected: [4])"


def test_a_failure_keeps_its_data():
    data = {"stdout": "x", "stderr": "", "exit_code": 4, "truncated": False}
    result = run("echo x; exit 4")
    assert result.context == {**data, "error": "Command exited with code 4 (expected: [0])"}
    result = run({"command": "echo x; exit 4", "continue_on_failure": True})
    assert (result.status, result.outputs) == (WorkflowStatus.FAILED_CONTINUE, data)


def test_restart_on_failure():
    with pytest.raises(TransientError, match="exited with code 4") as raised:
        run({"command": "echo x; exit 4", "restart_on_failure": True})
    assert raised.value.context_update["_last_outputs"]["stdout"] == "x"
    with pytest.raises(TransientError, match=r"timed out after 0\.1s"):
        run({"command": "sleep 1000", "restart_on_failure": True, "timeout": 0.1})


def test_truncated():
    result = outputs({"command": "seq 1 100000; echo short >&2", "max_output_size": 10})
    assert result == {"stdout": "1\n2\n3\n4\n5", "stderr": "short", "exit_code": 0, "truncated": True}


def test_timeout_keeps_what_was_printed():
    result = run({"command": "echo $$; sleep 1000", "timeout": 1})
    assert result.context["error"] == "Command timed out after 1s"
    assert result.context["exit_code"] == -1
    assert await_end(int(result.context["stdout"]))


def test_an_interrupt_ends_the_command(tmp_path: Path):
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    task_run = TaskRun("w", "s", "t")
    pids: list[int] = []

    def interrupt() -> None:
        pids.append(int(fifo.read_text()))
        task_run.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with running(task_run):
        result = run({"command": f"echo $$ > {fifo}; sleep 1000; true", "restart_on_failure": True})
    thread.join()
    assert (result.status, result.context["error"]) == (WorkflowStatus.TERMINAL, "Command was interrupted")
    assert await_end(pids[0])


def test_secrets_are_masked_everywhere(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    own = {
        "command": "echo {tok}; echo {tok} >&2; echo $T; exit 3",
        "tok": "it's s3cr3t",
        "env": {"T": "t0k3n"},
        "secrets": ["tok", "T"],
        "binary": True,
    }
    result = run(own)
    assert result.context["error"] == "Command exited with code 3 (expected: [0]): ***"
    assert base64.b64decode(result.context["stdout_b64"]) == b"***\n***\n"
    assert not any(secret in str(result) + caplog.text for secret in ("s3cr3t", "t0k3n"))
    assert 'runs: echo "${_stabilize_1}"; echo' in caplog.text


def test_a_secret_cut_by_the_limit_is_masked():
    own = {"command": "echo password={p}", "p": "hunter2", "secrets": ["p"], "max_output_size": 13}
    assert outputs(own)["stdout"] == "password=***"


@pytest.mark.parametrize(
    ("own", "error"),
    [
        ({}, "No 'command' specified in context"),
        ({"command": ""}, "option 'command': String should have at least 1 character"),
        ({"command": "a\0b"}, "NUL"),
        ({"command": "true", "shell": "nosuch"}, "option 'shell': Shell not found"),
        ({"command": "true", "shell": "/no/such"}, "option 'shell': Shell not found"),
        ({"command": "true", "cwd": "/no/dir"}, "option 'cwd': is no directory (got '/no/dir')"),
        ({"command": "true", "timeout": "abc"}, "option 'timeout': Input should be a valid number"),
        ({"command": "true", "expected_codes": 0}, "option 'expected_codes': Input should be a valid list"),
        ({"command": "true", "k": "hunter2", "secrets": ["k"], "timeout": "hunter2"}, "(got '***')"),
    ],
)
def test_options_that_make_no_sense(own: dict[str, Any], error: str):
    found = failure(own)
    assert found.startswith("Stage 's': ")
    assert error in found
    assert "hunter2" not in found


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("head -c 100000 /dev/zero | tr '\\0' x", {}),
        ("head -c 20000 /dev/zero; head -c 3000 /dev/zero >&2", {}),
        ("head -c 90000 /dev/urandom", {"binary": True}),
        ("yes é | head -c 60000", {}),
        ("head -c 100000 /dev/zero; exit 1", {"continue_on_failure": True}),
    ],
)
def test_output_is_cut_to_what_a_stage_can_hold(command: str, more: dict[str, Any]):
    with running(TaskRun("w", "s", "t", output_limit=50_000)):
        result = run({"command": command, **more})
    data = result.outputs
    assert data["truncated"]
    assert 40_000 < len(json.dumps(data, separators=(",", ":"))) <= 50_000
    assert data["exit_code"] == (1 if "exit" in command else 0)
    if "binary" in more:
        assert len(base64.b64decode(data["stdout_b64"], validate=True)) > 8_000


def test_output_that_fits_is_not_cut():
    with running(TaskRun("w", "s", "t", output_limit=50_000)):
        result = run("head -c 40000 /dev/zero | tr '\\0' x")
    assert (len(result.outputs["stdout"]), result.outputs["truncated"]) == (40_000, False)


def test_a_stage_with_much_output_succeeds():
    with Stabilize.embedded(max_output_bytes=20_000) as engine:
        stages = [
            StageExecution.single("s", "shell", {"command": "seq 100000"}),
            StageExecution.single("p", "python", {"script": "print('y' * 10**6); RESULT = 'z' * 9000"}),
            StageExecution.single(
                "f", "shell", {"command": "seq 100000 >&2; exit 3", "continuePipelineOnFailure": True}
            ),
            StageExecution.single(
                "r", "python", {"script": "RESULT = 'z' * 30_000", "continuePipelineOnFailure": True}
            ),
        ]
        done = engine.run(Workflow.create("a", "n", stages), timeout=60).workflow()
    shell, python, failed, too_large = (done.stage_by_ref_id(ref) for ref in "spfr")
    assert shell.status is WorkflowStatus.SUCCEEDED
    assert shell.outputs["truncated"]
    assert shell.outputs["stdout"].startswith("1\n2\n3\n")
    assert python.outputs["truncated"]
    assert len(python.outputs["result"]) == 9000
    assert failed.context["error"].startswith("Command exited with code 3 (expected: [0]): 1\n2\n")
    assert "the limit is 20,000" in too_large.context["error"]
