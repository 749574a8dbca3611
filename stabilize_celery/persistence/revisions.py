"""Single revisions as statements, for those who run them with a tool of their own."""

from __future__ import annotations

import io

from alembic import command
from alembic.script import ScriptDirectory

from stabilize_celery.errors import SchemaVersionError
from stabilize_celery.persistence.migrate import _config


class _Statements(io.StringIO):
    """Alembic writes one statement at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def write(self, text: str) -> int:
        statement = "\n".join(line for line in text.splitlines() if not line.startswith("--")).strip()
        if statement and statement not in ("BEGIN;", "COMMIT;"):
            self.found.append(statement)
        return len(text)


def statements_of(revision: str, dialect_name: str) -> list[str]:
    """What leads from the revision before to this one, its entry in the table of the version included.

    To be executed in one transaction, on PostgreSQL after ``schema.LOCK``.
    """
    buffer = _Statements()
    config = _config(buffer)
    config.attributes["dialect_name"] = dialect_name
    script = ScriptDirectory.from_config(config).get_revision(revision)
    command.upgrade(config, f"{script.down_revision or 'base'}:{revision}", sql=True)
    return buffer.found


def includes(version: str | None, revision: str) -> bool:
    """Whether tables of that version have what the revision brings.

    Raises:
        SchemaVersionError: the version is that of a newer release.
    """
    if version is None:
        return False
    scripts = ScriptDirectory.from_config(_config())
    if version not in {script.revision for script in scripts.walk_revisions()}:
        raise SchemaVersionError(
            f"the tables are of version {version}, which this release does not know: upgrade stabilize-celery"
        )
    return revision in {script.revision for script in scripts.iterate_revisions(version, "base")}
