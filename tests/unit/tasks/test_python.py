from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.tasks.python import PythonTask
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import TaskRun, running
from tests.unit.tasks.helpers import await_end, stage_of

#: JSON as a script may leave it in RESULT and as another stage will get it.
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def run(own: dict[str, Any] | str, inherited: dict[str, Any] | None = None) -> TaskResult:
    own = {"script": own} if isinstance(own, str) else own
    return PythonTask().execute(stage_of(own, inherited))


def outputs(own: dict[str, Any] | str, inherited: dict[str, Any] | None = None) -> dict[str, Any]:
    result = run(own, inherited)
    assert result.status is WorkflowStatus.SUCCEEDED, result.context
    return result.outputs


def failure(own: dict[str, Any] | str) -> str:
    result = run(own)
    assert result.status is WorkflowStatus.TERMINAL
    assert not result.outputs
    return result.context["error"]


# ---------------------------------------------------------------------- what comes out


def test_the_output_keys_of_the_contract():
    script = "import sys\nprint(' hi ')\nprint('err', file=sys.stderr)\nRESULT = {'n': INPUT['n']}"
    assert outputs({"script": script, "inputs": {"n": 10}}) == {
        "stdout": "hi",
        "stderr": "err\n",
        "exit_code": 0,
        "truncated": False,
        "result": {"n": 10},
    }


def test_no_result_without_result():
    assert "result" not in outputs("x = 1")
    assert "result" not in outputs("RESULT = None")


@settings(max_examples=25, deadline=None)
@given(values)
def test_any_json_value_goes_in_and_comes_out(value: Any):
    got = outputs({"script": "RESULT = [INPUT['v']]", "inputs": {"v": value}})["result"]
    assert json.dumps(got) == json.dumps([value])


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_nothing_a_script_prints_can_pass_for_its_result(text: str):
    script = "import os\nprint(INPUT['t'])\nos.write(1, b'1')\nos.write(2, b'{}')\nRESULT = 'true'"
    assert outputs({"script": script, "inputs": {"t": text}})["result"] == "true"


def test_printing_what_other_engines_take_for_a_marker_is_just_printing():
    marker = '__PYTHONTASK_RESULT_START__\n{"a": 1}\n__PYTHONTASK_RESULT_END__'
    result = outputs(f"print('''{marker}''')")
    assert "result" not in result
    assert result["stdout"] == marker


def test_output_beyond_the_limit_does_not_cost_the_result():
    result = outputs({"script": "print('x' * 100_000)\nRESULT = list(range(100))", "max_output_size": 10})
    assert (result["stdout"], result["truncated"], result["result"]) == ("x" * 10, True, list(range(100)))


def test_a_character_cut_in_half_is_left_out():
    assert outputs({"script": "print('aé')", "max_output_size": 2})["stdout"] == "a"


def test_a_large_result():
    assert outputs("RESULT = 'x' * 3_000_000")["result"] == "x" * 3_000_000


def test_a_result_beyond_the_limit_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stabilize_celery.tasks.python.MAX_RESULT_BYTES", 100)
    assert failure("RESULT = 'x' * 99") == "RESULT is larger than 100 bytes"
    assert outputs("RESULT = 'x' * 98")["result"] == "x" * 98


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("{1, 2}", "Object of type set is not JSON serializable"),
        ("float('nan')", "Out of range float values"),
        ("{(1, 2): 3}", "keys must be str"),
        ("{'a': [object()]}", "Object of type object is not JSON"),
    ],
)
def test_a_result_that_is_not_json(value: str, why: str):
    error = failure(f"RESULT = {value}")
    assert error.startswith("Python script failed with exit code 1: RESULT cannot be stored as JSON: ")
    assert why in error


def test_a_result_that_contains_itself():
    assert "RESULT cannot be stored as JSON" in failure("RESULT = []\nRESULT.append(RESULT)")


def test_a_script_may_leave_early_with_a_result():
    assert outputs("RESULT = 1\nraise SystemExit")["result"] == 1
    assert outputs("import sys\nRESULT = 2\nsys.exit(0)")["result"] == 2


def test_the_result_of_a_forked_child_does_not_count():
    script = "import os\npid = os.fork()\nif pid:\n    os.waitpid(pid, 0)\nRESULT = 'parent' if pid else 'no'"
    assert outputs(script)["result"] == "parent"


def test_a_result_channel_full_of_rubbish_is_an_error():
    script = (
        "import os\nfor fd in range(3, 64):\n"
        "    try: os.write(fd, b'rubbish')\n    except OSError: pass\nRESULT = 1"
    )
    assert failure(script).startswith("RESULT was damaged")


# ---------------------------------------------------------------------- what a script is


def test_future_imports_work():
    assert outputs("from __future__ import annotations\ndef f(x: Nope): ...\nRESULT = f.__annotations__")[
        "result"
    ] == {"x": "Nope"}


