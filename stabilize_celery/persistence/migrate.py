"""Bringing a database's tables to the version of this release, in one go or around a deploy."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from stabilize_celery.errors import SchemaVersionError
from stabilize_celery.persistence import schema
from stabilize_celery.persistence.database import Database
from stabilize_celery.persistence.phases import Phase, Step, step_of

FOLDER = Path(__file__).parent / "migrations"


@dataclass(frozen=True)
class Migration:
    """What was done, or with ``sql`` what is to be done."""

    #: Version of the tables before; ``None`` if there were none.
    before: str | None
    after: str
    #: In order.
    steps: tuple[Step, ...]
    #: Those that wait for the other phase.
    left: tuple[Step, ...] = ()
    #: The statements, when they were asked for.
    sql: str | None = None


def upgrade(database: Database, sql: bool = False, phase: Phase | None = None) -> Migration:
    """Apply the steps this release brings: all in one transaction, or none.

    Two that run at once do it one after the other, so the second finds nothing to do.  Tables of a newer release that
    this one can use are left as they are.

    Args:
        database: which one.
        sql: change nothing, only return the statements for another person to run.
        phase: only what belongs before (*expand*) or after (*contract*) the deploy.

    Raises:
        SchemaVersionError: the tables are of a newer release, or the steps of this phase cannot be applied alone.
        StoreError: the database cannot be reached.
    """
    with database.begin() as connection:
        schema.lock(connection)
        found = _plan(database, connection, phase)
        if sql:
            return Migration(
                found.before,
                found.after,
                found.steps,
                found.left,
                _script(database, found) if found.steps else "",
            )
        if found.steps:
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, found.after)
    return found


def pending(database: Database, phase: Phase | None = None) -> Migration:
    """What :func:`upgrade` would do; nothing is changed.

    Raises:
        SchemaVersionError: as :func:`upgrade`.
        StoreError: the database cannot be reached.
    """
    with database.begin() as connection:
        return _plan(database, connection, phase)


def _plan(database: Database, connection: Connection, phase: Phase | None) -> Migration:
    version = schema.read(connection)
    if version is not None and version.is_newer_but_usable:
        return Migration(version.revision, version.revision, ())
    before = None if version is None else version.revision
    way = _way(database, before)
    # Without tables there are no workers to be careful with.
    steps = way if before is None and phase == "expand" else _part(database, way, phase)
    after = steps[-1].revision if steps else before or "base"
    return Migration(before, after, tuple(steps), tuple(way[len(steps) :]))


def _way(database: Database, before: str | None) -> list[Step]:
    scripts = ScriptDirectory.from_config(_config())
    known = {script.revision: script for script in scripts.walk_revisions()}
    if before is not None and before not in known:
        raise SchemaVersionError(
            f"the tables in {database.name} are of version {before}, which this release does not know (it knows "
            f"{schema.CURRENT}): upgrade stabilize-celery"
        )
    way = list(scripts.iterate_revisions(schema.CURRENT, before or "base"))
    return [step_of(script) for script in reversed(way)]


def _part(database: Database, way: Sequence[Step], phase: Phase | None) -> Sequence[Step]:
    """The steps of a phase, if they can be applied without those of the other one."""
    if phase is None:
        return way
    first = list(takewhile(lambda step: step.phase == "expand", way))
    rest = way[len(first) :]
    if phase == "contract":
        if first:
            raise SchemaVersionError(
                f"step {first[0]} is still missing in {database.name}, which belongs before the deploy: run "
                "`stabilize migrate --before-deploy`, replace all workers, and then run this again"
            )
        first = list(way)
    late = [step for step in rest if step.phase == "expand"]
    if late:
        raise SchemaVersionError(
            f"step {late[0]} belongs before the deploy and comes after {rest[0]} in {database.name}, which belongs "
            f"after it: run `stabilize migrate --after-deploy` of the release that brought {rest[0].revision} first, "
            "or stop all workers and run `stabilize migrate`"
        )
    return first


def _script(database: Database, found: Migration) -> str:
    buffer = io.StringIO()
    config = _config(buffer)
    config.attributes["dialect_name"] = database.url.get_backend_name()
    command.upgrade(config, f"{found.before or 'base'}:{found.after}", sql=True)
    return buffer.getvalue()


def _config(buffer: io.StringIO | None = None) -> Config:
    config = Config() if buffer is None else Config(output_buffer=buffer)
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config
