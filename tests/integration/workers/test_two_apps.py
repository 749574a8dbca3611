"""Two apps with databases of their own on one virtual host: neither does the other's work, and both get theirs done."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from stabilize_celery import WorkflowStatus as S
from stabilize_celery.contrib.doctor import Level, examine
from stabilize_celery.persistence.database import Database
from tests.conformance.harness import flow, stage
from tests.integration.workers.conftest import Deploy, Deployment
from tests.processes import wait_until
from tests.services import PostgresService, plain_address
from tests.worker import WorkerProcess

STRAY = re.compile(r"WARNING.*was dropped: it is of database (\S+), and this worker's is (\S+):")
Two = Callable[..., list[Deployment]]


@pytest.fixture
def two(deploy: Deploy, postgres_service: PostgresService, postgres_template: str) -> Iterator[Two]:
    """Two deployments on one virtual host, given a setting of each; the second's database is a copy."""
    name = "the_other_app"
    url = postgres_service.create_database(name, template=postgres_template)
    made: list[Deployment] = []

    def make(**settings: tuple[Any, Any]) -> list[Deployment]:
        settings["stabilize_resend_delay_max"] = (1.0, 1.0)
        first, second = ({key: value[i] for key, value in settings.items()} for i in (0, 1))
        made.extend([deploy(**first), deploy(database=url, **second)])
        return made

    yield make
    for deployment in made:
        for worker in deployment.workers:
            worker.kill()
        deployment.engine.stabilize.close()
    postgres_service.drop_database(name)


def identity_of(deployment: Deployment) -> str:
    return deployment.engine.stabilize.store.database.identity


def strays(worker: WorkerProcess) -> list[tuple[str, ...]]:
    return [found.groups() for line in worker.output.splitlines() if (found := STRAY.search(line))]


def test_a_worker_drops_messages_of_another_database_and_says_so_once(two: Two) -> None:
    ours, other = two()
    assert identity_of(ours) != identity_of(other), "a copy of a database is another database"
    stranger = other.worker(pool="prefork")

    runs = [ours.engine.start(flow(stage("a"))) for _ in range(6)]
    stranger.wait_log(r"StartWorkflow.* succeeded", count=6)
    assert strays(stranger) == [(identity_of(ours), identity_of(other))]

    ours.worker()
    results = [ours.engine.settle(run, 60) for run in runs]
    result = other.engine.run(flow(stage("a")), 60)

    assert {each.status for each in (*results, result)} == {S.SUCCEEDED}


def test_a_celery_task_of_another_database_is_dropped_likewise(two: Two) -> None:
    ours, other = two(stabilize_queue=("shop", "mail"))
    stranger = other.worker(queues=["celery"])
    ours.worker(queues=["shop", "shop.tasks"])

    run = ours.engine.start(flow(stage("a", "celery", context={"task": "conformance.add", "args": [1, 2]})))
    stranger.wait_log(STRAY)
    ours.worker(queues=["celery"])
    result = ours.engine.settle(run, 60)

    assert result.stage("a").outputs == {"result": 3}
    assert strays(stranger) == [(identity_of(ours), identity_of(other))]


def test_one_setting_keeps_two_apps_apart(two: Two) -> None:
    ours, other = two(stabilize_queue=("shop", "mail"))
    workers = [ours.worker(), other.worker()]

    runs = [(each, each.engine.start(flow(stage("a")))) for each in (ours, other) * 10]

    assert {each.engine.settle(run).status for each, run in runs} == {S.SUCCEEDED}
    assert [strays(worker) for worker in workers] == [[], []]
    assert ours.engine.stabilize.settings.queues() == ["shop", "shop.tasks"]


def test_the_doctor_tells_whose_relay_it_sees(two: Two) -> None:
    ours, other = two()
    stranger = other.worker()
    name, theirs = identity_of(ours), identity_of(other)

    def told(level: Level) -> list[str]:
        return [f.what for f in examine(ours.engine.stabilize) if f.level is level]

    assert f"no worker runs a relay for database {name}" in told(Level.ERROR)
    shared = f"{stranger.name} consumes stabilize, stabilize.tasks for another database, {theirs}"
    assert shared in told(Level.WARNING)

    worker = ours.worker()
    start = f"a relay runs in {worker.name} for database {name} "
    wait_until(lambda: any(each.startswith(start) for each in told(Level.OK)), 30, "its own relay")


def test_a_server_that_says_little_of_itself_gives_an_identity_too(
    postgres_service: PostgresService, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Some services keep functions of the server from their users; nothing else fails for that."""
    role = f"guest_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(plain_address(postgres_url), autocommit=True) as admin:
        admin.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'guest'")
        try:
            url = make_url(postgres_url).set(username=role, password="guest")
            database = Database(url.render_as_string(hide_password=False))
            first, again = database.identity, database.identity
            database.dispose()
        finally:
            admin.execute(f"DROP ROLE {role}")

    assert first == again
    assert first.startswith(str(url.database)[:24])
    assert [each.levelname for each in caplog.records if "by its name alone" in each.message] == ["WARNING"]
