"""A YAML or JSON file as plain data that knows at which line and column each value stands.

Scalars are what PyYAML makes of them, except that dates and base-60 numbers stay text: nobody who writes
``12:30`` means 750.  The limits keep a hostile or broken file from taking the process down with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from stabilize_celery.errors import WorkflowFileError
from stabilize_celery.files.places import (
    Place,
    compose,
    compose_json,
    file_error,
    first_duplicate,
    locate,
    place_of,
)

MAX_FILE_BYTES = 5 * 1024 * 1024
#: Values in a file; what an alias stands for counts every time, so that aliases of aliases cannot explode.
MAX_VALUES = 500_000

#: Python writes no number of more than 4,300 digits.
_MAX_BITS = 14_000

Loc = Sequence[str | int]


@dataclass(frozen=True)
class Document:
    """The data of a file; where it stands is looked up only when something is wrong with it."""

    path: Path
    data: Any
    find_root: Callable[[], yaml.Node | None]

    def error(self, problem: str, loc: Loc = (), *, at_key: bool = False) -> WorkflowFileError:
        """An error about the value at ``loc``, or about its key."""
        root = self.find_root()
        place = None if root is None else locate(root, loc, at_key=at_key)
        return file_error(self.path, problem, place)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        WorkflowFileError: there is no such file, it is no file, too large, or not text.
    """
    try:
        if not path.is_file():
            raise file_error(path, "it is not a file" if path.exists() else "there is no such file")
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise file_error(path, f"it is larger than {MAX_FILE_BYTES:,} bytes")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        raise file_error(path, f"it is not text in UTF-8 (byte {failure.start})") from None
    except (OSError, ValueError) as failure:
        raise file_error(path, f"it cannot be read: {failure}") from failure


def read_yaml(path: Path) -> Document:
    """Raises :class:`WorkflowFileError`: the text is not YAML, or not data that JSON could hold."""
    root = compose(path, read_text(path))
    try:
        return Document(path, _Builder(path).build(root), lambda: root)
    except RecursionError:
        raise file_error(path, "it is nested too deeply, counted with what aliases repeat") from None


def read_json(path: Path) -> Document:
    """Raises :class:`WorkflowFileError`: the text is not JSON, or a key occurs twice in one object."""
    text = read_text(path)

    def refuse_constant(name: str) -> Any:
        raise file_error(path, f"{name} is not JSON; write null")

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            key = next(key for key in keys if keys.count(key) > 1)
            place = first_duplicate(compose_json(text), key)
            raise file_error(path, f"the key {key[:80]!r} occurs twice", place)
        return found

    try:
        data = json.loads(text, object_pairs_hook=refuse_duplicates, parse_constant=refuse_constant)
    except json.JSONDecodeError as failure:
        raise file_error(path, failure.msg, Place(failure.lineno, failure.colno)) from None
    except RecursionError:
        raise file_error(path, "it is nested too deeply") from None
    except ValueError as failure:
        raise file_error(path, str(failure)) from None
    return Document(path, data, cache(partial(compose_json, text)))


class _Builder:
    """Makes data of YAML nodes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values = 0
        self._open: set[int] = set()
        self._scalars = SafeConstructor()

    def build(self, node: yaml.Node) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise self._error(node, f"more than {MAX_VALUES:,} values, counted with what aliases repeat")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            raise self._error(node, "the value contains itself")
        self._open.add(id(node))
        built: Any
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, "seq")
            built = [self.build(child) for child in node.value]
        else:
            self._check_tag(node, "map")
            built = self._mapping(node)
        self._open.discard(id(node))
        return built

    def _mapping(self, node: yaml.Node) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] | None = None
        for key_node, value_node in node.value:
            if key_node.tag.endswith(":merge"):
                if merged is not None:
                    raise self._error(key_node, "the key '<<' occurs twice; give it a list")
                merged = self._merged(value_node)
                continue
            key = self.build(key_node)
            if not isinstance(key, str):
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "..."
                raise self._error(key_node, f"keys are text; write {shown[:80]!r} in quotes")
            if key in own:
                raise self._error(key_node, f"the key {key[:80]!r} occurs twice")
            own[key] = self.build(value_node)
        return {**(merged or {}), **own}

    def _merged(self, node: yaml.Node) -> dict[str, Any]:
        """What ``<<`` brings along: of several mappings the first that has a key wins (YAML merge type)."""
        merged: dict[str, Any] = {}
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(source, yaml.MappingNode):
                raise self._error(source, "'<<' takes a mapping, or a list of mappings")
            merged = {**self.build(source), **merged}
        return merged

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind in ("str", "timestamp", "value") or (kind in ("int", "float") and ":" in node.value):
            return node.value
        if kind not in ("null", "bool", "int", "float"):
            raise self._error(node, f"the tag {node.tag[:80]!r} is not supported")
        try:
            value = getattr(self._scalars, f"construct_yaml_{kind}")(node)
        except (ValueError, LookupError, OverflowError) as failure:
            raise self._error(node, f"not a value of type {kind}: {failure}") from None
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise self._error(node, "the number has too many digits; write it in quotes")
        if isinstance(value, float) and not math.isfinite(value):
            raise self._error(node, f"{node.value:.80} cannot be stored as JSON; write null")
        return value

    def _check_tag(self, node: yaml.Node, kind: str) -> None:
        if node.tag != f"tag:yaml.org,2002:{kind}":
            raise self._error(node, f"the tag {node.tag[:80]!r} is not supported")

    def _error(self, node: yaml.Node, problem: str) -> WorkflowFileError:
        return file_error(self._path, problem, place_of(node))
