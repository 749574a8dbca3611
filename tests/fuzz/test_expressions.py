"""Conditions from strangers: a value, or an error that says what is wrong."""

# ruff: noqa: PT017, E501
from __future__ import annotations

import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabilize_celery.errors import ExpressionError
from stabilize_celery.expressions import parse
from tests.fuzz.hostile import JSON, TEXT, cases

PARTS = st.sampled_from(
    [
        "x", "y", "x.a", "x['a']", "x[0]", "(", ")", "[", "]", ",", " and ", " or ", " not ", "not ", " in ", "==", "<", ">=",
        "-", "+", "*", "**", ":=", ":", ".", " if ", " else ", "lambda", "()", "{", "}", "1", "1e999", "0x", "1_0", "'", '"',
        "\\", "f'{x}'", "b'x'", "__class__", "x.__class__", "import os", "await x", "yield", "#", ";", "\n", "1" * 5000,
        "9" * 400, "(" * 300, "[" * 100, "-" * 200, "not " * 200, "x." * 150 + "a", "null", "true", "None", "...", "@", "!",
    ]
)  # fmt: skip
TEXTS = st.lists(PARTS | TEXT, max_size=8).map("".join) | TEXT
NAMES = st.fixed_dictionaries({}, optional=dict.fromkeys(["x", "y"], JSON))


@cases(3500)
@pytest.mark.slow
@given(TEXTS, NAMES)
def test_any_text_is_a_condition_or_refused_with_a_reason(text: str, names: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            parse(text).evaluate(names)
        except ExpressionError as error:
            str(error).encode()
            assert len(str(error)) < 2000


@pytest.mark.parametrize("not_text", [None, 1, b"x", ["x"], {"x": 1}, object()])
def test_what_is_no_text_is_no_condition(not_text: Any) -> None:
    with pytest.raises(ExpressionError, match="a condition is text"):
        parse(not_text)
