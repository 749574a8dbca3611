"""The word that was probably meant, for error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``, did you mean 'x'?`` when a known word is close to ``word``, otherwise nothing."""
    # The search compares with every known word; more than that many would take longer than it helps.
    candidates = [other for _, other in zip(range(2000), known, strict=False) if len(other) <= 100]
    close = get_close_matches(word[:100], candidates, n=1)
    return f", did you mean {close[0]!r}?" if close else ""
