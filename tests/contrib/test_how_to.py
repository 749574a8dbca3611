"""The pages on Django, Flask and FastAPI: their code is that of the examples, which other tests run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.acceptance.documents import Block, blocks_of

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PAGES = {name: ROOT / "docs" / "how-to" / f"{name}.md" for name in ("django", "flask", "fastapi")}
#: Each is run, with these very words, by the test of the page's example or of the package.
COMMANDS = {
    "django": {
        'pip install "stabilize-celery[django]"',
        "python manage.py migrate",
        "celery -A project worker",
    },
    "flask": {
        'pip install "stabilize-celery[flask]" flask-sqlalchemy',
        "celery -A flask_shop stabilize migrate",
        "celery -A flask_shop worker",
    },
    "fastapi": {"celery -A fastapi_shop stabilize migrate", "celery -A fastapi_shop worker"},
}
BLOCKS = [(name, block) for name, page in PAGES.items() for block in blocks_of(page)]


@pytest.mark.parametrize(
    ("name", "block"),
    [pytest.param(n, b, id=f"{n}:{b.line}") for n, b in BLOCKS if b.language == "python"],
)
def test_the_code_is_that_of_the_example(name: str, block: Block) -> None:
    first, code = block.text.split("\n", 1)
    file = EXAMPLES / ("django_shop" if name == "django" else "") / first.removeprefix("# ")
    assert code in file.read_text(encoding="utf-8"), f"{file.name} does not contain this block"


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_are_those_that_are_run(name: str) -> None:
    blocks = [block for page, block in BLOCKS if page == name]
    assert {block.language for block in blocks} == {"python", "sh"}
    told = {line for block in blocks if block.language == "sh" for line in block.text.splitlines() if line}
    assert told == COMMANDS[name]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", PAGES[name].read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (PAGES[name].parent / target).exists()] == []


def test_the_extras_exist() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert "\ndjango = [" in pyproject
    assert "\nflask = [" in pyproject
