"""Secrets are hidden from people, by key and by value.

By key: what stands under ``password`` never reaches a page, a log or an error (:func:`redact`).  By value: what a stage
knows under such keys is also hidden in the texts its code produces when it fails (:class:`Redactor`).  Data that tasks
pass to each other is never changed.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from stabilize_celery.errors import TRUNCATED

HIDDEN = "***"
#: Values under these keys are hidden unless ``stabilize_redact_keys`` names others.
DEFAULT_KEYS: tuple[str, ...] = (
    "password", "passwords", "passwd", "passphrase", "pwd", "secret", "secrets", "token", "api_key", "access_key",
    "private_key", "authorization", "credential", "credentials", "cookie",
)  # fmt: skip

#: A shorter value under a secret key is part of too many words to be looked for in texts.
_SHORTEST = 4
#: Lines of a secret of several lines are masked one by one from this length on: shorter ones are everywhere.
_SHORTEST_LINE = 4
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
_IN_URL = re.compile(r"""(?P<before>://[^\s/?#:@"'<>]*+):(?P<password>[^\s"'<>]{0,500})@""")
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
    keys = tuple(keys)
    return _copied(
        value,
        keys,
        lambda leaf: redact_text(leaf, keys) if isinstance(leaf, str) else leaf,
        under_secret=lambda _: HIDDEN,
    )


def redact_text(text: str, keys: Iterable[str] = DEFAULT_KEYS) -> str:
    """Text with ``***`` for the passwords of URLs, bearer tokens, and values that follow one of the keys.

    Seen are ``key=value``, ``key: value``, ``"key": "value"`` and ``--key value``.
    """
    text = _IN_URL.sub(rf"\g<before>:{HIDDEN}@", text)
    text = _BEARER.sub(rf"\g<scheme> {HIDDEN}", text)
    return _without_named(text, tuple(keys))


def secrets_in(value: Any, keys: Iterable[str] = DEFAULT_KEYS) -> Iterator[Any]:
    """The values that :func:`redact` hides because of their keys or their place in a URL, to find them elsewhere."""
    yield from _secrets(value, tuple(keys), 0)


def _secrets(value: Any, keys: tuple[str, ...], depth: int) -> Iterator[Any]:
    if isinstance(value, str):
        for found in _IN_URL.finditer(value):
            yield from (found["password"], unquote(found["password"]))
    elif isinstance(value, Mapping | list | tuple) and depth <= _MAX_DEPTH:
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from [item] if _hides(key, item, keys) else _secrets(item, keys, depth + 1)


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
        self._pattern = re.compile("|".join(map(re.escape, self._forms))) if forms else None

    def text(self, text: str, *, truncated: bool = False) -> str:
        """The text without secrets; of ``truncated`` text also without the beginning of one at its end."""
        if self._pattern is None:
            return text
        if text.endswith(TRUNCATED):
            return self.text(text.removesuffix(TRUNCATED), truncated=True) + TRUNCATED
        masked = self._pattern.sub(HIDDEN, text)
        return self._cut_partial(masked) if truncated else masked

    def data(self, data: bytes, *, truncated: bool = False) -> bytes:
        """The same for bytes."""
        return self.text(_decoded(data), truncated=truncated).encode("utf-8", "surrogateescape")

    def value(self, value: Any) -> Any:
        """The same for every string in a JSON value, keys included."""
        if self._pattern is None:
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
            return HIDDEN
        return value

    def _cut_partial(self, text: str) -> str:
        """``text`` was cut somewhere: what may be the beginning of a secret goes too."""
        for size in range(min(len(text), max(map(len, self._forms)) - 1), 0, -1):
            tail = text[-size:]
            if any(form.startswith(tail) for form in self._forms):
                return text[:-size] + HIDDEN
        return text


class Redactor:
    """Hides the secrets of some data in what is said about it, by key and by value.

    Args:
        seen: the data; what it holds under secret keys, and passwords in its URLs, are found in texts too.
        keys: usually ``settings.redact_keys``.
        named: further values that are secret, however short.
    """

    def __init__(
        self, seen: Iterable[Any] = (), keys: Iterable[str] = DEFAULT_KEYS, named: Iterable[Any] = ()
    ) -> None:
        self._keys = tuple(keys)
        found = (leaf for each in seen for secret in secrets_in(each, self._keys) for leaf in _leaves(secret))
        self._masker = Masker([*named, *(leaf for leaf in found if len(leaf) >= _SHORTEST)])

    def text(self, text: str, *, truncated: bool = False) -> str:
        """The text without secrets; of ``truncated`` text also without the beginning of one at its end."""
        return redact_text(self._masker.text(text, truncated=truncated), self._keys)

    def data(self, data: bytes, *, truncated: bool = False) -> bytes:
        """The same for what a program printed."""
        return self.text(_decoded(data), truncated=truncated).encode("utf-8", "surrogateescape")

    def value(self, value: Any) -> Any:
        """A copy of a JSON value without secrets, by key and by value."""
        return redact(self._masker.value(value), self._keys)

    def kept(self, value: Any) -> Any:
        """The same by value alone, and nothing of what is kept under secret keys: a task may need that again."""
        return _copied(value, self._keys, self._masker.value, under_secret=lambda item: item)


def masker_of(stage: Any, *more: Any) -> Masker:
    """What hides the stage's secrets; ``more`` are values that are secret whether named or not."""
    return Masker([*more, *_named_secrets(stage)])


def redactor_of(
    stage: Any,
    keys: Iterable[str] = DEFAULT_KEYS,
    *more: Mapping[str, Any],
    named: Iterable[Any] = (),
) -> Redactor:
    """What hides everything secret that a stage knows in texts about its failures.

    Args:
        stage: a StageExecution, or ``None``: what it sees, and the context and trigger of its workflow, are looked through.
        keys: ``settings.redact_keys``.
        more: further data to be looked through.
        named: values that are secret whether named or not.
    """
    if stage is None:
        return Redactor(more, keys, named)
    workflow = stage._execution
    if workflow is not None:
        trigger = workflow.trigger
        more = (*more, workflow.context, trigger.parameters, trigger.payload)
    # The option "secrets" holds names, which are no secrets.
    seen = (
        {key: value for key, value in each.items() if key != "secrets"} for each in (stage.context, *more)
    )
    return Redactor(seen, keys, [*named, *_named_secrets(stage)])


def _named_secrets(stage: Any) -> Iterable[Any]:
    own = stage.own_context
    names = own.get("secrets")
    for name in names if isinstance(names, (list, tuple)) else ():
        yield from (own.get(name), stage.context.get(name))
        for holder in ("env", "environment", "headers"):
            if isinstance(own.get(holder), Mapping):
                yield own[holder].get(name)


def _copied(
    value: Any,
    keys: tuple[str, ...],
    leaf: Callable[[Any], Any],
    under_secret: Callable[[Any], Any],
    depth: int = 0,
) -> Any:
    """A copy of a JSON value: ``under_secret`` of what stands under one of the keys, ``leaf`` of everything else."""
    if depth > _MAX_DEPTH:
        return HIDDEN
    if isinstance(value, Mapping):
        return {
            key: under_secret(item)
            if _hides(key, item, keys)
            else _copied(item, keys, leaf, under_secret, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_copied(item, keys, leaf, under_secret, depth + 1) for item in value]
    return leaf(value)


def _hides(key: Any, item: Any, keys: tuple[str, ...]) -> bool:
    return item is not None and not isinstance(item, bool) and isinstance(key, str) and _is_secret(key, keys)


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


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


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
        _decoded(raw),
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
