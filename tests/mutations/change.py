"""What a dangerous change is, and where in the package its text stands."""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path


class StaleChangeError(AssertionError):
    """The text of a change is not in the package, or in several places: the list has to follow the code."""


@dataclass(frozen=True)
class Change:
    """One change of one place.

    Attributes:
        name: what is done, in a few words; unique.
        wrong: what users would see go wrong.
        old: the text that is replaced.  It is unique in the package, or within ``inside``; several lines are whole
            lines, given without their common indentation.
        new: what takes its place.
        killers: the tests that fail then, each a file and a function of pytest's, with or without parameters.
        inside: the function or class in which ``old`` stands, such as ``Relay.send``, where it stands elsewhere too.
        served: the killers need servers; otherwise only those of their parameters run that need none.
    """

    name: str
    wrong: str
    old: str
    new: str
    killers: tuple[str, ...]
    inside: str = ""
    served: bool = False


@dataclass(frozen=True)
class Place:
    """Where a change is made: the text of ``file`` from ``start`` to ``end`` becomes ``text``."""

    file: Path
    start: int
    end: int
    text: str

    def changed(self) -> str:
        """The whole text of the file with the change."""
        source = self.file.read_text()
        return source[: self.start] + self.text + source[self.end :]


def locate(change: Change, package: Path) -> Place:
    """Find the one place of a change, whichever module it is in by now.

    Raises:
        StaleChangeError: there is none, or there are several.
    """
    pattern = _pattern(change.old)
    places = []
    for file in sorted(package.rglob("*.py")):
        source = file.read_text()
        if not all(line.strip() in source for line in change.old.split("\n")):
            continue
        for start, end in _spans(source, change.inside):
            for found in pattern.finditer(source, start, end):
                places.append(Place(file, found.start(), found.end(), _new_text(change, found)))
    places = list(dict.fromkeys(places))
    if len(places) == 1:
        return places[0]
    where = f" within {change.inside}" if change.inside else ""
    several = ", ".join(str(place.file.relative_to(package)) for place in places)
    what = f"stands in several places ({several})" if places else "is not in the package any more"
    raise StaleChangeError(
        f"the change {change.name!r}: its text {what}{where}; say in tests/mutations how it reads now:\n{change.old}"
    )


def _pattern(old: str) -> re.Pattern[str]:
    lines = textwrap.dedent(old).strip("\n").split("\n")
    if len(lines) == 1:
        return re.compile(re.escape(lines[0]))
    escaped = [("(?P=indent)" if line else "") + re.escape(line) for line in lines[1:]]
    return re.compile("\n".join([rf"^(?P<indent>[ ]*){re.escape(lines[0])}", *escaped]) + "$", re.MULTILINE)


def _new_text(change: Change, found: re.Match[str]) -> str:
    indent = found.groupdict().get("indent")
    new = textwrap.dedent(change.new).strip("\n")
    return new if indent is None else textwrap.indent(new, indent)


def _spans(source: str, inside: str) -> list[tuple[int, int]]:
    """The parts of a module in which a change may be: all of it, or the functions and classes of a name."""
    if not inside:
        return [(0, len(source))]
    names = inside.split(".")
    if not all(name in source for name in names):
        return []
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    nodes: list[ast.AST] = [ast.parse(source)]
    for name in names:
        within = [child for node in nodes for child in ast.walk(node) if child is not node]
        nodes = [child for child in within if getattr(child, "name", None) == name and hasattr(child, "body")]
    return [(starts[node.lineno - 1], starts[node.end_lineno]) for node in nodes]  # type: ignore[attr-defined]
