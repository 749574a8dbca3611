"""Secrets never appear in what is stored or logged: every occurrence becomes ``***``."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "***"
#: Lines of a secret of several lines are masked one by one from this length on: shorter ones would be
#: everywhere.
_SHORTEST_LINE = 4


class Masker:
    """Replaces secrets in text, bytes and nested values.

    A secret is also found in the forms in which programs usually repeat it: with its ends stripped, escaped
    as JSON or for a shell or a URL, as base64, line by line.  A dict or list
    stands for every string and number in it.
    """

    def __init__(self, secrets: Iterable[Any]) -> None:
        forms = {form for secret in secrets for leaf in _leaves(secret) for form in _forms(leaf)}
        # The longest first, so that a secret that contains another one is replaced as a whole.
        self._forms = sorted(forms, key=lambda form: (-len(form), form))
        self._text = _any_of(self._forms)
        self._bytes = re.compile(self._text.pattern.encode("utf-8", "surrogatepass")) if self._text else None

    def text(self, text: str, *, truncated: bool = False) -> str:
        """The text without secrets; of ``truncated`` text also without the beginning of one at its end."""
        if self._text is None:
            return text
        masked = self._text.sub(MASK, text)
        return self._cut_partial(masked) if truncated else masked

    def data(self, data: bytes, *, truncated: bool = False) -> bytes:
        """The same for bytes."""
        if self._bytes is None:
            return data
        masked = self._bytes.sub(MASK.encode(), data)
        if not truncated:
            return masked
        text = masked.decode("utf-8", "surrogateescape")
        return self._cut_partial(text).encode("utf-8", "surrogateescape")

    def value(self, value: Any) -> Any:
        """The same for every string in a JSON value, keys included."""
        if self._text is None:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bytes):
            return self.data(value)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        if isinstance(value, (int, float)) and not isinstance(value, bool) and str(value) in self._forms:
            return MASK
        return value

    def _cut_partial(self, text: str) -> str:
        """``text`` was cut somewhere: what may be the beginning of a secret goes too."""
        for size in range(min(len(text), max(map(len, self._forms)) - 1), 0, -1):
            tail = text[-size:]
            if any(form.startswith(tail) for form in self._forms):
                return text[:-size] + MASK
        return text


def _any_of(forms: list[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, forms))) if forms else None


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, bytes):
        yield value.decode("utf-8", "replace")
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _forms(secret: str) -> Iterator[str]:
    raw = secret.encode("utf-8", "surrogatepass")
    candidates = [
        secret,
        secret.strip(),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        secret.replace("'", "'\"'\"'"),
        secret.replace("'", "'\\''"),
        quote(raw, safe=""),
        quote(raw),
        quote_plus(raw),
        base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode().rstrip("="),
    ]
    lines = secret.split("\n")
    if len(lines) > 1:
        candidates += [line.strip() for line in lines if len(line.strip()) >= _SHORTEST_LINE]
    # A secret of nothing but blanks would mask every gap between words.
    yield from (form for form in candidates if form.strip())
