"""What Celery logs of the engine's control messages is for DEBUG, of which a workflow has many."""

from __future__ import annotations

import logging

import pytest
from celery import Celery

from stabilize_celery import Stabilize

LOGGERS = ("celery.worker.strategy", "celery.app.trace")
CONTROL, RUN, OTHER = "stabilize.StartStage", "stabilize.RunTask", "shop.send"


@pytest.fixture(autouse=True)
def installed() -> None:
    Stabilize(Celery("quiet", broker="memory://", set_as_current=False))


def say(level: int, name: str, said: int = logging.INFO) -> list[str]:
    """The levels under which a record about a task of that name is handled, by each of Celery's loggers."""
    seen: list[str] = []

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.levelname)

    for logger in map(logging.getLogger, LOGGERS):
        handler, before = Seen(), logger.level
        logger.addHandler(handler)
        logger.setLevel(level)
        try:
            logger.log(said, "Task %(name)s[%(id)s] received", {"name": name, "id": "1"})
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)
    return seen


def test_control_messages_are_reported_at_debug() -> None:
    assert say(logging.INFO, CONTROL) == []
    assert say(logging.DEBUG, CONTROL) == ["DEBUG", "DEBUG"]


@pytest.mark.parametrize("name", [RUN, OTHER])
def test_tasks_are_reported_as_ever(name: str) -> None:
    assert say(logging.INFO, name) == ["INFO", "INFO"]


def test_trouble_with_a_control_message_is_no_quieter() -> None:
    assert say(logging.INFO, CONTROL, logging.ERROR) == ["ERROR", "ERROR"]
