"""Conditions in workflow definitions, such as ``build.coverage >= 80 and branch in ["main", "next"]``.

The language is a small part of Python's, read with Python's own parser and checked against a list of what is
allowed (behaviour contract, "Expressions"): nothing can be called, no attribute of a Python object can be
reached, and the size is limited, so that a condition from a file is data and not code.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from stabilize_celery.errors import ExpressionError

MAX_LENGTH = 4096
MAX_DEPTH = 64

ALLOWED = (
    "allowed are literals, names, a.b, a[k], comparisons, in, not in, and, or, not, -x, x if c else y,"
    " lists and tuples; true, false and null may be written as in JSON"
)

#: Words that stand for values, whatever names the workflow gives.
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, container: item in container,
    ast.NotIn: lambda item, container: item not in container,
}
_REFUSED: dict[type[ast.AST], str] = {
    ast.Call: "nothing can be called",
    ast.BinOp: "there is no arithmetic",
    ast.Slice: "there are no slices",
    ast.JoinedStr: "there are no f-strings",
    ast.Lambda: "there are no functions",
    ast.Dict: "there are no mappings, compare single keys",
    ast.Set: "there are no sets, write a list",
    ast.NamedExpr: "nothing can be assigned, compare with ==",
}


class ExpressionEvaluationError(ExpressionError):
    """A condition that cannot be evaluated with the values it got, such as null > 5."""


@dataclass(frozen=True)
class Expression:
    """A condition that was checked; made by :func:`parse`."""

    text: str
    _tree: ast.expr = field(repr=False, compare=False)

    def evaluate(self, names: Mapping[str, Any]) -> Any:
        """Its value.

        A missing name, key or index is ``None``, and so is everything below it.  ``a.b`` is ``a["b"]`` of a
        mapping and nothing else.  ``and`` and ``or`` give one of their operands, as Python's do.

        Args:
            names: what the names stand for: JSON values.

        Raises:
            ExpressionEvaluationError: an operation that the values do not allow.
        """
        try:
            return _evaluate(self._tree, names)
        except (TypeError, ValueError, OverflowError, RecursionError, MemoryError) as failure:
            problem = str(failure) or type(failure).__name__
            raise ExpressionEvaluationError(f"condition {_shown(self.text)}: {problem}") from failure


def parse(text: str) -> Expression:
    """Check a condition.

    Args:
        text: at most 4,096 characters; several lines only inside brackets.

    Raises:
        ExpressionError: it is none; the message shows the column and says what is allowed.
    """
    if not isinstance(text, str):
        raise ExpressionError(f"a condition is text, not of type {type(text).__name__}")
    return _parse(text)


@lru_cache(maxsize=1024)
def _parse(text: str) -> Expression:
    source = text.strip().replace("\r\n", "\n").replace("\r", "\n")
    if not source:
        raise ExpressionError(f"the condition is empty; {ALLOWED}")
    if len(source) > MAX_LENGTH:
        raise ExpressionError(f"the condition has {len(source):,} characters, the limit is {MAX_LENGTH:,}")
    try:
        tree = ast.parse(source, mode="eval").body
    except SyntaxError as failure:
        line, column, problem = failure.lineno or 1, (failure.offset or 1) - 1, failure.msg
        if failure.offset == 0 or column >= len(source):
            line, column, problem = source.count("\n") + 1, len(source), "something is missing at the end"
        raise _error(source, (line, column), problem) from None
    except (ValueError, RecursionError, MemoryError, OverflowError) as failure:
        too_deep = isinstance(failure, (RecursionError, MemoryError))
        raise _error(source, (1, 0), "it is nested too deeply" if too_deep else str(failure)) from None
    _check(tree, source)
    return Expression(text, tree)


def _check(tree: ast.expr, source: str) -> None:
    """Refuse what is not on the list, whatever the depth: without recursion."""
    waiting: list[tuple[ast.expr, int]] = [(tree, 1)]
    while waiting:
        node, depth = waiting.pop()
        problem = _problem(node)
        if depth > MAX_DEPTH:
            problem = f"it is nested deeper than {MAX_DEPTH} levels"
        if problem is not None:
            line = source.split("\n")[node.lineno - 1]
            column = len(line.encode()[: node.col_offset].decode(errors="ignore"))
            raise _error(source, (node.lineno, column), problem)
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        waiting.extend((child, depth + 1) for child in reversed(children))


def _problem(node: ast.expr) -> str | None:
    if type(node) not in _EVALUATORS:
        return _REFUSED.get(type(node), f"{type(node).__name__} is not allowed")
    if isinstance(node, ast.Constant) and not isinstance(node.value, (str, int, float, type(None))):
        return f"a literal of type {type(node.value).__name__} is not allowed"
    if isinstance(node, ast.Compare) and not all(type(op) in _COMPARISONS for op in node.ops):
        return "there is no 'is', write == or !="
    if isinstance(node, ast.UnaryOp) and not isinstance(node.op, (ast.Not, ast.USub)):
        return "of the operators with one operand there are 'not' and '-' only"
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    if name.startswith("__"):
        return f"the name {name} starts with two underscores"
    return None


def _evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    return _EVALUATORS[type(node)](node, names)


def _name(node: ast.Name, names: Mapping[str, Any]) -> Any:
    return _WORDS[node.id] if node.id in _WORDS else names.get(node.id)


def _attribute(node: ast.Attribute, names: Mapping[str, Any]) -> Any:
    owner = _evaluate(node.value, names)
    if owner is None:
        return None
    if not isinstance(owner, Mapping):
        raise TypeError(
            f"{ast.unparse(node.value)} has the type {type(owner).__name__}, not keys like {node.attr}"
        )
    return owner.get(node.attr)


def _item(node: ast.Subscript, names: Mapping[str, Any]) -> Any:
    owner, key = _evaluate(node.value, names), _evaluate(node.slice, names)
    if owner is None:
        return None
    if not isinstance(owner, (Mapping, list, tuple, str)):
        raise TypeError(
            f"{ast.unparse(node.value)} has the type {type(owner).__name__}, not items like {key!r}"
        )
    try:
        return owner[key]
    except LookupError:
        return None


def _compare(node: ast.Compare, names: Mapping[str, Any]) -> Any:
    left, result = _evaluate(node.left, names), None
    for op, operand in zip(node.ops, node.comparators, strict=True):
        right = _evaluate(operand, names)
        result = _COMPARISONS[type(op)](left, right)
        if not result:
            return result
        left = right
    return result


def _logic(node: ast.BoolOp, names: Mapping[str, Any]) -> Any:
    stops_at = isinstance(node.op, ast.Or)
    value: Any = None
    for operand in node.values:
        value = _evaluate(operand, names)
        if bool(value) is stops_at:
            return value
    return value


def _unary(node: ast.UnaryOp, names: Mapping[str, Any]) -> Any:
    value = _evaluate(node.operand, names)
    return not value if isinstance(node.op, ast.Not) else -value


def _choice(node: ast.IfExp, names: Mapping[str, Any]) -> Any:
    return _evaluate(node.body if _evaluate(node.test, names) else node.orelse, names)


#: The nodes that are allowed, and how each gets its value.
_EVALUATORS: dict[type[ast.AST], Callable[[Any, Mapping[str, Any]], Any]] = {
    ast.Constant: lambda node, names: node.value,
    ast.Name: _name,
    ast.Attribute: _attribute,
    ast.Subscript: _item,
    ast.Compare: _compare,
    ast.BoolOp: _logic,
    ast.UnaryOp: _unary,
    ast.IfExp: _choice,
    ast.List: lambda node, names: [_evaluate(item, names) for item in node.elts],
    ast.Tuple: lambda node, names: tuple(_evaluate(item, names) for item in node.elts),
}


def _error(source: str, place: tuple[int, int], problem: str) -> ExpressionError:
    """``place`` is a line from 1 and a column from 0, in characters."""
    number, column = place
    lines = source.split("\n")
    line = lines[min(number, len(lines)) - 1]
    column = min(column, len(line))
    start = max(0, column - 50)
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line[start : start + 80])
    where = f"column {column + 1}" if len(lines) == 1 else f"line {number}, column {column + 1}"
    return ExpressionError(
        f"not a condition, {where}: {problem}\n    {shown}\n    {' ' * (column - start)}^\n{ALLOWED}"
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
