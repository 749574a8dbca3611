"""Errors of tasks without the secrets that their stage sees: they are kept in the history and shown to people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.redaction import redact, redact_text, secrets_in
from stabilize_celery.tasks.masking import Masker
from stabilize_celery.tasks.outcome import Outcome

#: A shorter secret is part of too many words to be looked for in texts.
_SHORTEST = 4
#: Gives a text or an error back without secrets.
Hide = Callable[[Any], Any]


def hider(stage: StageExecution | None, keys: Iterable[str]) -> Hide:
    """What hides the values that the stage sees under secret keys; they are looked for once, here."""
    known = tuple(keys)
    seen = {} if stage is None else stage.context
    masker = Masker(leaf for secret in secrets_in(seen, known) for leaf in _leaves(secret))

    def hide(said: Any) -> Any:
        if isinstance(said, str):
            return redact_text(masker.text(said), known)
        return redact(masker.value(said), known)

    return hide


def discreet(outcome: Outcome, hide: Hide) -> Outcome:
    """The outcome with an error that tells no secret, neither by its key nor by its value."""
    error, reason = hide(outcome.error), hide(outcome.reason)
    result = outcome.result
    if result is not None and outcome.error is not None and result.context.get("exception") is outcome.error:
        told = {"exception": error, "error": hide(str(result.context.get("error", "")))}
        result = replace(result, context={**result.context, **told})
    return replace(outcome, error=error, reason=reason, result=result)


def _leaves(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str | int | float) and len(str(value)) >= _SHORTEST:
        yield str(value)
