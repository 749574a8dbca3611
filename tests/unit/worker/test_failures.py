"""What is told of a failed attempt, and that it tells no secret."""

from __future__ import annotations

import logging
import pickle
import re
import threading
import traceback
from datetime import timedelta

import pytest

from stabilize_celery import (
    Stabilize,
    StageDefinitionBuilder,
    StageExecution,
    Task,
    TaskResult,
    TransientError,
    Workflow,
    WorkflowStatus,
)
from stabilize_celery.observe.logs import ContextFilter
from stabilize_celery.tasks.run import current_run

SECRET = "hunter2-tr0ub4dor"


@pytest.fixture
def engine():
    with Stabilize.embedded() as made:
        yield made


def run(engine, body, **context):
    if not engine.registry.knows("work"):
        engine.task("work")(body)
    return engine.run(Workflow.create("shop", "order", [StageExecution.single("work", "work", context)]))


def told(caplog, level):
    return [r for r in caplog.records if r.levelno == level and r.name.startswith("stabilize_celery")]


def test_without_celery_a_failure_is_logged_with_its_place(engine, caplog):
    def work():
        raise KeyError("b")

    failed = run(engine, work)
    [record] = told(caplog, logging.ERROR)
    assert record.getMessage() == f"stage work of workflow order ({failed.id}), attempt 1 failed"
    shown = logging.Formatter().format(record)
    assert "in work\n" in shown
    assert "KeyError: 'b'" in shown
    ContextFilter().filter(record)
    assert (record.workflow_id, record.workflow, record.stage) == (failed.id, "order", "work")


def test_a_returned_failure_is_one(engine, caplog):
    run(engine, lambda: TaskResult.terminal("nothing in stock"))
    [record] = told(caplog, logging.ERROR)
    assert str(record.exc_info[1]) == "nothing in stock"


def test_a_repetition_is_a_warning(engine, caplog):
    def work():
        if current_run().attempt < 3:
            raise TransientError("later", retry_after=0)

    assert run(engine, work).status.is_successful
    assert not told(caplog, logging.ERROR)
    assert [record.getMessage().split("), ")[1] for record in told(caplog, logging.WARNING)] == [
        f"attempt {number} failed and is repeated in 0 s: TransientError: later" for number in (1, 2)
    ]


class OddError(Exception):
    """Its text cannot be read, and its notes are none."""

    __notes__ = 5

    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(lambda: RuntimeError(f"refused {SECRET}"), id="a secret in the text"),
        pytest.param(lambda: RuntimeError("x" * 1_000_000), id="a megabyte"),
        pytest.param(OddError, id="a text that cannot be read"),
        pytest.param(lambda: _noted(ValueError("bad"), SECRET), id="a secret in a note"),
        pytest.param(lambda: _caused(ValueError("bad"), KeyError(SECRET)), id="a secret in the cause"),
    ],
)
def test_another_stands_for_an_error_that_cannot_be_shown(engine, caplog, error):
    def work(password: str):
        raise error()

    run(engine, work, password=SECRET)
    [record] = told(caplog, logging.ERROR)
    shown = record.exc_info[1]
    assert type(shown).__name__ == type(error()).__name__
    assert type(shown) is not type(error())
    assert "work" in [frame.name for frame in traceback.extract_tb(shown.__traceback__)]
    whole = "".join(traceback.format_exception(shown))
    assert SECRET not in whole
    assert len(whole) < 200_000
    back = pickle.loads(pickle.dumps(shown))
    assert type(back).__name__ == type(shown).__name__
    assert (str(back), back.__notes__) == (str(shown), shown.__notes__)


def _noted(error, note):
    error.add_note(note)
    return error


def _caused(error, cause):
    error.__cause__ = cause
    return error


class Late(Task):
    """Returns by itself after its time, before that is recorded."""

    expired, returned = threading.Event(), threading.Event()

    def get_execution_timeout(self, stage):
        return timedelta(milliseconds=1)

    def execute(self, stage):
        self.expired.wait(30)
        self.returned.set()
        return TaskResult.success()

    def on_timeout(self, stage):
        self.expired.set()
        self.returned.wait(30)


def test_a_task_that_comes_back_after_its_time_has_failed(engine, caplog):
    run(engine, Late)
    [record] = told(caplog, logging.ERROR)
    assert str(record.exc_info[1]) == "Task timed out after 0.001s"


class Broken(StageDefinitionBuilder):
    """Plans nothing, and says a secret instead."""

    type = "work"

    def before_stages(self, stage, graph):
        raise ValueError(f"no plan with {stage.context['password']}")


@pytest.mark.parametrize(
    ("body", "context", "why"),
    [
        (lambda: TaskResult.suspend(timeout=0.01), {}, "waited for a signal longer than it may"),
        (
            lambda: TaskResult.suspend(timeout=None),
            {"stageTimeoutMs": 2000},
            "stage work exceeded its stageTimeoutMs",
        ),
        (lambda: TaskResult.jump_to("nowhere"), {}, "nowhere"),
        (
            Broken,
            {"password": SECRET},
            r"planning its before stages raised\n(.*\n)+ValueError: no plan with \*\*\*",
        ),
    ],
)
def test_a_stage_that_fails_without_an_attempt_that_does_is_logged_too(engine, caplog, body, context, why):
    if body is Broken:
        engine.register_builder(Broken())
    failed = run(engine, body if body is not Broken else (lambda: None), **context)
    assert failed.wait(timeout=30) is WorkflowStatus.TERMINAL
    [record] = told(caplog, logging.ERROR)
    where = re.escape(f"stage work of workflow order ({failed.id}) failed: ")
    assert re.match(rf"{where}(.*){why}", record.getMessage())
    assert SECRET not in caplog.text


def test_an_error_that_is_raised_again_and_again_tells_of_the_last_time(engine, caplog):
    always = ValueError("always the same")

    def work():
        raise always

    run(engine, work)
    last = run(engine, work)
    assert told(caplog, logging.ERROR)[-1].exc_info[1] is always
    assert always.__notes__ == [f"stage work of workflow order ({last.id}), attempt 1"]
