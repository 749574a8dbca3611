"""How a join combines values."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stabilize_celery import reducers
from stabilize_celery.errors import StageError, UnknownReducerError
from stabilize_celery.reducers import known_reducers, reduce_values, register_reducer


@pytest.fixture(autouse=True)
def _registrations(monkeypatch):
    monkeypatch.setattr(reducers, "_registered", {})


@pytest.mark.parametrize(
    ("name", "values", "result"),
    [
        ("collect", ["x", "y"], ["x", "y"]),
        ("append", [[1], 2], [[1], 2]),
        ("extend", [[1, 2], [2, 3]], [1, 2, 2, 3]),
        ("sum", [1, 2, 3], 6),
        ("sum", [1, 0.5, True], 2.5),
        ("max", [2, 9, 4], 9),
        ("min", ["b", "a"], "a"),
        ("merge", [{"a": 1, "b": {"x": 1}}, {"b": {"y": 2}}], {"a": 1, "b": {"y": 2}}),
        ("first", [3, None], 3),
        ("last", [3, None], None),
    ],
)
def test_what_the_built_in_reducers_give(name, values, result) -> None:
    assert reduce_values(name, values) == result


@pytest.mark.parametrize(
    ("name", "values", "types"),
    [
        ("sum", [1, "2"], "int, str"),
        ("sum", ["a", "b"], "str, str"),
        ("extend", [[1], "ab"], "list, str"),
        ("merge", [{}, [["a", 1]]], "dict, list"),
        ("max", [1, None], "int, NoneType"),
        ("min", [*"abcdefghij", 1, 2], r"str and 2 more"),
    ],
)
def test_values_that_cannot_be_combined(name, values, types) -> None:
    message = (
        rf"the reducer '{name}' cannot combine the values of key 'total' \(types: .*{types}\) caused by: "
    )
    with pytest.raises(StageError, match=message) as caught:
        reduce_values(name, values, key="total")
    assert caught.value.__cause__ is not None


def test_results_that_are_not_json() -> None:
    with pytest.raises(StageError, match=r"result of the reducer 'sum' of key 'k': inf"):
        reduce_values("sum", [1.7e308, 1.7e308], key="k")
    register_reducer("unique", set)
    with pytest.raises(StageError, match=r"result of the reducer 'unique': .*set cannot"):
        reduce_values("unique", [1, 1])


def test_no_values() -> None:
    with pytest.raises(StageError, match="the reducer 'first' got no values"):
        reduce_values("first", [])


def test_an_unknown_reducer() -> None:
    with pytest.raises(
        UnknownReducerError, match=r"key 'k': there is no reducer 'colect', did you mean 'collect'\?"
    ):
        reduce_values("colect", [1], key="k")


def test_a_registered_reducer_is_known_and_used() -> None:
    register_reducer("product", lambda values: values[0] * values[1])
    assert "product" in known_reducers()
    assert reduce_values("product", [6, 7]) == 42
    register_reducer("product", len)
    assert reduce_values("product", [6, 7]) == 2


def test_a_registered_reducer_cannot_change_what_it_was_given() -> None:
    values = [1, 2]
    register_reducer("greedy", lambda given: given.clear() or "done")
    assert reduce_values("greedy", values) == "done"
    assert values == [1, 2]


@pytest.mark.parametrize("name", ["", "sum", "append"])
def test_built_in_names_are_taken(name) -> None:
    with pytest.raises(ValueError, match="empty or built in"):
        register_reducer(name, len)
    assert reduce_values("sum", [1, 2]) == 3


@settings(deadline=None)
@given(st.lists(st.lists(st.integers()), min_size=1), st.sampled_from(known_reducers()))
def test_values_are_never_changed(values, name) -> None:
    before = repr(values)
    try:
        result = reduce_values(name, values)
    except StageError:
        result = None
    if name in ("collect", "append", "extend") and isinstance(result, list):
        result.append("changed")
    assert repr(values) == before


@settings(deadline=None)
@given(st.lists(st.lists(st.integers()), min_size=1))
def test_collect_keeps_and_extend_flattens(values) -> None:
    assert reduce_values("collect", values) == values
    assert reduce_values("extend", values) == [item for value in values for item in value]
    assert reduce_values("first", values) == values[0]
    assert reduce_values("last", values) == values[-1]
