"""Conditions in workflow definitions, such as ``build.coverage >= 80 and branch in ["main", "next"]``.

The language is a small part of Python's, read with Python's own parser and checked against a list of what is
allowed (behaviour contract, "Expressions"): nothing can be called, no attribute of a Python object can be
reached, and the size is limited, so that a condition from a file is data and not code.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
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
#: What a condition may be made of.
_NODES: tuple[type[ast.AST], ...] = (
    ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.BoolOp, ast.And, ast.Or,
    ast.UnaryOp, ast.Not, ast.USub, ast.IfExp, ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.List, ast.Tuple,
    ast.Load,
)  # fmt: skip


class ExpressionEvaluationError(ExpressionError):
    """A condition that cannot be evaluated with the values it got, such as null > 5."""


@dataclass(frozen=True)
class Expression:
    """A condition that was checked; made by :func:`parse`."""

    text: str

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
            # What the code can name are these two alone: the names of the condition are keys by now.
            scope = {"__builtins__": {}, "name": names.get, "item": _item}
            return eval(_compiled(self.text), scope)
        except (TypeError, ValueError, OverflowError, RecursionError, MemoryError) as failure:
            shown = repr(self.text if len(self.text) <= 80 else self.text[:77] + "...")
            problem = str(failure) or type(failure).__name__
            raise ExpressionEvaluationError(f"condition {shown}: {problem}") from failure


def parse(text: str) -> Expression:
    """Check a condition.

    Args:
        text: at most 4,096 characters; several lines only inside brackets.

    Raises:
        ExpressionError: it is none; the message shows the place and says what is allowed.
    """
    if not isinstance(text, str):
        raise ExpressionError(f"a condition is text, not of type {type(text).__name__}")
    _compiled(text)
    return Expression(text)


@lru_cache(maxsize=1024)
def _compiled(text: str) -> CodeType:
    source = text.strip()
    if not source:
        raise ExpressionError(f"the condition is empty; {ALLOWED}")
    if len(source) > MAX_LENGTH:
        raise ExpressionError(f"the condition has {len(source):,} characters, the limit is {MAX_LENGTH:,}")
    try:
        tree = ast.parse(source, mode="eval").body
    except SyntaxError as failure:
        # Python gives 0, or a place behind it, for what is missing at the end.
        where = f"line {failure.lineno}, column {failure.offset}" if failure.offset else "at its end"
        raise ExpressionError(f"not a condition, {where}: {failure.msg}; {ALLOWED}") from None
    except (ValueError, RecursionError, MemoryError, OverflowError) as failure:
        deep = isinstance(failure, RecursionError | MemoryError)
        raise ExpressionError(f"not a condition: {'it is nested too deeply' if deep else failure}") from None
    _check(tree, source)
    reading = ast.Expression(_Reading().visit(tree))
    return compile(ast.fix_missing_locations(reading), "<condition>", "eval")


def _check(tree: ast.expr, source: str) -> None:
    # Without recursion, so that no depth is too much.
    waiting: list[tuple[ast.AST, ast.expr, int]] = [(tree, tree, 1)]
    while waiting:
        node, at, depth = waiting.pop()
        problem = _problem(node, source)
        if depth > MAX_DEPTH and isinstance(node, ast.expr):
            problem = f"it is nested deeper than {MAX_DEPTH} levels"
        at = node if isinstance(node, ast.expr) else at
        if problem:
            where = f"line {at.lineno}, column {at.col_offset + 1}"
            raise ExpressionError(f"not a condition, {where}: {problem}; {ALLOWED}")
        waiting += [(child, at, depth + 1) for child in reversed([*ast.iter_child_nodes(node)])]


def _problem(node: ast.AST, source: str) -> str:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    if name.startswith("__"):
        return f"the name {name} starts with two underscores"
    if isinstance(node, ast.Constant) and not isinstance(node.value, str | int | float | None):
        return f"a literal of type {type(node.value).__name__} is not allowed"
    if isinstance(node, _NODES):
        return ""
    return f"{type(node).__name__} {(ast.get_source_segment(source, node) or '')[:60]!r} is not allowed"


class _Reading(ast.NodeTransformer):
    """Makes every access a call of ``name`` or ``item``; the rest means what it means in Python."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in _WORDS:
            return ast.Constant(_WORDS[node.id])
        return _call("name", ast.Constant(node.id))

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return self._item(node.value, ast.Constant(node.attr), "keys")

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        return self._item(node.value, self.visit(node.slice), "items")

    def _item(self, owner: ast.expr, key: ast.expr, what: str) -> ast.expr:
        owner_text = ast.unparse(owner)
        return _call("item", self.visit(owner), key, ast.Constant(what), ast.Constant(owner_text))


def _call(function: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(function, ast.Load()), [*arguments], [])


def _item(owner: Any, key: Any, what: str, owner_text: str) -> Any:
    """``owner[key]``, or ``None`` if it is missing; keys are those of mappings, items those of lists and texts too."""
    if owner is None:
        return None
    if not isinstance(owner, Mapping if what == "keys" else (Mapping, list, tuple, str)):
        raise TypeError(f"{owner_text} has the type {type(owner).__name__}, not {what} like {key}")
    try:
        return owner[key]
    except LookupError:
        return None
