from __future__ import annotations

import uuid
from datetime import date
from typing import Any

import pytest
from celery import Celery, chain, chord, group

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery.errors import InvalidWorkflowError, WorkflowFailedError
from stabilize_celery.models.status import WorkflowStatus as S

APP = Celery("canvas", broker="memory://", set_as_current=False)


@APP.task(name="unit.join")
def join(*args: Any, **kwargs: Any) -> list[Any]:
    return [*args, *kwargs.values()]


@APP.task(name="unit.boom")
def boom(*args: Any) -> None:
    raise ValueError("boom")


def compiled(canvas: Any) -> dict[str, StageExecution]:
    return {stage.ref_id: stage for stage in Workflow.from_canvas(canvas, "app", "canvas").stages}


def requires(canvas: Any) -> dict[str, set[str]]:
    return {ref: stage.requisite_stage_ref_ids for ref, stage in compiled(canvas).items()}


def test_a_chain_is_a_row() -> None:
    assert requires(chain(join.s(1), join.si(2), join.s(3))) == {
        "1-join": set(),
        "2-join": {"1-join"},
        "3-join": {"2-join"},
    }


def test_a_chord_is_a_fan_and_a_join() -> None:
    stages = compiled(chain(join.s(0), group(join.s(1), join.s(2)), join.s(3)))
    assert stages["4-join"].requisite_stage_ref_ids == {"2-join", "3-join"}
    assert stages["4-join"].context["results_of"] == ["2-join", "3-join"]
    assert stages["2-join"].context["results_of"] == "1-join"


def test_what_ends_in_several_tasks_gets_a_last_stage() -> None:
    assert requires(group(join.s(1), join.s(2)))["3-results"] == {"1-join", "2-join"}
    linked = requires(chain(join.s(1).set(link=join.s("side")), join.s(2)))
    assert linked["4-results"] == {"2-join", "3-join"}


def test_options_and_keywords_are_kept() -> None:
    canvas = chain(join.s(1, k=2).set(queue="mail", priority=3), join.s()).set(queue="first")
    stages = compiled(canvas)
    assert stages["1-join"].context["queue"] == "first"
    assert stages["1-join"].context["priority"] == 3
    assert stages["1-join"].context["kwargs"] == {"$literal": {"k": 2}}
    assert "queue" not in stages["2-join"].context
    assert all(
        s.context["queue"] == "q"
        for s in compiled(group(join.s(1), join.s(2)).set(queue="q")).values()
        if s.name == "join"
    )


def test_a_stored_canvas_is_a_canvas() -> None:
    import json

    canvas = chain(join.s(1), group(join.s(2), join.map([1, 2])), join.s(3))
    assert requires(json.loads(json.dumps(canvas))) == requires(canvas)


def test_map_and_chunks() -> None:
    assert list(compiled(join.map([1, 2]))) == ["1-join-map"]
    assert list(compiled(join.chunks([(1,), (2,), (3,)], 2))) == [
        "1-join-starmap",
        "2-join-starmap",
        "3-results",
    ]


@pytest.mark.parametrize(
    ("canvas", "message"),
    [
        (group(), "has no tasks"),
        ("unit.join", "made of Celery signatures, not of str"),
        (join.s(object()), "stored as JSON"),
        (chain(join.s(1), join.s(2).set(exchnage="x")), "cannot have the option exchnage"),
    ],
)
def test_what_is_refused(canvas: Any, message: str) -> None:
    with pytest.raises(InvalidWorkflowError, match=message):
        Workflow.from_canvas(canvas, "app", "canvas")


@pytest.fixture
def engine() -> Any:
    with Stabilize.embedded() as made:
        yield made


def test_it_runs_embedded_and_values_keep_their_types(engine: Stabilize) -> None:
    day, key = date(2024, 2, 29), uuid.UUID(int=7)
    run = engine.run(
        Workflow.from_canvas(chain(join.s("{{ x }}", day, key), join.s()), "app", "canvas"), timeout=20
    )
    ((text, shown_day, shown_key),) = run.get()["result"]
    assert text == "{{ x }}"
    assert (shown_day["__type__"], shown_key["__type__"]) == ("date", "uuid")


def test_a_failed_task_lets_the_others_of_its_group_go_on(engine: Stabilize) -> None:
    canvas = chord([join.s(1), boom.s(), join.s(3)], join.s().on_error(join.si("body")))
    run = engine.run(Workflow.from_canvas(canvas, "app", "canvas"), timeout=20)
    with pytest.raises(WorkflowFailedError, match=r"2-boom: ValueError: boom \(test_canvas.py:24\)"):
        run.get()
    by_name = {
        stage.ref_id if not stage.is_synthetic else stage.name: stage for stage in run.workflow().stages
    }
    assert by_name["3-join"].status is S.SUCCEEDED
    assert by_name["4-join"].status is S.NOT_STARTED
    # The body's errback is called, because the body never will be.
    assert by_name["2-boom errback 1"].outputs == {"result": ["body"]}


def test_a_callback_that_fails_is_not_the_canvass_failure(engine: Stabilize) -> None:
    canvas = chain(join.s(1).set(link=boom.s()), join.s(2))
    run = engine.run(Workflow.from_canvas(canvas, "app", "canvas"), timeout=20)
    assert run.get()["result"] == [[1], 2]
