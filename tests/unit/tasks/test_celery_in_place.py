"""Celery tasks as stages, called in the process of the engine: tasks made of classes, and values that are more than JSON."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from celery import Celery, Task

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery.celery_tasks.task import CeleryTask

VALUES = [
    datetime(2024, 2, 29, 12, 30, tzinfo=UTC),
    date(2024, 2, 29),
    time(12, 30),
    Decimal("1.50"),
    UUID(int=5),
    b"\xff\x00",
    b"text",
]


class Legacy(Task):
    name = "legacy.add"

    def run(self, x: int, y: int = 2) -> dict[str, int]:
        return {"sum": x + y}


class Untyped(Task):
    name = "legacy.untyped"
    typing = False

    def run(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"args": list(args), "kwargs": kwargs}


class Base(Task):
    abstract = True

    def helper(self) -> str:
        return "helped"


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("legacy", broker="memory://", set_as_current=False)
    app.register_task(Legacy())
    app.register_task(Untyped())

    @app.task(name="legacy.based", shared=False, base=Base, bind=True)
    def based(self: Any) -> dict[str, str]:
        return {"said": self.helper()}

    @app.task(name="legacy.echo", shared=False)
    def echo(value: Any) -> Any:
        return value

    @app.task(name="legacy.kind", shared=False)
    def kind(value: Any) -> list[str]:
        return [type(value).__name__, repr(value)]

    yield app
    app.close()


@pytest.fixture
def engine(app: Celery) -> Iterator[Stabilize]:
    with Stabilize.embedded() as engine:
        engine.registry.register("celery", CeleryTask(app, in_place=True))
        yield engine


def run(engine: Stabilize, *stages: StageExecution) -> dict[str, Any]:
    return engine.run(Workflow.create("test", "celery", list(stages))).get()


@pytest.mark.parametrize("make", [lambda app: Legacy(), lambda app: app.tasks["legacy.add"]])
def test_a_task_made_of_a_class(engine: Stabilize, app: Celery, make: Any) -> None:
    assert run(engine, StageExecution.celery("a", make(app).s(1))) == {"sum": 3}
    assert run(engine, StageExecution.celery("a", make(app).s(1, y=5))) == {"sum": 6}


def test_a_task_that_takes_anything(engine: Stabilize, app: Celery) -> None:
    sig = app.tasks["legacy.untyped"].s(1, 2, z=3)
    assert run(engine, StageExecution.celery("a", sig)) == {"args": [1, 2], "kwargs": {"z": 3}}


def test_a_task_on_a_base_of_the_users(engine: Stabilize, app: Celery) -> None:
    assert run(engine, StageExecution.celery("a", app.tasks["legacy.based"].s())) == {"said": "helped"}


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_that_celerys_json_carries_is_the_result_and_an_argument(
    engine: Stabilize, app: Celery, value: Any
) -> None:
    echo, kind = app.tasks["legacy.echo"], app.tasks["legacy.kind"]
    given = run(engine, StageExecution.celery("a", echo.s(value)))
    assert given.keys() == {"result"}, "the result is whole, and not taken for a mapping of outputs"
    told = run(
        engine,
        StageExecution.celery("a", echo.s(value)),
        StageExecution.celery("b", kind.s("{{ a.result }}"), requires={"a"}),
    )
    assert told["result"] == [type(value).__name__, repr(value)]


def test_such_values_within_others(engine: Stabilize, app: Celery) -> None:
    value = {"when": VALUES[0], "more": [VALUES[3]]}
    told = run(engine, StageExecution.celery("a", app.tasks["legacy.kind"].s(value)))
    assert told["result"] == ["dict", repr(value)]