def test_the_script_is_main_and_knows_its_arguments():
    script = (
        "import sys\nif __name__ == '__main__':\n    RESULT = [sys.argv[1:], sys.modules[__name__].RESULT]"
    )
    assert outputs({"script": script, "args": ["a b", 1]})["result"] == [["a b", "1"], None]


def test_classes_of_the_script_can_be_pickled():
    script = "import pickle\nclass A: x = 1\nRESULT = type(pickle.loads(pickle.dumps(A()))).__module__"
    assert outputs(script)["result"] == "__main__"


def test_script_file(tmp_path: Path):
    (tmp_path / "neighbour.py").write_text("VALUE = 'né'\n", encoding="utf-8")
    (tmp_path / "job.py").write_bytes(
        "# coding: latin-1\nimport neighbour\nRESULT = [neighbour.VALUE, 'é', __file__]".encode("latin-1")
    )
    expected = ["né", "é", str(tmp_path / "job.py")]
    assert outputs({"script_file": str(tmp_path / "job.py")})["result"] == expected
    assert outputs({"script_file": "job.py", "cwd": str(tmp_path)})["result"] == expected


def test_script_file_that_cannot_be_read(tmp_path: Path):
    prefix = "Failed to generate script: "
    assert failure({"script_file": "../x.py"}) == prefix + "Path traversal blocked in script_file: '../x.py'"
    assert failure({"script_file": "/no/x.py"}) == prefix + "Script file not found: /no/x.py"
    assert failure({"script_file": str(tmp_path)}) == f"{prefix}{tmp_path}: Is a directory"


def test_module(tmp_path: Path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "mod.py").write_text("class A:\n    def f(given): return given['n'] + 1")
    own = {"module": "pack.mod", "function": "A.f", "cwd": str(tmp_path), "inputs": {"n": 1}}
    assert outputs(own)["result"] == 2
    assert "no attribute 'g'" in failure(own | {"function": "A.g"})
    assert "No module named 'nope'" in failure(own | {"module": "nope"})


def test_modules_of_the_working_directory_do_not_meddle(tmp_path: Path):
    (tmp_path / "json.py").write_text("VALUE = 'mine'")
    (tmp_path / "job.py").write_text("import sys\nRESULT = [type(INPUT).__name__, sys.path[0]]")
    own = {"script": "import sys\nRESULT = sys.path[0]", "cwd": str(tmp_path)}
    assert outputs(own)["result"] == ""
    assert outputs({"script_file": "job.py", "cwd": str(tmp_path)})["result"] == ["dict", str(tmp_path)]


def test_environment_and_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FROM_WORKER", "w")
    own = {
        "script": "import os\nenv = os.environ\n"
        "RESULT = [os.getcwd(), env['A'], env['FROM_WORKER'], 'B' in env]",
        "cwd": str(tmp_path),
        "env": {"A": 1, "B": None},
    }
    assert outputs(own)["result"] == [str(tmp_path), "1", "w", False]


def test_another_interpreter(tmp_path: Path):
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nMARK=yes exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    own = {"script": "import os\nRESULT = os.environ['MARK']", "python_path": str(wrapper)}
    assert outputs(own)["result"] == "yes"
    assert failure(own | {"python_path": "/no/python"}).startswith("Python execution failed: ")


def test_utf8_whatever_the_locale():
    own = {"script": "print('é')", "env": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}}
    assert outputs(own)["stdout"] == "é"


# ---------------------------------------------------------------------- what it sees


def test_inputs_over_own_context_over_upstream():
    inherited = {"a": "up", "b": "up", "c": "up"}
    own = {"script": "RESULT = INPUT", "b": "own", "c": "own", "inputs": {"c": "in"}}
    assert outputs(own, inherited)["result"] == {"a": "up", "b": "own", "c": "in"}


def test_input_has_no_options_and_no_engine_keys():
    own = {
        "script": "RESULT = INPUT",
        "continuePipelineOnFailure": True,
        "stageTimeoutMs": 5000,
        "_jump_count": 1,
        "_signal_name": "go",
        "_signal_data": {"x": 1},
        "mine": 1,
    }
    assert outputs(own)["result"] == {"_signal_name": "go", "_signal_data": {"x": 1}, "mine": 1}


def test_upstream_outputs_with_names_of_options_are_data():
    inherited = {
        "timeout": 0.000001,
        "env": {"A": 1},
        "max_output_size": 1,
        "secrets": ["x"],
        "in_process": True,
    }
    result = outputs({"script": "print('long enough')\nRESULT = INPUT"}, inherited)
    assert result["result"] == inherited
    assert result["stdout"] == "long enough"


def test_input_that_is_not_json():
    error = failure({"script": "RESULT = 1", "inputs": {"bad": object()}})
    assert error.startswith("Failed to generate script: INPUT['bad'] is not JSON")


# ---------------------------------------------------------------------- failures


def test_exit_code():
    result = run({"script": "print('a')\nimport sys\nsys.exit(3)"})
    assert result.status is WorkflowStatus.TERMINAL
    assert result.context == {
        "stdout": "a",
        "stderr": "",
        "exit_code": 3,
        "truncated": False,
        "error": "Python script failed with exit code 3",
    }
    assert failure("raise SystemExit('wrong')") == "Python script failed with exit code 1: wrong"


