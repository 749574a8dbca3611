"""What users test their workflows with.

The plugin is loaded by every pytest run of every user and gives the fixture ``stabilize`` (an engine in the test's
process, see :class:`StabilizeForTests`).  The names below are imported when they are used, so that a run that does not
use them does not import the engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stabilize_celery.testing.assertions import (
        assert_failed,
        assert_order,
        assert_stage,
        assert_status,
        assert_succeeded,
        draw,
    )
    from stabilize_celery.testing.kit import StabilizeForTests
    from stabilize_celery.testing.stubs import LostWorker, Stub, StubCall

__all__ = [
    "LostWorker",
    "StabilizeForTests",
    "Stub",
    "StubCall",
    "assert_failed",
    "assert_order",
    "assert_stage",
    "assert_status",
    "assert_succeeded",
    "draw",
]


def __dir__() -> list[str]:
    return list(__all__)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in ("assertions", "stubs", "kit"):
            if (value := vars(import_module(f"{__name__}.{module}")).get(name)) is not None:
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
