"""Making a history that breaks an invariant shorter, one part at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def smallest(
    parts: Sequence[str], still_breaks: Callable[[frozenset[str]], bool], most: int = 400
) -> set[str]:
    """Which parts can be left out, so that what is left still breaks.

    Args:
        parts: their names, the ones to be tried first first; ``a.b`` is part of ``a``.
        still_breaks: whether a history without some parts breaks in the same way.
        most: at most that many histories are tried.

    Returns:
        The names of the parts that can be left out together.
    """
    dropped: set[str] = set()
    left = most
    again = True
    while again and left > 0:
        again = False
        for part in parts:
            gone = part in dropped or any(part.startswith(f"{other}.") for other in dropped)
            if gone or left <= 0:
                continue
            left -= 1
            if still_breaks(frozenset(dropped | {part})):
                dropped.add(part)
                again = True
    return dropped