def test_continue_on_failure():
    result = run({"script": "raise SystemExit(3)", "continue_on_failure": True})
    assert result.status is WorkflowStatus.FAILED_CONTINUE
    assert result.outputs["exit_code"] == 3
    assert result.context == {"error": "Python script failed with exit code 3"}


def test_the_traceback_is_that_of_the_script():
    result = PythonTask().execute(
        stage_of({"script": "\ndef f(n):\n    return n / 0  # here\n\nprint(1)\nf(2)\n"}, ref="calc")
    )
    assert result.context["stderr"].splitlines()[:5] == [
        "Traceback (most recent call last):",
        "  File \"<script of stage 'calc'>\", line 6, in <module>",
        "    f(2)",
        "  File \"<script of stage 'calc'>\", line 3, in f",
        "    return n / 0  # here",
    ]
    assert result.context["error"].endswith("ZeroDivisionError: division by zero")


def test_a_syntax_error_shows_the_place():
    result = run("x = 1\ndef f(:\n")
    assert "line 2" in result.context["stderr"]
    assert "def f(:" in result.context["stderr"]
    assert result.context["error"].endswith("SyntaxError: invalid syntax")


def test_chained_exceptions():
    stderr = run("try:\n    1/0\nexcept Exception as e:\n    raise ValueError('b') from e").context["stderr"]
    assert stderr.index("ZeroDivisionError") < stderr.index("direct cause") < stderr.index("ValueError: b")


def test_timeout_keeps_what_was_printed():
    script = "print('before')\nimport time\ntime.sleep(1000)"
    result = run({"script": script, "timeout": 2.5, "env": {"PYTHONUNBUFFERED": ""}})
    assert result.context["error"] == "Python script timed out after 2.5s"
    assert (result.context["stdout"], result.context["exit_code"]) == ("before", -1)


def test_an_interrupt_ends_the_script(tmp_path: Path):
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    task_run = TaskRun("w", "s", "t")
    pids: list[int] = []

    def interrupt() -> None:
        pids.append(int(fifo.read_text()))
        task_run.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    script = "import os, time\nopen(INPUT['fifo'], 'w').write(str(os.getpid()))\ntime.sleep(1000)"
    with running(task_run):
        result = run({"script": script, "fifo": str(fifo), "continue_on_failure": True})
    thread.join()
    assert result.status is WorkflowStatus.TERMINAL
    assert result.context["error"] == "Python script was interrupted"
    assert await_end(pids[0])


def test_secrets_are_masked_everywhere():
    script = "import sys\nkey = INPUT['key']\nprint(key)\nprint(key, file=sys.stderr)\nRESULT = {key: [key]}"
    own = {"script": script, "secrets": ["key", "TOKEN"], "key": "s3cr3t", "env": {"TOKEN": "t0k3n"}}
    result = outputs(own)
    assert (result["stdout"], result["stderr"], result["result"]) == ("***", "***\n", {"***": ["***"]})
    failed = run(own | {"script": "import os\nraise ValueError(INPUT['key'] + os.environ['TOKEN'])"})
    assert "s3cr3t" not in str(failed)
    assert "t0k3n" not in str(failed)
    assert failed.context["error"].endswith("ValueError: ******")


def test_an_upstream_secret_is_masked():
    own = {"script": "print(INPUT['password'])", "secrets": ["password"]}
    assert outputs(own, {"password": "hunter2"})["stdout"] == "***"


@pytest.mark.parametrize(
    ("own", "error"),
    [
        ({}, "One of 'script', 'script_file', or 'module' must be specified"),
        ({"script": "1", "module": "m"}, "Only one of 'script', 'script_file', or 'module' can be specified"),
        ({"module": "m"}, "'function' is required when using 'module' mode"),
        ({"script": "1", "timeout": -1}, "option 'timeout': Input should be greater than 0 (got -1)"),
        ({"script": "1", "timeout": "soon"}, "option 'timeout': Input should be a valid number"),
        ({"script": "1", "cwd": "/no/dir"}, "option 'cwd': is no directory (got '/no/dir')"),
        ({"script": "1", "env": {"A": ["s3cr3t"]}}, "option 'env.A': Input should be a valid string"),
        ({"script": "1", "in_process": True}, "option 'in_process': Input should be False (got True)"),
    ],
)
def test_options_that_make_no_sense(own: dict[str, Any], error: str):
    found = failure(own)
    assert found.startswith("Stage 's': ")
    assert error in found
    assert "s3cr3t" not in found


def test_the_engine_lets_a_long_script_run():
    timeout = PythonTask().get_execution_timeout(stage_of({"timeout": 7200}))
    assert timeout is not None
    assert timeout.total_seconds() > 7200
    assert PythonTask().get_execution_timeout(stage_of({}, {"timeout": 5})) is None
