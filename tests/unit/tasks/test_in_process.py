from __future__ import annotations

import threading
from typing import Any

import pytest

from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.tasks.python import PythonTask
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import TaskRun, running
from tests.unit.tasks.helpers import PATIENCE, stage_of

STARTED = threading.Event()


def run(own: dict[str, Any]) -> TaskResult:
    return PythonTask().execute(stage_of({"in_process": True, **own}))


@pytest.mark.parametrize(
    "script",
    [
        "print('a', 1, sep='-')\nRESULT = {'x': [INPUT['n'], (1, 2)]}",
        "x = 1",
        "raise SystemExit(3)",
        "raise SystemExit('text')",
        "import sys\nRESULT = 1\nsys.exit(0)",
        "\n\n1/0",
        "def f(:",
        "from __future__ import annotations\ndef f(x: Nope): ...\nRESULT = str(f.__annotations__)",
        "print('x' * 500)",
    ],
)
def test_the_same_as_in_a_process_of_its_own(script: str):
    own = {"script": script, "n": 5, "max_output_size": 100}
    assert run(own) == PythonTask().execute(stage_of(own))


def test_it_is_the_workers_interpreter():
    script = "import threading\nRESULT = threading.get_ident()"
    assert run({"script": script}).outputs["result"] == threading.get_ident()


def test_input_is_a_copy():
    data = {"list": [1]}
    run({"script": "INPUT['data']['list'].append(2)", "data": data})
    assert data == {"list": [1]}


def test_a_result_that_is_not_json():
    assert "Object of type set is not JSON serializable" in run({"script": "RESULT = {1}"}).context["error"]
    assert "Out of range" in run({"script": "RESULT = float('inf')"}).context["error"]


def test_module():
    assert run({"module": "json", "function": "dumps", "a": 1}).outputs["result"] == '{"a": 1}'


def test_timeout():
    result = run({"script": "print('a')\nwhile True: pass", "timeout": 0.1})
    assert result.context["error"] == "Python script timed out after 0.1s"
    assert (result.context["stdout"], result.context["exit_code"]) == ("a", -1)


def test_interrupt():
    task_run = TaskRun("w", "s", "t")
    STARTED.clear()

    def interrupt() -> None:
        STARTED.wait(PATIENCE)
        task_run.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with running(task_run):
        result = run({"script": f"from {__name__} import STARTED\nSTARTED.set()\nwhile True: pass"})
    thread.join()
    assert (result.status, result.context["error"]) == (
        WorkflowStatus.TERMINAL,
        "Python script was interrupted",
    )


def test_secrets():
    own = {"script": "print(INPUT['k'])\nRESULT = INPUT['k']", "k": "s3cr3t", "secrets": ["k"]}
    assert "s3cr3t" not in str(run(own).outputs)
    assert "s3cr3t" not in str(run(own | {"script": "raise ValueError(INPUT['k'])"}).context)
