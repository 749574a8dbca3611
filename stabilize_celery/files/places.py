"""Where the values of a YAML or JSON text stand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stabilize_celery.errors import WorkflowFileError

#: Levels of lists and mappings inside each other in a file.
MAX_DEPTH = 150

#: The one written in C reads the same language twenty times as fast; not every installation has it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Place:
    """Line and column, both counted from 1."""

    line: int
    column: int


def file_error(path: Path, problem: str, place: Place | None = None) -> WorkflowFileError:
    """``file:line:column: problem``, the form that editors jump to."""
    where = str(path) if place is None else f"{path}:{place.line}:{place.column}"
    return WorkflowFileError(f"{where}: {problem}")


def place_of(node: Any) -> Place:
    """Where a node or an event begins."""
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


def compose(path: Path, text: str) -> yaml.Node:
    """The nodes of a YAML text; an alias is the node it stands for.

    Raises:
        WorkflowFileError: it is not YAML, empty, or nested too deeply.
    """
    try:
        _check_depth(text, path)
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as failure:
        mark = failure.problem_mark or failure.context_mark
        problem = " ".join(part for part in (failure.context, failure.problem) if part)
        place = Place(mark.line + 1, mark.column + 1) if mark else None
        raise file_error(path, f"not YAML: {problem}", place) from None
    except (yaml.YAMLError, ValueError, RecursionError) as failure:
        raise file_error(path, f"not YAML: {failure}") from None
    if node is None:
        raise file_error(path, "the file is empty")
    return node


def compose_json(text: str) -> yaml.Node | None:
    """The nodes of a text that is known to be JSON; ``None`` in the rare case that YAML cannot read it.

    Tabs and surrogates, which YAML reads otherwise, are replaced by something as long.
    """
    alike = re.sub(r"\\u[0-9a-fA-F]{4}", r"\\u0020", text.replace("\t", " "))
    try:
        return compose(Path(), alike)
    except WorkflowFileError:
        return None


def locate(root: yaml.Node, loc: Sequence[str | int], *, at_key: bool = False) -> Place:
    """Where the value at ``loc`` stands, or its key; if it is not there, what it would be in."""
    node, place = root, place_of(root)
    for step in loc:
        child = _child(node, step)
        if child is None:
            return place
        key, node = child
        place = place_of(key if at_key and key is not None else node)
    return place


def first_duplicate(root: yaml.Node | None, key: str) -> Place | None:
    """Where ``key`` stands for the second time in one mapping."""
    waiting = [root] if root is not None else []
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(reversed(node.value))
        elif isinstance(node, yaml.MappingNode):
            same = [key_node for key_node, _ in node.value if key_node.value == key]
            if len(same) > 1:
                return place_of(same[1])
            waiting.extend(value for _, value in reversed(node.value))
    return None


def _check_depth(text: str, path: Path) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            depth += 1
            if depth > MAX_DEPTH:
                raise file_error(path, f"nested deeper than {MAX_DEPTH} levels", place_of(event))
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            depth -= 1


def _child(node: yaml.Node, step: str | int) -> tuple[yaml.Node | None, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return None, node.value[step]
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == str(step):
                return key, value
    return None
