"""Conditions, by example."""

from __future__ import annotations

import pickle
from collections import namedtuple

import pytest

from stabilize_celery.errors import ExpressionError, InvalidWorkflowError
from stabilize_celery.expressions import MAX_DEPTH, MAX_LENGTH, ExpressionEvaluationError, parse

NAMES = {
    "n": 5,
    "name": "kim",
    "items": [1, 2, {"k": "v"}],
    "build": {"n": 3, "ok": True, "class": "big", "nothing": None},
    "true": "not this",
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n > 3", True),
        ("1 < n <= 5 != 6", True),
        ("1 < n < 5", False),
        ("build.n > 5", False),
        ("build['class'] == \"big\"", True),
        ("items[2].k", "v"),
        ("items[-1]['k']", "v"),
        ("name[0]", "k"),
        ("2 in items and 'im' in name and 'ok' in build", True),
        ("7 not in items", True),
        ("not build.ok", False),
        ("-n == -5", True),
        ("'yes' if n else 'no'", "yes"),
        ("missing or name", "kim"),
        ("n and 0 and crash", 0),
        ("[n, name]", [5, "kim"]),
        ("(1, n)", (1, 5)),
        ("()", ()),
        ("true", True),
        ("False == false", True),
        ("missing == null and build.nothing == None", True),
        ("  n == 5\n", True),
        ("(n\n ==\n 5)", True),
        ("'ü' < 'ý'", True),
    ],
)
def test_values(text, value) -> None:
    result = parse(text).evaluate(NAMES)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "missing",
        "missing.a.b",
        "missing['a'][0]",
        "build.missing",
        "build.missing.deeper",
        "items[9]",
        "name[9]",
        "build[1]",
    ],
)
def test_what_is_missing_is_none(text) -> None:
    assert parse(text).evaluate(NAMES) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("missing > 3", "'>' not supported between instances of 'NoneType' and 'int'"),
        ("3 in n", "not iterable"),
        ("-name", "bad operand"),
        ("n.real", "n has the type int, not keys like real"),
        ("items.append", "items has the type list"),
        ("n[0]", "n has the type int, not items like 0"),
        ("items['k']", "indices must be integers"),
        ("build[[1]]", "unhashable"),
    ],
)
def test_operations_that_the_values_do_not_allow(text, message) -> None:
    with pytest.raises(ExpressionEvaluationError, match=message) as caught:
        parse(text).evaluate(NAMES)
    assert repr(text) in str(caught.value)


def test_python_attributes_are_out_of_reach() -> None:
    Pair = namedtuple("Pair", "left right")
    with pytest.raises(ExpressionEvaluationError):
        parse("pair.left").evaluate({"pair": Pair(1, 2)})
    assert parse("a.keys").evaluate({"a": {"x": 1}}) is None


def test_deep_values_are_an_error_and_no_crash() -> None:
    def deep() -> list:
        value: list = []
        for _ in range(100_000):
            value = [value]
        return value

    with pytest.raises(ExpressionEvaluationError, match="recursion"):
        parse("a == b").evaluate({"a": deep(), "b": deep()})


@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ("", None, "empty"),
        ("   ", None, "empty"),
        ("a >", None, "at its end: invalid syntax"),
        ("a + 1", 1, "BinOp 'a + 1' is not allowed"),
        ("x == f(1)", 6, "Call 'f(1)' is not allowed"),
        ("x == a.b()", 6, "Call 'a.b()' is not allowed"),
        ("a is None", 1, "Is '' is not allowed"),
        ("+a", 1, "UAdd"),
        ("~a", 1, "Invert"),
        ("a[1:2]", 3, "Slice"),
        ("f'{a}'", 1, "JoinedStr"),
        ("lambda: 1", 1, "Lambda"),
        ("(a := 1)", 2, "NamedExpr"),
        ("a = 1", 3, ""),
        ("a in {1, 2}", 6, "Set"),
        ("{'a': 1}", 1, "Dict"),
        ("[x for x in a]", 1, "ListComp"),
        ("[*a]", 2, "Starred"),
        ("await a", 1, "Await"),
        ("1j", 1, "type complex"),
        ("b'x'", 1, "type bytes"),
        ("...", 1, "type ellipsis"),
        ("'ü' == __import__", 9, "two underscores"),
        ("a.__class__", 1, "two underscores"),
        ("a\0b", None, ""),
        ("'\ud800'", None, ""),
        ("a; b", 2, ""),
        ("a\nb", None, ""),
    ],
    ids=range(28),
)
def test_what_is_no_condition_is_shown_with_its_column(text, column, problem) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    message = str(caught.value)
    assert not isinstance(caught.value, ExpressionEvaluationError)
    assert isinstance(caught.value, InvalidWorkflowError)
    assert problem in message
    if problem:
        assert "allowed are literals, names" in message
    if column is not None:
        assert f"column {column}:" in message


def test_the_line_is_named_when_there_are_several() -> None:
    with pytest.raises(ExpressionError, match=r"line 2, column 3: BinOp 'b \* 2' is not allowed"):
        parse("(a or\n  b * 2)")


@pytest.mark.parametrize("value", [None, 5, True, ["a"], {"a": 1}])
def test_a_condition_is_text(value) -> None:
    with pytest.raises(ExpressionError, match="a condition is text"):
        parse(value)


def test_size_and_depth_have_limits() -> None:
    assert parse(" or ".join(["a"] * 800)).evaluate({"a": 0}) == 0
    with pytest.raises(ExpressionError, match="4,097 characters, the limit is 4,096"):
        parse("'" + "x" * (MAX_LENGTH - 1) + "'")
    assert parse("not " * (MAX_DEPTH - 1) + "a").evaluate({}) is True
    with pytest.raises(ExpressionError, match="nested deeper than 64 levels"):
        parse("not " * MAX_DEPTH + "a")


@pytest.mark.parametrize(
    "text", ["(" * 4000, "[" * 150 + "]" * 150, "-" * 4000 + "1", "a" + ".b" * 2000, "not " * 1000 + "a"]
)
def test_deep_text_is_an_error_and_no_crash(text) -> None:
    with pytest.raises(ExpressionError):
        parse(text)


def test_huge_text_is_an_error_and_no_crash() -> None:
    with pytest.raises(ExpressionError, match="the limit is"):
        parse("a or " * 10_000_000)


def test_an_expression_is_a_value() -> None:
    expression = parse("n > 3")
    assert expression == parse("n > 3") != parse("n > 4")
    assert hash(expression) == hash(parse("n > 3"))
    assert pickle.loads(pickle.dumps(expression)).evaluate({"n": 4}) is True
    with pytest.raises(AttributeError):
        expression.text = "n > 4"  # type: ignore[misc]
