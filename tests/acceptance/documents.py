"""Code blocks out of documents, and running them."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_DIRECTIVE = re.compile(r"^\.\. code-block:: (\w+)\n\n((?:(?: {4}.*)?\n)+)", re.MULTILINE)
_MARKDOWN_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_RST_HEADING = re.compile(r"^(.+)\n(?:=+|-+|~+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block of a document."""

    #: The last heading before it.
    heading: str
    language: str
    text: str
    line: int


def blocks_of(path: Path) -> list[Block]:
    """Every code block of a Markdown or reStructuredText file, in order."""
    text = path.read_text(encoding="utf-8")
    found, headings = (_DIRECTIVE, _RST_HEADING) if path.suffix == ".rst" else (_FENCE, _MARKDOWN_HEADING)
    blocks = [(match.start(), match.end(), match) for match in found.finditer(text)]
    # A comment in Python or shell code looks like a Markdown heading.
    titles = [
        (match.start(), match.group(1))
        for match in headings.finditer(text)
        if not any(start <= match.start() < end for start, end, _ in blocks)
    ]
    result = []
    for start, _end, match in blocks:
        before = [title for position, title in titles if position < start]
        code = match.group(2)
        if path.suffix == ".rst":
            code = re.sub(r"^ {4}", "", code, flags=re.MULTILINE)
        heading = before[-1].replace("`", "") if before else ""
        result.append(Block(heading, match.group(1), code, text.count("\n", 0, match.start(2)) + 1))
    return result


def execute(text: str, namespace: dict[str, Any], name: str = "<block>") -> list[Any]:
    """Run Python code; returns the value of every expression that is a statement of its own.

    A comment ``# -> value`` at the end of an expression, or on the line below it, must be its value.
    """
    values: list[Any] = []
    lines = text.splitlines()
    told = {number: line.split("# -> ")[1] for number, line in enumerate(lines, 1) if "# -> " in line}
    for statement in ast.parse(text, name).body:
        if not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), name, "exec"), namespace)
            continue
        value = eval(compile(ast.Expression(statement.value), name, "eval"), namespace)
        values.append(value)
        number = statement.end_lineno or 0
        if number not in told and lines[number : number + 1] and lines[number].startswith("# -> "):
            number += 1
        expected = told.pop(number, None)
        assert expected is None or value == ast.literal_eval(expected), f"{name}: {value!r} is not {expected}"
    assert not told, f"{name}: no expression for {told}"
    return values
