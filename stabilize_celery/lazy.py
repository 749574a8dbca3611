"""Names of a package that are imported when they are asked for: Celery imports us for each of its commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A ``__getattr__`` for a package.

    Args:
        package: its name.
        homes: from a name to the module that has it, without ``stabilize_celery.``.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"stabilize_celery.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return find
