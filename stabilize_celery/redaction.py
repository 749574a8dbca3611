"""Hiding secrets from people: what stands under keys such as ``password`` never reaches a page, a log or an error.

What is stored for tasks is never changed; whoever shows something shows ``redact(value, settings.redact_keys)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

HIDDEN = "***"
#: Values under these keys are hidden unless ``stabilize_redact_keys`` names others.
DEFAULT_KEYS: tuple[str, ...] = (
    "password",
    "passwords",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "secrets",
    "token",
    "api_key",
    "access_key",
    "private_key",
    "authorization",
    "credential",
    "credentials",
    "cookie",
)

#: Deeper than anything that is stored.
_MAX_DEPTH = 400
#: A word, and ``:`` or ``=`` after it, or a blank if it is an option of a command; quotes may be escaped.
_NAME = re.compile(
    r"""(?<![\w.\-])(?P<name>[\w.\-]++)(?:\\*+["'])?+(?:\s*+[:=]\s*+|(?P<blank>\s++))""", re.ASCII
)
_QUOTE = re.compile(r"""[bBrRuU]{0,2}(?P<quote>\\*["'])""")
_BARE = re.compile(
    r"""(?:(?:bearer|basic|digest|token|negotiate|apikey)\s++)?[^\s,;&"'<>()\[\]{}]++""", re.IGNORECASE
)
#: ``scheme://user:password@host``; the last @ counts, because passwords are written unescaped.
_IN_URL = re.compile(r"""(?P<before>://[^\s/?#:@"'<>]*+):[^\s"'<>]{0,500}@""")
_BEARER = re.compile(r"\b(?P<scheme>bearer|basic)\s+[\w+/=.~\-]{8,}", re.IGNORECASE)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_OPENING = {"{": "}", "[": "]", "(": ")"}


def redact(value: Any, keys: Iterable[str] = DEFAULT_KEYS) -> Any:
    """A copy of a JSON value in which ``***`` stands for what is under the given keys, at any depth.

    Keys are compared without case and separators, as words or as an ending: ``api_key`` also hides ``apiKey``,
    ``X-API-Key`` and ``stripe_api_key_id``, but ``token`` does not hide ``max_tokens``.  ``null``, ``true`` and
    ``false`` say nothing and stay.  Texts are treated as by :func:`redact_text`.

    Args:
        value: what is to be shown: a context, outputs, the details of an error.
        keys: usually ``settings.redact_keys``.
    """
    return _redacted(value, tuple(keys), 0)


def redact_text(text: str, keys: Iterable[str] = DEFAULT_KEYS) -> str:
    """Text with ``***`` for the passwords of URLs, bearer tokens, and values that follow one of the keys.

    Seen are ``key=value``, ``key: value``, ``"key": "value"`` and ``--key value``.
    """
    text = _IN_URL.sub(rf"\g<before>:{HIDDEN}@", text)
    text = _BEARER.sub(rf"\g<scheme> {HIDDEN}", text)
    return _without_named(text, tuple(keys))


def secrets_in(value: Any, keys: Iterable[str] = DEFAULT_KEYS) -> Iterator[Any]:
    """The values that :func:`redact` would hide because of their keys, for masking them elsewhere."""
    yield from _secrets(value, tuple(keys), 0)


def is_secret(key: str, keys: Iterable[str] = DEFAULT_KEYS) -> bool:
    """Whether what stands under ``key`` is hidden."""
    return _is_secret(key, tuple(keys))


def _redacted(value: Any, keys: tuple[str, ...], depth: int) -> Any:
    if isinstance(value, str):
        return redact_text(value, keys)
    if not isinstance(value, Mapping | list | tuple):
        return value
    if depth > _MAX_DEPTH:
        return HIDDEN
    if not isinstance(value, Mapping):
        return [_redacted(item, keys, depth + 1) for item in value]
    return {
        key: HIDDEN if _hides(key, item, keys) else _redacted(item, keys, depth + 1)
        for key, item in value.items()
    }


def _hides(key: Any, item: Any, keys: tuple[str, ...]) -> bool:
    return item is not None and not isinstance(item, bool) and isinstance(key, str) and _is_secret(key, keys)


def _secrets(value: Any, keys: tuple[str, ...], depth: int) -> Iterator[Any]:
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if _hides(key, item, keys):
                yield item
            else:
                yield from _secrets(item, keys, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets(item, keys, depth + 1)


@lru_cache(maxsize=4096)
def _is_secret(key: str, keys: tuple[str, ...]) -> bool:
    patterns = _patterns(keys)
    words = [word.lower() for word in _WORDS.findall(key[:200])]
    if "".join(words).endswith(patterns):
        return True
    return any(
        "".join(words[start:end]) in patterns
        for start in range(len(words))
        for end in range(start + 1, min(start + 5, len(words) + 1))
    )


@lru_cache(maxsize=64)
def _patterns(keys: tuple[str, ...]) -> tuple[str, ...]:
    joined = ("".join(_WORDS.findall(key)).lower() for key in keys)
    return tuple(pattern for pattern in joined if pattern)


def _without_named(text: str, keys: tuple[str, ...]) -> str:
    kept: list[str] = []
    done = 0
    place = 0
    while (found := _NAME.search(text, place)) is not None:
        place = found.end()
        name = found["name"]
        if found["blank"] and not name.startswith("--"):
            continue
        if not _is_secret(name[-100:], keys):
            continue
        end = _end_of_value(text, place)
        if end > place:
            kept += [text[done:place], HIDDEN]
            done = place = end
    return "".join([*kept, text[done:]])


def _end_of_value(text: str, start: int) -> int:
    """Where the value that begins at ``start`` ends; ``start`` itself if there is none."""
    quoted = _QUOTE.match(text, start)
    if quoted is not None:
        return _end_of_quoted(text, quoted.end(), quoted["quote"])
    if text[start : start + 1] in _OPENING:
        return _end_of_brackets(text, start)
    bare = _BARE.match(text, start)
    return start if bare is None else bare.end()


def _end_of_quoted(text: str, start: int, quote: str) -> int:
    place = start
    while (end := text.find(quote, place)) >= 0:
        escapes = 0
        while end - escapes > start and text[end - escapes - 1] == "\\":
            escapes += 1
        if escapes % 2 == 0:
            return end + len(quote)
        place = end + 1
    # What is cut off within a secret is all secret.
    return len(text)


def _end_of_brackets(text: str, start: int) -> int:
    waiting: list[str] = []
    place = start
    while place < len(text):
        character = text[place]
        if character in "\"'":
            place = _end_of_quoted(text, place + 1, character)
            continue
        if character in _OPENING:
            waiting.append(_OPENING[character])
        elif waiting and character == waiting[-1]:
            waiting.pop()
            if not waiting:
                return place + 1
        place += 1
    return len(text)
