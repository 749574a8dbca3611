"""Each revision says when it may be applied, the code agrees with the revisions, and nothing is applied too early."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from stabilize_celery.errors import SchemaVersionError
from stabilize_celery.persistence import migrate, schema
from stabilize_celery.persistence.database import Database
from stabilize_celery.persistence.phases import Step, step_of

REVISION = """\
\"\"\"{number}.\"\"\"

revision = {number!r}
down_revision = {before!r}
{declared}

def upgrade():
    pass
"""


def steps_of(folder: Path) -> list[Step]:
    scripts = ScriptDirectory(str(folder))
    return [step_of(script) for script in reversed(list(scripts.walk_revisions()))]


def test_the_code_agrees_with_the_revisions() -> None:
    """What has to be changed in persistence/schema.py with a revision."""
    steps = steps_of(migrate.FOLDER)
    assert steps[-1].revision == schema.CURRENT
    assert [step.revision for step in steps if step.phase == "expand"][-1] == schema.NEEDED
    since = [step.compatible_since for step in steps if step.compatible_since is not None]
    assert [steps[0].revision, *since][-1] == schema.COMPATIBLE_SINCE


def write(folder: Path, number: str, before: str | None, declared: str) -> None:
    text = REVISION.format(number=number, before=before, declared=declared)
    (folder / "versions" / f"{number}.py").write_text(text)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("", "say phase = 'expand' or phase = 'contract'"),
        ("phase = 'during'", "say phase = 'expand' or phase = 'contract'"),
        ("phase = 'contract'", "compatible_since belongs to phase 'contract'"),
        ("phase = 'expand'; compatible_since = '0001'", "compatible_since belongs to phase 'contract'"),
        ("phase = 'contract'; compatible_since = '0003'", "later than the revision itself"),
    ],
)
def test_a_revision_that_does_not_say_is_refused(tmp_path: Path, declared: str, message: str) -> None:
    (tmp_path / "versions").mkdir()
    write(tmp_path, "0002", None, declared)
    with pytest.raises(ValueError, match=message):
        steps_of(tmp_path)


# ---------------------------------------------------------------------------------------------- longer ways

EXPAND, CONTRACT = "phase = 'expand'", "phase = 'contract'; compatible_since = {number!r}"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path}/flows.db")
    schema.create_all(opened)
    yield opened
    opened.dispose()


@pytest.fixture
def revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make up revisions after this release's: one letter each, e or c."""
    known = migrate._config
    more = tmp_path / "versions"

    def config(*arguments: Any) -> Config:
        made = known(*arguments)
        made.set_main_option("path_separator", "newline")
        made.set_main_option("version_locations", f"{migrate.FOLDER / 'versions'}\n{more}")
        return made

    def add(letters: str) -> None:
        more.mkdir()
        before = schema.CURRENT
        for index, letter in enumerate(letters):
            number = f"90{index:02}"
            write(tmp_path, number, before, (EXPAND if letter == "e" else CONTRACT).format(number=number))
            before = number
        monkeypatch.setattr(migrate, "_config", config)
        monkeypatch.setattr(schema, "CURRENT", before)

    return add


@pytest.mark.parametrize(
    ("letters", "phase", "applied"),
    [
        ("", "expand", ""),
        ("", "contract", ""),
        ("e", "expand", "e"),
        ("e", "contract", None),
        ("c", "expand", ""),
        ("c", "contract", "c"),
        ("eecc", "expand", "ee"),
        ("eecc", "contract", None),
        ("ece", "expand", None),
        ("ece", "contract", None),
        ("ce", "expand", None),
        ("ce", "contract", None),
        ("cec", None, "cec"),
    ],
)
def test_which_steps_a_phase_applies(
    database: Database, revisions: Any, letters: str, phase: Any, applied: str | None
) -> None:
    revisions(letters)
    if applied is None:
        for attempt in (migrate.pending, migrate.upgrade):
            with pytest.raises(SchemaVersionError, match=r"--before-deploy|--after-deploy"):
                attempt(database, phase=phase)
        assert len(migrate.pending(database).steps) == len(letters)
        return
    told = migrate.pending(database, phase)
    assert "".join(step.phase[0] for step in told.steps) == applied
    assert "".join(step.phase[0] for step in told.left) == letters[len(applied) :]
    assert migrate.upgrade(database, phase=phase) == told
    with database.begin() as connection:
        version = schema.read(connection)
    assert version is not None
    assert version.revision == told.after
    contracted = [step.revision for step in told.steps if step.phase == "contract"]
    assert version.compatible_since == [schema.COMPATIBLE_SINCE, *contracted][-1]


def test_an_empty_database_has_no_workers_to_be_careful_with(tmp_path: Path, revisions: Any) -> None:
    revisions("ece")
    opened = Database(f"sqlite:///{tmp_path}/empty.db")
    assert migrate.upgrade(opened, phase="expand").after == schema.CURRENT
    schema.check(opened)
    opened.dispose()
