"""What the page reads from the database, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from stabilize_celery import (
    FakeClock,
    Stabilize,
    StageDefinitionBuilder,
    StageExecution,
    SyntheticStageOwner,
    Workflow,
)
from stabilize_celery.context.view import Origin, inherited_values, origins
from stabilize_celery.errors import StageNotFoundError, StoreError, WorkflowNotFoundError
from stabilize_celery.persistence import reports

S = StageExecution.single
NOBODY = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def give(given: dict[str, Any] | None = None) -> dict[str, Any]:
    return given or {}


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Iterator[Stabilize]:
    url = "sqlite://" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    clock = FakeClock()
    with Stabilize.embedded(url, create_tables=request.param == "sqlite", clock=clock) as made:
        made.registry.register("give", give)
        yield made


def start(engine: Stabilize, *stages: StageExecution, name: str = "flow", **options: Any) -> Any:
    return engine.run(Workflow.create("app", name, list(stages), **options))


def test_counts_stop_at_the_limit(engine: Stabilize, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reports, "MOST_COUNTED", 2)
    for _ in range(4):
        start(engine, S("a", "noop"))
    found = reports.count_by_status(engine.store, reports.Filter())
    assert {status.name: n for status, n in found.items() if n} == {"SUCCEEDED": 3}


def test_a_search_takes_what_is_typed_for_what_it_is(engine: Stabilize):
    for name in ("plain", "100%", "a_b", "back\\slash", "Groß"):
        start(engine, S("a", "noop"), name=name)

    def found(search: str) -> list[str]:
        wanted = reports.Filter(search=search)
        return [workflow.name for workflow in reports.page_of_workflows(engine.store, wanted, None, 10)]

    assert found("%") == ["100%"]
    assert found("_") == ["a_b"]
    assert found("\\") == ["back\\slash"]
    assert found("PLAIN") == ["plain"]
    assert found("gro") == ["Groß"]
    assert found("'; DROP TABLE stabilize_workflows; --") == []


def test_only_what_has_changed_is_told_and_what_is_gone(engine: Stabilize):
    run = engine.start(
        Workflow.create("app", "flow", [S("ask", "approval"), S("end", "noop", requires={"ask"})])
    )
    engine.processor.drain()
    first = reports.graph_of(engine.store, run.id)
    assert reports.changes_since(engine.store, run.id, first.mark) is None
    assert isinstance(engine._clock, FakeClock)
    engine._clock.advance(3600)
    run.approve("ask", user="kim")
    engine.processor.drain()
    engine._clock.advance(3600)
    changed = reports.changes_since(engine.store, run.id, first.mark)
    assert changed is not None
    assert {each.ref_id: each.status.name for each in changed.stages} == {
        "ask": "SUCCEEDED",
        "end": "SUCCEEDED",
    }
    assert changed.workflow.status.name == "SUCCEEDED"
    run.restart_stage("end", user="kim")
    engine.processor.drain()
    again = reports.changes_since(engine.store, run.id, changed.mark)
    assert again is not None
    # What was of the same moment as the mark may be told twice.
    assert {each.ref_id: each.generation for each in again.stages}["end"] == 1
    assert again.edges == first.edges


def test_synthetic_stages_that_are_gone_are_not_named_any_more(engine: Stabilize):
    class WrapBuilder(StageDefinitionBuilder):
        def before_stages(self, stage, graph):
            child = StageExecution.create_synthetic("noop", "inside", stage, SyntheticStageOwner.STAGE_BEFORE)
            graph.add(child)

    engine.register_builder(WrapBuilder())
    run = start(engine, StageExecution(ref_id="w", type="wrap"))
    before = reports.graph_of(engine.store, run.id)
    assert len(before.synthetic_ids) == 1
    run.restart_stage("w")
    engine.processor.drain()
    after = reports.changes_since(engine.store, run.id, before.mark)
    assert after is not None
    assert len(after.synthetic_ids) == 1
    assert set(after.synthetic_ids).isdisjoint(before.synthetic_ids)
    assert set(after.synthetic_ids) <= {each.id for each in after.stages}


def test_what_a_stage_saw_is_told_even_where_it_gave_the_same_key(engine: Stabilize):
    run = start(
        engine,
        S("a", "give", {"given": {"n": 1, "m": 5}}),
        S("b", "give", {"given": {"n": 2}}, requires={"a"}),
        S("c", "noop", {"own": True}, requires={"b"}),
    )
    ids = {each.ref_id: each.id for each in run.workflow().stages}
    b = reports.detail_of_stage(engine.store, run.id, ids["b"])
    assert (b.sees["n"], b.origins["n"]) == (1, Origin("output", ids["a"]))
    c = reports.detail_of_stage(engine.store, run.id, ids["c"])
    assert {key: (c.sees[key], c.origins[key].stage_id) for key in ("n", "m", "own")} == {
        "n": (2, ids["b"]),
        "m": (5, ids["a"]),
        "own": (True, ids["c"]),
    }
    assert c.others[ids["a"]].ref_id == "a"


def test_values_of_a_reducer_come_from_the_join(engine: Stabilize):
    run = start(
        engine,
        S("a", "give", {"given": {"n": 1}}),
        S("b", "give", {"given": {"n": 2}}),
        S("join", "noop", requires={"a", "b"}, output_reducers={"n": "sum", "other": "sum"}),
    )
    join = run.workflow().stage_by_ref_id("join")
    seen = reports.detail_of_stage(engine.store, run.id, join.id)
    assert (seen.sees["n"], seen.origins["n"]) == (3, Origin("combined", join.id))
    assert "other" not in seen.sees


def test_a_reducer_that_fails_hides_nothing_else(engine: Stabilize):
    run = start(
        engine,
        S("a", "give", {"given": {"n": "x"}}),
        S("b", "give", {"given": {"n": 2}}),
        S("join", "noop", {"own": 1}, requires={"a", "b"}, output_reducers={"n": "sum"}),
    )
    found = reports.detail_of_stage(engine.store, run.id, run.workflow().stage_by_ref_id("join").id)
    assert "'sum'" in found.problem
    assert found.sees["own"] == 1


def test_what_is_not_there_is_named(engine: Stabilize):
    run = start(engine, S("a", "noop"))
    with pytest.raises(WorkflowNotFoundError, match=NOBODY):
        reports.graph_of(engine.store, NOBODY)
    with pytest.raises(WorkflowNotFoundError, match=NOBODY):
        reports.changes_since(engine.store, NOBODY, "0@")
    with pytest.raises(StageNotFoundError, match=f"workflow {run.id} has no stage of the id {NOBODY}"):
        reports.detail_of_stage(engine.store, run.id, NOBODY)
    other = start(engine, S("a", "noop")).workflow().stages[0].id
    with pytest.raises(StageNotFoundError):
        reports.ref_id_of(engine.store, run.id, other)


def test_a_statement_that_takes_too_long_is_given_up(postgres_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reports, "LONGEST_STATEMENT", reports.timedelta(milliseconds=50))
    with Stabilize.embedded(postgres_url, create_tables=False) as engine:
        told = pytest.raises(StoreError, match=r"took longer than 0\.05 s; ask for less")
        with told, reports.reading(engine.store) as connection:
            connection.execute(text("SELECT pg_sleep(60)"))
        with engine.store.database.autocommit() as connection:
            assert connection.execute(text("SHOW statement_timeout")).scalar() == "0"


names = st.sampled_from("abcdef")
values = st.dictionaries(names, st.integers(), max_size=4)


@given(own=values, context=values, produced=st.lists(values, min_size=1, max_size=4), data=st.data())
def test_the_origin_of_a_value_has_that_value(own, context, produced, data):
    """What is said to be set by a stage is what that stage has under the key."""
    outputs = {f"id{number}": each for number, each in enumerate(produced)}

    def sources() -> dict[str, list[Any]]:
        chosen: dict[str, list[Any]] = {}
        for producer, given_ in outputs.items():
            for key in given_:
                if data.draw(st.booleans()):
                    chosen[key] = [producer, 0]
        return chosen

    parent = StageExecution(id="parent", context=context, sources=sources())
    child = StageExecution(id="child", context=own, sources=sources())
    seen = {**inherited_values(child, [parent], outputs), **own}
    found = origins(child, [parent])
    assert set(found) == set(seen)
    holds = {"own": own, "parent": context}
    for key, origin in found.items():
        held = holds.get(origin.kind) or outputs.get(origin.stage_id, {})
        assert held[key] == seen[key]
