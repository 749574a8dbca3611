"""What can be stored, and what the refusal of everything else says."""

from __future__ import annotations

import itertools
import json
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stabilize_celery.errors import InvalidOutputError, InvalidWorkflowError, StageError
from stabilize_celery.json_values import MAX_DEPTH, dumps_json, ensure_json


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


@dataclass
class Point:
    x: int = 1


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1.5,
        "",
        "a\0b",
        "\ud800",
        (1, (2,)),
        OrderedDict(a=1),
        Level.LOW,
        10**100,
        nested(MAX_DEPTH),
    ],
    ids=itertools.count(),
)
def test_json_is_accepted(value) -> None:
    ensure_json(value, "it")
    assert json.loads(dumps_json(value, "it")) == (json.loads(json.dumps(value)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, r"set cannot.*sorted\(value\)"),
        (b"x", r"bytes cannot.*base64"),
        (datetime.now(UTC), r"datetime cannot.*isoformat"),
        (timedelta(1), r"timedelta cannot.*total_seconds"),
        (Decimal(1), r"Decimal cannot.*float\(value\)"),
        (UUID(int=1), r"UUID cannot.*str\(value\)"),
        (Colour.RED, r"Colour cannot.*value\.value"),
        (Point(), r"Point cannot.*asdict"),
        (iter([]), r"iterator cannot.*list\(value\)"),
        (MappingProxyType({}), r"mappingproxy cannot.*dict\(value\)"),
        (object(), r"object cannot be stored as JSON$"),
        (float("inf"), "inf cannot"),
        (10**5000, "too many digits"),
        ({1: 2}, "the key 1 is of type int; keys are text, give '1'"),
        ({None: 2}, "the key None is of type NoneType"),
        ({(1,): 2}, "the key .* is of type tuple"),
        (nested(MAX_DEPTH + 1), "nested deeper than 200 levels"),
        ({10**5000: 2}, "the key <...> is of type int"),
        (nested(100_000), "nested deeper than 200 levels"),
    ],
    ids=itertools.count(),
)
def test_everything_else_is_refused_with_its_place_and_a_way_out(value, message) -> None:
    with pytest.raises(InvalidWorkflowError, match=r"^it\.list\[1\].*" + message):
        ensure_json({"fine": [1], "list": [0, value]}, "it")


def test_the_place_is_written_as_one_would_read_it() -> None:
    with pytest.raises(StageError, match=r"^out\['two words'\]\.x\[0\]\[1\]: "):
        ensure_json({"two words": {"x": [(1, {2})]}}, "out", error=StageError)


def test_the_first_problem_is_the_one_named() -> None:
    with pytest.raises(InvalidWorkflowError, match=r"^it\.a\.b: "):
        ensure_json({"a": {"b": {1}}, "c": {2}}, "it")


def test_what_contains_itself_is_refused() -> None:
    value: dict[str, Any] = {"a": []}
    value["a"].append(value)
    with pytest.raises(InvalidWorkflowError, match=r"^it\.a\[0\]: it contains itself"):
        ensure_json(value, "it")


def test_one_value_in_two_places_is_fine() -> None:
    shared = [1]
    assert dumps_json({"a": shared, "b": shared}, "it") == '{"a":[1],"b":[1]}'


def test_the_size_limit_counts_bytes_and_names_the_largest_keys() -> None:
    value = {"small": 1, "large": "x" * 100}
    text = dumps_json(value, "outputs of a", max_bytes=122)
    assert len(text) == 122
    with pytest.raises(
        InvalidOutputError, match=r"^outputs of a: 122 bytes .* limit is 121; largest: large \(102\)"
    ):
        dumps_json(value, "outputs of a", max_bytes=121)
    assert len(dumps_json("é", "it")) == 8, "non-ASCII text counts as it is stored: escaped"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@settings(deadline=None)
@given(JSON)
def test_json_comes_back_as_it_was(value) -> None:
    assert json.loads(dumps_json(value, "it")) == value


@settings(deadline=None)
@given(JSON, st.sampled_from([{1}, b"", float("nan"), {1: 1}, object()]), st.data())
def test_one_wrong_value_anywhere_is_found(value, wrong, data) -> None:
    holder: Any = [value]
    place, key = holder, 0
    while isinstance(place[key], (list, dict)) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(
            st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place))))
        )
    place[key] = wrong
    with pytest.raises(InvalidWorkflowError, match=r"^it"):
        ensure_json(holder, "it")
