"""Values that a task gets from the stages before it, written where the workflow is defined.

``"{{ charge.charge_id }}"`` in an argument is output ``charge_id`` of stage ``charge``; ``"{{ order_id }}"`` is what the
stage sees under that key; ``{{ stages["charge-card"].charge_id }}`` is for names that are none in Python.  A string
that is one template keeps the value's type; in ``"order {{ order_id }}"`` the value is written into the text.  A
function stands for what it returns when the stage starts.  What was put in is never looked into again.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any, Protocol

from stabilize_celery.errors import ExpressionError, InvalidWorkflowError, PermanentError
from stabilize_celery.expressions import parse
from stabilize_celery.json_values import celery_form
from stabilize_celery.suggestions import did_you_mean

#: The name under which every stage can be reached by any ref_id.
STAGES = "stages"
CALL, LITERAL = "$call", "$literal"
#: The stage's own keys that say what to call, so that nothing refers to itself.
_OF_THE_CALL = ("task", "args", "kwargs")
_TEMPLATE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
Outputs = Mapping[str, Mapping[str, Any]]


class UnresolvedReferenceError(PermanentError):
    """A value that an argument refers to does not exist."""


def literal(value: Any) -> dict[str, Any]:
    """``value`` as it is, whatever braces or functions are in it."""
    return {LITERAL: value}


def stored(value: Any, where: str) -> Any:
    """An argument in the form it has in a stage's context: functions become import paths, templates are checked.

    Raises:
        InvalidWorkflowError: a function that cannot be imported, or a template that cannot be read.
    """
    if isinstance(value, str):
        for expression in _TEMPLATE.findall(value):
            try:
                parse(expression)
            except ExpressionError as error:
                raise InvalidWorkflowError(f"{where}: {value!r}: {error}") from None
        return value
    if isinstance(value, Mapping):
        if value.keys() == {LITERAL}:
            return dict(value)
        return {key: stored(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [stored(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if callable(value):
        return {CALL: _import_path(value, where)}
    return celery_form(value)


def _import_path(function: Callable[..., Any], where: str) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    path = f"{module}:{name}"
    try:
        found = _import(path) if module and name else None
    except (ImportError, AttributeError):
        found = None
    if found is not function:
        raise InvalidWorkflowError(
            f"{where}: {function!r} cannot be imported by a worker; use a function at the top level of a module"
        )
    return path


def _import(path: str) -> Any:
    module, _, name = path.partition(":")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


class Stage(Protocol):
    """What a stage shows to the arguments of its call."""

    context: dict[str, Any]

    @property
    def called(self) -> str: ...
    @property
    def own_context(self) -> dict[str, Any]: ...
    def outputs_of(self, ref_ids: Iterable[str]) -> dict[str, dict[str, Any]]: ...


def referenced(value: Any) -> set[str]:
    """Every name that the templates in an argument use; with ``stages["x"]`` that is ``x``."""
    return {name for expression in _expressions(value) for name in (*_bases(expression), *_bare(expression))}


def check_references(stages: Iterable[Any]) -> None:
    """Refuse stages that refer to a stage which need not have ended when they start.

    Raises:
        InvalidWorkflowError: the message names both and says what to add.
    """
    known = {stage.ref_id: stage for stage in stages}
    for stage in known.values():
        used = {
            name
            for part in ("args", "kwargs")
            for expression in _expressions(stage.own_context.get(part))
            for name in _bases(expression)
        }
        used &= known.keys() - stage.own_context.keys()
        if not used or not any(task.implementing_class == "celery" for task in stage.tasks):
            continue
        before, waiting = set[str](), [stage.ref_id]
        while waiting:
            nearer = known[waiting.pop()].requisite_stage_ref_ids - before
            before |= nearer
            waiting += nearer
        for name in sorted(used - before):
            raise InvalidWorkflowError(
                f"stage {stage.ref_id} refers to stage {name}, which is not before it; add {name!r} to what it requires"
            )


def resolve(value: Any, stage: Stage, outputs_of: Callable[[Iterable[str]], Outputs], where: str) -> Any:
    """An argument with everything put in.

    Args:
        value: as :func:`stored` gave it.
        stage: what functions are called with; ``stage.context`` is what it sees.
        outputs_of: the outputs of those of some stages that have ended, by ref_id.
        where: what it is, for errors.

    Raises:
        UnresolvedReferenceError: a name stands for nothing.
    """
    return _Resolver(stage, outputs_of(sorted(referenced(value)))).put_in(value, where)


class _Resolver:
    def __init__(self, stage: Stage, outputs: Outputs) -> None:
        self._stage = stage
        self._outputs = outputs

    def put_in(self, value: Any, where: str) -> Any:
        if isinstance(value, str):
            return self._text(value, where)
        if isinstance(value, list | tuple):
            return [self.put_in(item, f"{where}[{number}]") for number, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if value.keys() == {LITERAL}:
            return value[LITERAL]
        if value.keys() == {CALL}:
            return self._called(str(value[CALL]), where)
        return {key: self.put_in(item, f"{where}[{key!r}]") for key, item in value.items()}

    def _called(self, path: str, where: str) -> Any:
        try:
            function = _import(path)
        except (ImportError, AttributeError) as error:
            raise UnresolvedReferenceError(f"{where}: {path} cannot be imported: {error}") from error
        return function(self._stage)

    def _text(self, text: str, where: str) -> Any:
        whole = _TEMPLATE.fullmatch(text.strip())
        if whole is not None and "}}" not in whole[1]:
            return self._value(whole[1], where)
        return _TEMPLATE.sub(lambda found: _as_text(self._value(found[1], where)), text)

    def _value(self, expression: str, where: str) -> Any:
        bases = _bases(expression)
        names: dict[str, Any] = {name: _Strict(keys, f"stage {name}") for name, keys in self._outputs.items()}
        seen = {
            key: value
            for key, value in self._stage.context.items()
            if key not in _OF_THE_CALL and not (key in bases and key in names)
        }
        known = _Strict({STAGES: _Strict(names, "the workflow"), **names, **seen}, "what the stage sees")
        try:
            return _plain(parse(expression).evaluate(known))
        except _Missing as missing:
            raise UnresolvedReferenceError(f"{where}: {missing} in {{{{{expression}}}}}") from None
        except ExpressionError as error:
            raise UnresolvedReferenceError(f"{where}: {error}") from error


class _Missing(Exception):
    """A name that stands for nothing; not a LookupError, which an expression takes for null."""


class _Strict(Mapping[str, Any]):
    """A mapping in which nothing is missing silently."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values, self._where = values, where

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key]

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            hint = did_you_mean(str(key), self._values)
            raise _Missing(f"there is no {key!r} in {self._where} (or it has not ended){hint}")
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, _Strict) else value


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _expressions(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from _TEMPLATE.findall(value)
    elif isinstance(value, dict) and value.keys() != {LITERAL}:
        for item in value.values():
            yield from _expressions(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _expressions(item)


@lru_cache(maxsize=1024)
def _bases(expression: str) -> frozenset[str]:
    """Names whose keys are asked for: ``a`` of ``a.b`` and ``a["b"]``, and ``x`` of ``stages["x"]``."""
    parse(expression)
    found = set()
    for node in ast.walk(ast.parse(expression.strip(), mode="eval")):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.value, ast.Name):
            found.add(node.value.id)
            if node.value.id == STAGES:
                key = node.attr if isinstance(node, ast.Attribute) else getattr(node.slice, "value", None)
                found.add(str(key))
    return frozenset(found - {STAGES})


@lru_cache(maxsize=1024)
def _bare(expression: str) -> frozenset[str]:
    parse(expression)
    tree = ast.parse(expression.strip(), mode="eval")
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name)) - {STAGES}
