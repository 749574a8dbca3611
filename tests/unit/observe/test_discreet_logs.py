"""What the engine logs of errors in handlers, hooks and observers tells no secret."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest

from stabilize_celery import Stabilize, StageExecution, TaskResult, Workflow
from stabilize_celery.handlers.start_stage import StartStageHandler
from stabilize_celery.observe.logs import discreet_logger, hiding

SECRETS = "password=hunter22, amqp://shop:sesame@broker/, Authorization: Bearer abcdefgh12345"
TOLD = ("hunter22", "sesame", "abcdefgh12345")


@pytest.fixture
def written() -> Iterator[StringIO]:
    """What a handler of the standard library writes, without any filter of ours on it."""
    told = StringIO()
    handler = logging.StreamHandler(told)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    yield told
    root.removeHandler(handler)


def run(**settings: Any) -> None:
    with Stabilize.embedded(
        concurrency=1, control_max_attempts=2, control_retry_delay=0.01, **settings
    ) as engine:
        engine.registry.register("ok", lambda stage: TaskResult.success())
        engine.run(Workflow.create("shop", "order", [StageExecution.single("a", "ok")]), timeout=30)


def refuse(*_: Any) -> None:
    try:
        raise KeyError(SECRETS)
    except KeyError as error:
        raise ValueError("not today; shop_pin=4711") from error


def test_a_dead_letter(written: StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StartStageHandler, "handle", refuse)
    run()
    said = written.getvalue()
    assert "failed 1 times, tried again" in said
    assert "is a dead letter" in said
    assert said.count("ValueError: not today; shop_pin=4711") == 2
    assert said.count("KeyError: 'password=***") == 2
    assert [secret for secret in TOLD if secret in said] == []


def test_the_keys_are_those_of_the_engine(written: StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StartStageHandler, "handle", refuse)
    run(redact_keys=["pin"])
    said = written.getvalue()
    assert said.count("ValueError: not today; shop_pin=***") == 2
    assert "4711" not in said


def test_an_observer(written: StringIO) -> None:
    with Stabilize.embedded(concurrency=1) as engine:
        engine.observe(refuse)
        engine.run(Workflow.create("shop", "order", [StageExecution.single("a", "noop")]), timeout=30)
    said = written.getvalue()
    assert "failed\nTraceback" in said
    assert [secret for secret in TOLD if secret in said] == []


def test_messages_are_hidden_and_others_left_as_they_are(written: StringIO) -> None:
    records: list[logging.LogRecord] = []
    logger = discreet_logger("stabilize_celery.tried")
    logger.addFilter(lambda record: records.append(record) is None)
    logger.warning("it failed: %s", "token=abc123")
    logger.warning("message %s failed %d times", "x", 3, extra=hiding(["pin"]))
    assert written.getvalue() == (
        "WARNING stabilize_celery.tried it failed: token=***\n"
        "WARNING stabilize_celery.tried message x failed 3 times\n"
    )
    assert records[1].args == ("x", 3)
    assert not [name for name in records[1].__dict__ if "redact" in name]
    assert discreet_logger("stabilize_celery.tried").filters == logger.filters


def test_what_no_stream_can_write_is_replaced(written: StringIO) -> None:
    logger = discreet_logger("stabilize_celery.tried")
    logger.error("it failed: %s", "\ud800", exc_info=ValueError("\udfff"))
    assert written.getvalue().encode().startswith(b"ERROR stabilize_celery.tried it failed: ?")
    assert "ValueError: ?" in written.getvalue()
