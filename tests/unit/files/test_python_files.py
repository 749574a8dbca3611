"""Workflows in Python files."""

from __future__ import annotations

import re
import sys

import pytest

from stabilize_celery.errors import WorkflowFileError

PYTHON = """\
from __future__ import annotations
from dataclasses import dataclass
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.workflow import Workflow

@dataclass
class Options:
    ref: str = "a"

stages = [StageExecution.single(Options().ref, "noop")]
"""


@pytest.mark.parametrize(
    "ending",
    [
        "workflow = Workflow.create('app', 'flow', stages)",
        "def workflow():\n    return Workflow(name='flow', stages=stages)",
    ],
)
def test_a_python_file_has_a_workflow_or_a_function_that_gives_one(load, ending) -> None:
    first, second = load(PYTHON + ending, "flow.py"), load(PYTHON + ending, "flow.py")
    assert first.name == "flow"
    assert first.stages[0].rank == [0, 0]
    assert first.id != second.id, "each call runs the file anew"


def test_a_python_file_may_import_what_lies_beside_it(load, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_the_flow.py").write_text("NAME = 'neighbour'\n")
    text = PYTHON + "from beside_the_flow import NAME\nworkflow = Workflow.create('app', NAME, stages)"
    assert load(text, "flow.py").name == "neighbour"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = (", r"flow.py:1:5: not Python: '\(' was never closed"),
        ("a = 1\n\nimport there_is_none", "flow.py:3:1: running it raised ModuleNotFoundError: No module"),
        ("import sys\nsys.exit(3)", "flow.py:2:1: running it raised SystemExit: 3"),
        (
            "def workflow():\n    return 1 / 0",
            r"flow.py:2:12: workflow\(\) raised ZeroDivisionError: division by zero",
        ),
        ("def workflow(x): ...", r"flow.py: workflow\(\) raised TypeError: "),
        ("workflow = 5", "flow.py: 'workflow' is of type int; it must be or give a Workflow"),
        ("def workflow(): ...", "flow.py: 'workflow' is of type NoneType"),
        ("workflows = 5", "flow.py: it defines no 'workflow', .* did you mean 'workflows'"),
        (
            PYTHON + "flow = Workflow.create('a', 'b', stages)",
            "flow.py: it defines no 'workflow', .*; rename 'flow'",
        ),
        (PYTHON + "workflow = Workflow(stages=stages * 2)", "flow.py: duplicate_ref: a"),
        (
            PYTHON + "workflow = Workflow.create('a', 'b', stages * 2)",
            "flow.py:11:12: running it raised Invalid",
        ),
        ("a = " + "(" * 500, "flow.py:1:.*: not Python: "),
        ("a = " + "-" * 100_000 + "1", "flow.py: running it raised (RecursionError|MemoryError)"),
        ("x = '\0'", "flow.py.*null bytes"),
        (b"\x80", "flow.py: it is not text in UTF-8"),
    ],
    ids=range(15),
)
def test_python_files_that_are_refused(refusal, text, message) -> None:
    assert re.match(message, refusal(text, "flow.py"))


def test_the_cause_of_a_refusal_is_kept(load) -> None:
    with pytest.raises(WorkflowFileError) as caught:
        load("1 / 0", "flow.py")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
