"""Hostile values through whole workflows on both databases: they come back equal, or are refused unwritten."""

# ruff: noqa: PT017
from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stabilize_celery import Stabilize, StageExecution, TaskResult, TransientError, Trigger, Workflow
from stabilize_celery.errors import StabilizeError
from stabilize_celery.run import WorkflowRun
from tests.fuzz.hostile import ANYTHING, NASTY, TEXT, cases

#: What the next task does; workflows run one after the other.
NEXT: dict[str, Any] = {}


def act(stage: StageExecution) -> Any:
    kind, value = NEXT["kind"], NEXT["value"]
    if kind == "in circles":
        error = ValueError(str(value))
        raise error from error
    if kind == "raises":
        raise ValueError(value)
    if kind == "retries":
        NEXT["kind"] = "returns"
        raise TransientError(str(value), retry_after=0, context_update={"again": value})
    if kind == "jumps":
        return TaskResult.jump_to(value, context={"x": 1})
    if kind == "terminal":
        return TaskResult.terminal(value)
    if kind == "context":
        return TaskResult.success(outputs={"out": 1}, context={"in": value})
    if kind == "waits":
        if "_signal_name" not in stage.context:
            return TaskResult.suspend()
        return {"name": stage.context["_signal_name"], "data": stage.context["_signal_data"]}
    return {"value": value}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Iterator[Stabilize]:
    url = "sqlite://"
    if request.param == "postgresql":
        service = request.getfixturevalue("postgres_service")
        url = service.create_database("fuzz", template=request.getfixturevalue("postgres_template"))
    with Stabilize.embedded(
        url, concurrency=1, control_max_attempts=1, retry_delay=0.001, retry_delay_max=0.001
    ) as made:
        made.registry.register("act", act)
        made.registry.register("see", lambda stage: {"seen": stage.context.get("value")})
        yield made
    if request.param == "postgresql":
        service.drop_database("fuzz")


def plain(value: Any) -> Any:
    """What is stored of a value that JSON can hold."""
    return json.loads(json.dumps(value, allow_nan=False))


def same(stored: Any, value: Any) -> bool:
    return json.dumps(stored, sort_keys=True) == json.dumps(plain(value), sort_keys=True)


def finished(engine: Stabilize, run: WorkflowRun) -> Workflow:
    """Run it to its end; everything about it can be read, and no message of it died."""
    engine.processor.drain(timeout=60)
    workflow = run.workflow()
    run.history()
    assert workflow.status.is_complete
    with engine.store.database.begin() as connection:
        dead = connection.exec_driver_sql("SELECT error FROM stabilize_dead_letters").all()
        connection.exec_driver_sql("DELETE FROM stabilize_dead_letters")
    assert dead == []
    engine.store.delete(run.id)
    return workflow


def two() -> Workflow:
    return Workflow.create(
        "a", "n", [StageExecution.single("a", "act"), StageExecution.single("b", "see", requires={"a"})]
    )


@cases(60)
@given(ANYTHING)
@example("\0")
@example({"\0": ["\ud800"]})
def test_outputs(engine: Stabilize, value: Any) -> None:
    NEXT.update(kind="returns", value=value)
    workflow = finished(engine, engine.start(two()))
    if workflow.status.name == "SUCCEEDED":
        assert same(workflow.stages[0].outputs["value"], value)
        assert same(workflow.stages[1].outputs["seen"], value)
    else:
        assert "outputs.value" in str(workflow.stages[0].context["exception"]["details"]["error"])


@cases(60)
@given(st.sampled_from(["raises", "in circles", "retries", "jumps", "terminal", "context"]), TEXT | ANYTHING)
@example("raises", "\0\ud800")
@example("in circles", "x")
@example("retries", "\0\ud800")
@example("jumps", "\0\ud800")
@example("terminal", "\0\ud800")
def test_whatever_else_a_task_does(engine: Stabilize, kind: str, value: Any) -> None:
    NEXT.update(kind=kind, value=value)
    workflow = finished(engine, engine.start(two()))
    if kind == "context" and workflow.status.name == "SUCCEEDED":
        assert same(workflow.stages[0].own_context["in"], value)
    if kind == "raises":
        assert workflow.stages[0].context["exception"]["details"]["type"] == "ValueError"


