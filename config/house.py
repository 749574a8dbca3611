"""The size of the package, which may only fall: ``python config/house.py`` compares it with ``config/house.json``.

``--write`` writes down what is smaller by now.  What is larger is refused, here and there: a change that needs more
room says so by raising the number by hand.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "stabilize_celery"
NUMBERS = ROOT / "config/house.json"
#: Parts that a deployment may do without.
BESIDE = ("contrib", "testing")
#: Words of a dialect that readers of English do not know from elsewhere; each is counted, and may only become rarer.
DIALECT = re.compile(
    r"\b(whoever|nobody|somebody|anew|comes of|is at it|told|begun|bell|wish|wishes|letters?)\b",
    re.IGNORECASE,
)
#: The standard term.
STANDARD = re.compile(r"\bdead[ _-]letters?\b|DeadLetter\w*", re.IGNORECASE)
#: Fewer is worse.
RISING = {"docstrings"}


def measured() -> dict[str, float]:
    """Lines and files as ``wc -l`` counts them; docstrings in percent of all lines."""
    sources = {path.relative_to(PACKAGE): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    lines = {path: text.count("\n") for path, text in sources.items()}
    docs = functions = 0
    for text in sources.values():
        for node in ast.walk(ast.parse(text)):
            docs += _doc_lines(node)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions = max(functions, (node.end_lineno or 0) - node.lineno + 1)
    found: dict[str, float] = {
        "lines": sum(lines.values()),
        "lines outside contrib and testing": sum(n for p, n in lines.items() if p.parts[0] not in BESIDE),
        "files": len(lines),
        "longest file": max(lines.values()),
        "longest function": functions,
        "docstrings": round(100 * docs / sum(lines.values()), 1),
        "dialect": sum(len(DIALECT.findall(STANDARD.sub("", text))) for text in _prose(sources.values())),
    }
    for folder in sorted({path.parts[0] for path in lines if len(path.parts) > 1}):
        found[f"files in {folder}"] = sum(path.parts[0] == folder for path in lines)
    return found


def _prose(sources: Iterable[str]) -> Iterator[str]:
    yield from sources
    yield (ROOT / "README.md").read_text()
    yield from (path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))


def _doc_lines(node: ast.AST) -> int:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return 0
    if ast.get_docstring(node, clean=False) is None:
        return 0
    first = node.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1


def main() -> int:
    """Print the numbers; returns 1 if one of them is worse than the one on record."""
    known = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    found = measured()
    worse = []
    for name, value in found.items():
        limit = known.get(name, value)
        better = value > limit if name in RISING else value < limit
        if value != limit and not better:
            worse.append(f"{name}: {value:g}, and it was {limit:g}")
        known[name] = value if better else limit
    if "--write" in sys.argv:
        # What a test counts stays as it is written down.
        gone = {name for name in known if name.startswith("files in ") and name not in found}
        kept = {name: value for name, value in known.items() if name not in gone}
        NUMBERS.write_text(json.dumps(kept, indent=2) + "\n")
    print("\n".join(f"{name:>34}: {value:g}" for name, value in found.items()))
    for line in worse:
        print(f"larger than before: {line}", file=sys.stderr)
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main())
