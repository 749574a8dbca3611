"""Whether a stage runs at all: the option ``stageEnabled`` of its own context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stabilize_celery.errors import InvalidWorkflowError
from stabilize_celery.expressions import Expression, parse


def enabling_condition(own_context: Mapping[str, Any]) -> Expression | bool:
    """What ``stageEnabled`` says: a fixed answer, or a condition on what the stage sees (behaviour, 3.5).

    Nothing, ``null`` and ``{}`` (which Orca's editor writes) mean that the stage is enabled.

    Raises:
        ExpressionError: the condition cannot be parsed.
        InvalidWorkflowError: it is neither true or false nor
            ``{"type": "expression", "expression": "..."}``.
    """
    option = own_context.get("stageEnabled")
    if option is None or option == {}:
        return True
    if isinstance(option, bool):
        return option
    if isinstance(option, Mapping) and option.get("type") == "expression" and "expression" in option:
        return parse(option["expression"])
    raise InvalidWorkflowError(
        'stageEnabled must be true, false or {"type": "expression", "expression": "..."}, not '
        f"{repr(option)[:200]}"
    )
