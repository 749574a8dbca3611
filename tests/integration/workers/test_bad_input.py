"""What goes wrong around the engine: one clear error that names the thing and the way out, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from stabilize_celery import Stabilize
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.errors import ConfigurationError, SchemaVersionError, StoreError
from stabilize_celery.persistence.schema import CURRENT, VERSION_TABLE, create_tables
from tests.conformance.harness import flow, stage
from tests.integration.workers.conftest import Deploy, Deployment
from tests.processes import free_port


def refused_start(deployment: Deployment) -> str:
    """Start a worker that must not come up; returns what it said."""
    worker = deployment.worker(wait=False)
    assert worker.wait(60) != 0
    return worker.output


def nowhere() -> str:
    return f"postgresql+psycopg://someone:secret@127.0.0.1:{free_port()}/shop"


def set_version(url: str, version: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text(f"UPDATE {VERSION_TABLE} SET version_num = :version, compatible_since = :version"),
            {"version": version},
        )
    engine.dispose()


def test_starting_with_an_unreachable_database_names_it_without_its_password(deploy: Deploy) -> None:
    url = nowhere()
    engine = deploy(database=url).engine

    with pytest.raises(StoreError) as refused:
        engine.start(flow(stage("a")))

    assert url.replace("secret", "***") in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_worker_with_an_unreachable_database_says_so_and_waits_until_it_is_stopped(deploy: Deploy) -> None:
    url = nowhere()
    worker = deploy(database=url).worker(wait=False)
    worker.wait_log("stabilize_celery waits for its database")
    assert worker.running
    worker.stop()

    assert url.replace("secret", "***") in worker.output
    assert "secret" not in worker.output
    assert "ready." not in worker.output


def test_a_worker_without_tables_says_what_to_run_and_ends(deploy: Deploy, empty_postgres_url: str) -> None:
    deployment = deploy(database=empty_postgres_url)

    output = refused_start(deployment)

    assert "tables of stabilize_celery are missing" in output
    assert "stabilize migrate" in output
    assert "ready." not in output

    create_tables(empty_postgres_url)
    deployment.worker()
    assert deployment.engine.run(flow(stage("a"))).status is S.SUCCEEDED


def test_starting_without_tables_says_what_to_run(deploy: Deploy, empty_postgres_url: str) -> None:
    engine = deploy(database=empty_postgres_url).engine

    with pytest.raises(
        SchemaVersionError, match=r"tables of stabilize_celery are missing.*stabilize migrate"
    ):
        engine.start(flow(stage("a")))


def test_an_embedded_engine_without_tables_says_what_to_run(empty_postgres_url: str) -> None:
    with (
        Stabilize.embedded(empty_postgres_url, create_tables=False) as stabilize,
        pytest.raises(SchemaVersionError, match=r"tables of stabilize_celery are missing"),
    ):
        stabilize.run(flow(stage("a", "noop")))


@pytest.mark.parametrize("kind", ["connection", "session"])
def test_joining_a_transaction_without_tables_says_what_to_run(
    deploy: Deploy, empty_postgres_url: str, kind: str
) -> None:
    engine = deploy(database=empty_postgres_url).engine
    own = create_engine(empty_postgres_url)
    with (
        Session(own) if kind == "session" else own.connect() as connection,
        pytest.raises(SchemaVersionError, match=r"tables of stabilize_celery are missing"),
    ):
        engine.start(flow(stage("a")), connection=connection)
    own.dispose()


def test_an_embedded_engine_on_a_file_without_tables_says_what_to_run(tmp_path: Path) -> None:
    with (
        Stabilize.embedded(f"sqlite:///{tmp_path}/empty.db", create_tables=False) as stabilize,
        pytest.raises(SchemaVersionError, match=r"tables of stabilize_celery are missing"),
    ):
        stabilize.run(flow(stage("a", "noop")))


@pytest.mark.parametrize(
    ("version", "advice"), [("0000", "stabilize migrate"), ("9999", "upgrade stabilize-celery")]
)
def test_a_worker_of_another_version_than_the_tables_ends_and_loses_nothing(
    deploy: Deploy, postgres_url: str, version: str, advice: str
) -> None:
    deployment = deploy()
    run = deployment.engine.start(flow(stage("a")))
    set_version(postgres_url, version)

    output = refused_start(deployment)

    assert f"are of version {version}" in output
    assert advice in output
    assert "ready." not in output

    set_version(postgres_url, CURRENT)
    deployment.worker()
    assert deployment.engine.settle(run).status is S.SUCCEEDED


def test_a_database_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="mysql is not supported"):
        Stabilize.embedded("mysql+pymysql://localhost/shop")
    with pytest.raises(ConfigurationError, match="is not a database URL"):
        Stabilize.embedded("shop")


def test_a_missing_database_setting_says_what_to_write(deploy: Deploy) -> None:
    engine = deploy().engine
    assert engine.stabilize.app is not None
    engine.stabilize.app.conf.stabilize_database_url = None

    with pytest.raises(ConfigurationError, match="stabilize_database_url is not set"):
        engine.start(flow(stage("a")))


def test_a_setting_that_does_not_exist_or_makes_no_sense_is_refused(deploy: Deploy) -> None:
    with pytest.raises(ConfigurationError, match=r"stabilize_lease: .*greater than 0.*-1"):
        deploy(stabilize_lease=-1).engine.start(flow(stage("a")))


def test_an_unknown_task_type_fails_its_stage_and_suggests_the_right_one(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.worker()

    result = deployment.engine.run(flow(stage("a", "hoked")))

    told = result.error("a")
    assert told.startswith("No task found for type: hoked, did you mean 'hooked'? Worker ")
    assert told.endswith("(stabilize_imports), then restart the stage")
    assert result.status is S.TERMINAL


def test_a_task_type_that_the_worker_does_not_know_fails_the_stage_by_name(deploy: Deploy) -> None:
    """What the starting process knows is not what counts."""
    deployment = deploy()
    deployment.engine.stabilize.task("only-here")(lambda stage: None)
    deployment.worker()

    result = deployment.engine.run(flow(stage("a", "only-here")))

    assert "No task found for type: only-here" in result.error("a")


@pytest.mark.parametrize("action", ["bytes", "huge"])
def test_outputs_that_cannot_be_stored_fail_their_stage_and_no_other(deploy: Deploy, action: str) -> None:
    deployment = deploy(stabilize_max_output_bytes=1000)
    deployment.worker()

    result = deployment.engine.run(
        flow(
            stage("good", outputs={"x": "y" * 900}),
            stage("bad", "script", do=[{"return": action, "size": 1001}], continuePipelineOnFailure=True),
            stage("after", "see", ["good", "bad"]),
        )
    )

    assert result.statuses() == {"good": "SUCCEEDED", "bad": "FAILED_CONTINUE", "after": "SUCCEEDED"}
    assert ("blob" if action == "bytes" else "the limit is 1,000") in result.error("bad")
    assert result.seen("after") == {"x": "y" * 900}
