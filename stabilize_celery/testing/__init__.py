"""What users test their workflows with.

``plugin`` is loaded by every pytest run and gives the fixture ``stabilize`` (an engine in the test's process, see
:class:`StabilizeForTests`).  The names below are imported when they are asked for, because of the plugin.
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
    from stabilize_celery.testing.lost_worker import LostWorker
    from stabilize_celery.testing.stubs import Stub, StubCall

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

_HOMES = {
    "LostWorker": "lost_worker",
    "StabilizeForTests": "kit",
    "Stub": "stubs",
    "StubCall": "stubs",
    "assert_failed": "assertions",
    "assert_order": "assertions",
    "assert_stage": "assertions",
    "assert_status": "assertions",
    "assert_succeeded": "assertions",
    "draw": "assertions",
}


def __dir__() -> list[str]:
    return list(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
