"""A failed workflow says what went wrong, and in which line of the user's own code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stabilize_celery import (
    PermanentError,
    Stabilize,
    StageExecution,
    TaskResult,
    Workflow,
    WorkflowFailedError,
)
from stabilize_celery.errors import describe_error, described_text


def line_of(text):
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line and "line_of" not in line)


@pytest.fixture
def engine():
    with Stabilize.embedded() as made:
        yield made


def failed(engine, body, **context):
    engine.task("work")(body)
    run = engine.run(Workflow.create("shop", "order", [StageExecution.single("work", "work", context)]))
    with pytest.raises(WorkflowFailedError) as caught:
        run.get(timeout=0)
    return run, caught.value


def test_it_names_class_text_file_and_line(engine):
    def work():
        return {"a": 1}["b"]

    run, error = failed(engine, work)
    told = f"KeyError: 'b' (test_told_errors.py:{line_of('return {')})"
    assert str(error) == f"workflow order ({run.id}) failed: work: {told}"
    assert error.errors == {"work": told}
    assert error.traceback.startswith("stage work:\nTraceback (most recent call last):\n")
    assert error.traceback.endswith("KeyError: 'b'")


def test_the_place_is_in_the_user_s_code_and_not_in_what_it_calls(engine):
    def work():
        json.loads("{")

    _, error = failed(engine, work)
    place = f"test_told_errors.py:{line_of('json.loads(')}"
    assert re.fullmatch(rf"JSONDecodeError: .* \({place}\)", error.errors["work"])


def test_what_was_not_raised_has_neither_class_nor_place(engine):
    _, error = failed(engine, lambda: TaskResult.terminal("nothing in stock"))
    assert error.errors == {"work": "nothing in stock"}
    assert error.traceback == ""


def test_an_error_of_the_engine_has_no_place(engine):
    _, error = failed(engine, lambda: {"a": object()})
    assert error.errors["work"].startswith("InvalidOutputError: ")
    assert ".py:" not in error.errors["work"]


def test_a_traceback_tells_no_secret(engine):
    def work(password: str):
        raise PermanentError(f"refused {password}")

    _, error = failed(engine, work, password="hunter2-tr0ub4dor")
    assert "hunter2" not in str(error) + error.traceback
    assert "refused ***" in error.traceback


@pytest.mark.parametrize("described", [None, "text", {}, {"details": None}, {"details": {"error": ""}}])
def test_what_is_no_stored_error_says_nothing(described):
    assert described_text(described) == ""


def test_an_error_without_text_is_named_once():
    assert described_text(describe_error(ValueError())) == "ValueError"
