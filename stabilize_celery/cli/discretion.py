"""What is printed, without the secrets in it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from typing import Any

from stabilize_celery.cli.terminal import harmless
from stabilize_celery.redaction import DEFAULT_KEYS, redact

#: A command works on one engine, whose settings these are.
_keys: tuple[str, ...] = DEFAULT_KEYS


def hide(keys: Iterable[str]) -> None:
    """From now on, hide what stands under these keys."""
    global _keys  # noqa: PLW0603
    _keys = tuple(keys)


def shown(value: Any) -> Any:
    """A copy of a value as it may be printed."""
    return redact(value, _keys)


def printable(value: Any) -> str:
    """A value as it may be written to a terminal."""
    return harmless(str(shown(value)))


def print_anything() -> None:
    """Let the output take what its encoding cannot hold: escaped, as in JSON, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
