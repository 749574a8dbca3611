"""Conditions mean what Python means by them, and no text whatsoever does harm."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from stabilize_celery.errors import ExpressionError
from stabilize_celery.expressions import ExpressionEvaluationError, parse

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "a", "ab"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner),
    max_leaves=6,
)
NAMES = st.fixed_dictionaries(dict.fromkeys("xyz", JSON))
LEAVES = st.sampled_from(["x", "y", "z"]) | JSON.map(repr).filter(
    lambda text: "{" not in text and "inf" not in text
)


def larger(inner):
    def joined(pattern, *parts):
        return st.tuples(*parts).map(lambda values: pattern.format(*values))

    comparison = st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in", "not in"])
    return st.one_of(
        joined("({} {} {})", inner, comparison, inner),
        joined("({} {} {} {} {})", inner, comparison, inner, comparison, inner),
        joined("({} {} {})", inner, st.sampled_from(["and", "or"]), inner),
        joined("({} and {} or {})", inner, inner, inner),
        joined("(not {})", inner),
        joined("(-{})", inner),
        joined("({} if {} else {})", inner, inner, inner),
        joined("[{}, {}]", inner, inner),
        joined("({},)", inner),
        joined("({})[{}]", inner, inner),
    )


CONDITIONS = st.recursive(LEAVES, larger, max_leaves=12)


@settings(max_examples=500, deadline=None)
@given(CONDITIONS, NAMES)
def test_a_condition_evaluates_as_python_does_where_that_is_defined(text: str, names: dict[str, Any]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            expected = eval(text, {"__builtins__": {}}, names)
    except LookupError:
        return  # missing is None here
    except TypeError as failure:
        if "'NoneType' object is not subscriptable" not in str(failure):
            # What Python refuses is refused here, or was made possible by something missing.
            try:
                parse(text).evaluate(names)
            except ExpressionEvaluationError:
                return
            assert "[" in text
        return
    assert repr(parse(text).evaluate(names)) == repr(expected)


@settings(max_examples=500, deadline=None)
@given(st.text() | st.text("xy01.[](),<>=!-+*'\"\\ andortifelse_:{}fλ\n\t#", max_size=60), NAMES)
def test_random_text_raises_nothing_but_its_own_error(text: str, names: dict[str, Any]) -> None:
    with contextlib.suppress(ExpressionError):
        parse(text).evaluate(names)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "keys"]), JSON), st.sampled_from(["a", "b", "keys", "items"])
)
def test_a_dot_reads_a_key_and_nothing_else(mapping: dict[str, Any], key: str) -> None:
    assert parse(f"m.{key}").evaluate({"m": mapping}) is mapping.get(key)
    assert parse(f"m['{key}']").evaluate({"m": mapping}) is mapping.get(key)