@cases(60)
@given(TEXT | ANYTHING, ANYTHING, TEXT | st.none() | ANYTHING)
@example("\0", {"\0": "\ud800"}, "\0")
def test_signals(engine: Stabilize, name: Any, data: Any, user: Any) -> None:
    NEXT.update(kind="waits", value=None)
    run = engine.start(two())
    engine.processor.drain(timeout=60)
    before = engine.store.count_messages()
    try:
        run.signal("a", name, data, user=user)
    except StabilizeError as error:
        assert str(error)
        assert engine.store.count_messages() == before
        run.cancel()
        finished(engine, run)
        return
    workflow = finished(engine, run)
    assert workflow.stages[0].outputs["name"] == name
    assert same(workflow.stages[0].outputs["data"], data or {})


@cases(80)
@given(st.data())
def test_starting(engine: Stabilize, data: st.DataObject) -> None:
    """Every field that a program fills in."""
    NEXT.update(kind="returns", value=1)
    words, things = TEXT | st.just("a"), ANYTHING | st.just({})
    fields = {
        "application": words, "name": words, "pipeline_config_id": words, "context": things, "ref": words, "own": things,
        "type": words, "user": words, "parameters": things, "dedup_key": words, "config": things, "limit": things,
    }  # fmt: skip
    chosen = {
        key: data.draw(fields[key])
        for key in data.draw(st.sets(st.sampled_from(sorted(fields)), min_size=1, max_size=2))
    }
    before = engine.store.count_messages()
    newest = [run.id for run in engine.find(limit=1)]
    try:
        config = chosen.get("config")
        if "limit" in chosen:
            config = {"limitConcurrent": True, "maxConcurrentExecutions": chosen["limit"]}
        stage = StageExecution.single(chosen.get("ref", "a"), "act", chosen.get("own", {}))
        stage.type = chosen.get("type", "act")
        workflow = Workflow.create(
            chosen.get("application", "a"),
            chosen.get("name", "n"),
            [stage],
            pipeline_config_id=chosen.get("pipeline_config_id"),
            context=chosen.get("context"),
            config=config,
            trigger=Trigger(user=chosen.get("user", "kim"), parameters=chosen.get("parameters", {})),
        )
        run = engine.start(workflow, dedup_key=chosen.get("dedup_key"))
    except StabilizeError as error:
        assert str(error)
        assert engine.store.count_messages() == before
        assert [run.id for run in engine.find(limit=1)] == newest
        return
    stored = finished(engine, run)
    assert stored.name == chosen.get("name", "n")
    assert same(stored.context, chosen.get("context") or {})
    assert same(stored.trigger.parameters, chosen.get("parameters", {}))
    if stored.status.name == "SUCCEEDED":
        own = plain(chosen.get("own") or {})
        assert same({key: value for key, value in stored.stages[0].own_context.items() if key in own}, own)


@cases(60)
@given(
    TEXT | ANYTHING,
    TEXT | ANYTHING,
    st.sampled_from(["cancel", "cancel_stage", "skip_stage", "restart_stage", "pause", "approve"]),
)
@example("\0", "\0", "cancel")
def test_controls(engine: Stabilize, user: Any, reason: Any, control: str) -> None:
    NEXT.update(kind="waits", value=None)
    run = engine.start(two())
    engine.processor.drain(timeout=60)
    before = engine.store.count_messages()
    try:
        if control in ("cancel",):
            run.cancel(user=user, reason=reason)
        elif control == "pause":
            run.pause(user=user)
        elif control == "approve":
            run.approve("a", user=user)
        elif control == "restart_stage":
            run.restart_stage(reason, user=user)
        else:
            getattr(run, control)("a", user=user, reason=reason)
    except StabilizeError as error:
        assert str(error)
        assert engine.store.count_messages() == before
    engine.processor.drain(timeout=60)
    if not run.status.is_complete:
        run.cancel()
    finished(engine, run)


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize("ask", ["get", "find", "signal"])
def test_asking_for_what_is_not_there(engine: Stabilize, nasty: str, ask: str) -> None:
    if ask == "find":
        assert engine.find(name=nasty, application=nasty, before=nasty) == []
        return
    with pytest.raises(StabilizeError):
        engine.get(nasty) if ask == "get" else WorkflowRun(engine, nasty).signal(nasty, "go")
