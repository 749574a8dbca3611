"""Libraries that listen to SQLAlchemy or wrap the driver: the engine works with each as without it.

They change the whole process, so each has one of its own.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from stabilize_celery import Stabilize, StageExecution, Workflow
from tests.processes import run_successfully

PROGRAM = Path(__file__).with_name("program.py")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request):
    return "sqlite://" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.mark.parametrize("libraries", ["sentry", "otel", "sentry otel"])
def test_the_engine_works_beside(libraries, url):
    environment = {**os.environ, "STABILIZE_DATABASE_URL": url}
    command = [sys.executable, "-W", "error", str(PROGRAM), *libraries.split()]
    done = run_successfully(command, timeout=60, env=environment)
    assert done.stdout.endswith("PASS\n")


def test_datadog_s_wrappers_are_harmless(url):
    pytest.importorskip("ddtrace", reason="an optional library that has no wheel everywhere")
    test_the_engine_works_beside("datadog", url)


def work(engine):
    def charge(order_id: int):
        return {"charge_id": f"ch_{order_id}"}

    if not engine.registry.knows("charge"):
        engine.task("charge")(charge)

    stage = StageExecution.single("charge", "charge", {"order_id": 1})
    return engine.run(Workflow.create("shop", "order", [stage]), timeout=20)


@pytest.fixture
def listening():
    """Listen to every engine of the process, as other libraries do."""
    listeners = []

    def listen(name, listener):
        event.listen(Engine, name, listener)
        listeners.append((name, listener))

    yield listen
    for name, listener in listeners:
        event.remove(Engine, name, listener)


def test_listeners_may_write_to_their_context(url, listening):
    def before(_connection, _cursor, _sql, _parameters, context, _many):
        context.of_another_library = 1

    def after(_connection, _cursor, _sql, _parameters, context, _many):
        assert context.of_another_library == 1

    def failed(error):
        error.execution_context.of_another_library = 2

    listening("before_cursor_execute", before)
    listening("after_cursor_execute", after)
    listening("handle_error", failed)
    with Stabilize.embedded(url) as engine:
        assert work(engine).get(timeout=0) == {"charge_id": "ch_1"}


@pytest.mark.parametrize(
    "name",
    ["before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute", "commit", "begin"],
)
def test_a_listener_that_raises_costs_no_connection(url, listening, name):
    """Whatever it stops is rolled back, and works as soon as the listener does."""
    broken = [False]

    def listener(*_arguments):
        if broken[0]:
            raise RuntimeError("of another library")

    listening(name, listener)
    with Stabilize.embedded(url, resend_delay=1) as engine:
        assert work(engine).status.is_successful
        broken[0] = True
        with suppress(RuntimeError):  # Where it is called in a worker, the worker tries again.
            work(engine)
        broken[0] = False
        assert work(engine).status.is_successful
        assert not engine.audit().problems
