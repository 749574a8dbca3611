"""Around a deploy: workflows of the release before go on while workers of two releases run on the tables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from stabilize_celery import Stabilize, WorkflowRun
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.cli import main
from stabilize_celery.errors import SchemaVersionError
from stabilize_celery.persistence import migrate, schema
from stabilize_celery.persistence.database import Database
from tests.conformance import behaviours
from tests.conformance.harness import flow, stage
from tests.integration.workers.conftest import Deploy
from tests.migration import dumped
from tests.migration.releases import CONTRACT, EXPAND, RELEASED, newer_migrations

NEWER = "tests.migration.newer_app"
TOO_NEW = rf"are of version {CONTRACT}, which is for releases that know version {EXPAND} or later.*upgrade"
Migrate = Callable[..., str]


def migrate_newer(url: str, *options: str, code: int = 0) -> str:
    """Run the newer release's ``migrate``; returns what it said."""
    with newer_migrations():
        result = CliRunner().invoke(main, ["--database-url", url, "migrate", *options])
    assert result.exit_code == code, result.output
    return result.output


def bring_to_this_release(url: str) -> None:
    """Whatever older release a dump is of."""
    database = Database(url)
    migrate.upgrade(database)
    database.dispose()


def writers(engine: Stabilize, run: WorkflowRun) -> set[str | None]:
    """The releases that took the steps of a workflow, as the newer one writes them down."""
    query = text("SELECT release FROM stabilize_history WHERE workflow_id = :id")
    with engine.store.database.begin() as connection:
        return set(connection.execute(query, {"id": run.id}).scalars())


def assert_done(run: WorkflowRun) -> None:
    assert run.status is S.SUCCEEDED, (run.workflow().name, run.status)
    assert all(each.status is S.SUCCEEDED for each in run.workflow().stages)


def apply_before_deploy(url: str) -> None:
    told = migrate_newer(url, "--before-deploy", "--check", code=1)
    assert f"  {EXPAND} A transition may name its release\n" in told
    assert f"left for --after-deploy, when no older worker runs any more:\n  {CONTRACT} " in told
    assert f"from version {RELEASED} to version {EXPAND}\n" in migrate_newer(url, "--before-deploy")
    assert "nothing to do" in migrate_newer(url, "--before-deploy", "--check")


def apply_after_deploy(url: str) -> None:
    assert f"{CONTRACT} Every transition names its release" in migrate_newer(
        url, "--after-deploy", "--check", code=1
    )
    assert f"from version {EXPAND} to version {CONTRACT}\n" in migrate_newer(url, "--after-deploy")
    for options in ([], ["--before-deploy"], ["--after-deploy"]):
        assert "nothing to do" in migrate_newer(url, "--check", *options)


def test_this_release_has_its_dump() -> None:
    """Before a release brings a revision: python -m tests.migration.fixtures.make."""
    assert RELEASED in dumped.versions()


@pytest.mark.parametrize("version", dumped.versions())
def test_workers_go_on_and_are_replaced_one_after_the_other(
    deploy: Deploy, empty_postgres_url: str, version: str
) -> None:
    url = empty_postgres_url
    dumped.load(url, version)
    bring_to_this_release(url)
    deployment = deploy(database=url)
    engine = deployment.engine
    runs = dumped.runs(engine.stabilize)
    assert {name: run.status for name, run in runs.items()} == dumped.STATUSES

    apply_before_deploy(url)
    old = deployment.worker()
    dumped.answer(runs["first approval"])
    by_old = engine.start(flow(stage("a")))
    for name in runs.keys() - {"last approval", "paused"}:
        engine.wait_final(runs[name], 120)
    engine.wait_final(by_old, 120)

    deployment.worker(app=NEWER)
    dumped.answer(runs["paused"])
    engine.wait_final(runs["paused"], 120)
    old.stop()
    apply_after_deploy(url)

    refused = deployment.worker(wait=False)
    assert refused.wait(60) != 0
    assert "ready." not in refused.output
    assert f"this one knows {RELEASED}: upgrade stabilize-celery" in refused.output
    dumped.answer(runs["last approval"])
    engine.wait_final(runs["last approval"], 120)

    for run in [*runs.values(), by_old]:
        assert_done(run)
    assert writers(engine.stabilize, by_old) == {"older"}
    assert writers(engine.stabilize, runs["last approval"]) == {"older", "newer"}


@pytest.mark.parametrize("version", dumped.versions())
def test_a_program_is_replaced(tmp_path: Path, version: str) -> None:
    url = f"sqlite:///{tmp_path}/flows.db"
    dumped.load(url, version)
    bring_to_this_release(url)
    apply_before_deploy(url)
    with Stabilize.embedded(url) as old:
        behaviours.register(old)
        runs = dumped.runs(old)
        assert {name: run.status for name, run in runs.items()} == dumped.STATUSES
        dumped.answer(runs["first approval"])
        by_old = old.run(flow(stage("a")), timeout=60)
        old.processor.drain(timeout=60)
        for name in runs.keys() - {"last approval", "paused"}:
            assert_done(runs[name])

        apply_after_deploy(url)

        with pytest.raises(SchemaVersionError, match=TOO_NEW):
            Stabilize.embedded(url)
        subprocess.run([sys.executable, "-m", NEWER, url], check=True, timeout=120)
        for run in [*dumped.runs(old).values(), by_old]:
            assert_done(run)
        assert writers(old, by_old) == {"older"}
        assert writers(old, runs["last approval"]) == {"older", "newer"}


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with the tables of this release."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    made = f"sqlite:///{tmp_path}/flows.db"
    schema.create_tables(made)
    return made


def test_older_commands_leave_tables_alone_that_they_can_use(url: str) -> None:
    migrate_newer(url, "--before-deploy")
    result = CliRunner().invoke(main, ["--database-url", url, "migrate"])
    assert (result.exit_code, f"version {EXPAND}, nothing to do" in result.output) == (0, True), result.output


def test_older_commands_refuse_tables_that_they_cannot_use(url: str) -> None:
    migrate_newer(url)
    for command in ("migrate", "list"):
        result = CliRunner().invoke(main, ["--database-url", url, command])
        assert result.exit_code == 1
        assert "upgrade stabilize-celery" in result.output


def test_what_is_for_after_the_deploy_does_not_come_before_it(url: str) -> None:
    told = migrate_newer(url, "--after-deploy", code=1)
    assert f"step {EXPAND} A transition may name its release is still missing" in told
    assert "--before-deploy" in told
    assert f"version {RELEASED} " in migrate_newer(url, "--check", code=1)


def test_a_newer_worker_needs_what_is_for_before_the_deploy(url: str) -> None:
    database = Database(url)
    with newer_migrations():
        with pytest.raises(SchemaVersionError, match=rf"this release needs {EXPAND}: run .*--before-deploy"):
            schema.check(database)
        migrate.upgrade(database, phase="expand")
        schema.check(database)
        migrate.upgrade(database, phase="contract")
        schema.check(database)
    database.dispose()


def test_the_statements_of_a_phase_tell_who_may_run(url: str) -> None:
    assert "compatible_since" not in migrate_newer(url, "--sql", "--before-deploy")
    migrate_newer(url, "--before-deploy")
    told = migrate_newer(url, "--sql", "--after-deploy")
    assert f"UPDATE stabilize_schema_version SET compatible_since = '{EXPAND}'" in told
