"""Workers behind PgBouncer in transaction mode: no statement of theirs relies on a session of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy.engine import make_url

from stabilize_celery import Stabilize, StageExecution
from stabilize_celery import WorkflowStatus as S
from tests.conformance.harness import flow, stage
from tests.integration.workers.conftest import Deploy
from tests.pooler import Pooler, pooler_running
from tests.processes import wait_until
from tests.services import PostgresService, plain_address

#: So few that every process must share them with the others.
SESSIONS = 2


@pytest.fixture
def narrow(postgres_service: PostgresService) -> Iterator[Pooler]:
    """A PgBouncer that gives all clients of a database two sessions together."""
    with pooler_running(postgres_service.url, sessions=SESSIONS) as running:
        yield running


def sessions_of(url: str) -> int:
    """The server's sessions in a database, but for the one that asks."""
    plain = plain_address(url)
    with psycopg.connect(plain) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_workers_share_two_sessions(deploy: Deploy, narrow: Pooler, postgres_url: str) -> None:
    """Claims, leases, retries, timers, signals and a limit, with more processes than sessions."""
    deployment = deploy(database=narrow.url_of(postgres_url), stabilize_database_prepare=False)
    engine = deployment.engine
    for pool in ("prefork", "threads"):
        deployment.worker(pool=pool, concurrency=2)
    arms = [f"arm-{n}" for n in range(12)]
    runs = [
        engine.start(
            flow(stage("first"), *(stage(arm, after=["first"]) for arm in arms), stage("last", after=arms))
        )
        for _ in range(4)
    ]
    # Not heard through the pooler: the relay finds it when it looks.
    timers = [StageExecution.single("timer", "wait", {"seconds": 0.3}), stage("after", after=["timer"])]
    runs.append(engine.start(flow(*timers)))
    asked = engine.start(flow(StageExecution.single("gate", "approval")))
    engine.wait_status(asked, "gate", "SUSPENDED", timeout=60)
    asked.approve("gate")
    for run in (*runs, asked):
        assert engine.wait_final(run, timeout=90).status is S.SUCCEEDED
    assert engine.stabilize.audit().problems == []
    # The pooler multiplexes: more clients than sessions, and no session beside them.
    database = make_url(postgres_url).database
    clients = [client for client in narrow.show("CLIENTS") if client["database"] == database]
    assert len(clients) > SESSIONS
    assert sessions_of(postgres_url) <= SESSIONS


def test_the_relay_listens_at_the_server_itself(pooled_url: str, postgres_url: str) -> None:
    """The bell is heard past the pooler, where the notification of another process arrives."""
    engine, other = (
        Stabilize.embedded(
            pooled_url,
            create_tables=False,
            database_prepare=False,
            database_listen_url=postgres_url,
        )
        for _ in range(2)
    )
    here, there = engine.store.bell(), other.store.bell()
    try:
        waiter = threading.Thread(target=here.wait, args=(100.0,))
        waiter.start()

        def heard() -> bool:
            there.ring()
            return not waiter.is_alive()

        wait_until(heard, 60, "the bell to be heard")
        assert sessions_named("stabilize-relay", postgres_url) == 1
    finally:
        here.close()
        engine.close()
        other.close()


def sessions_named(name: str, url: str) -> int:
    """Sessions of a database that come from the server's own port and carry this application name."""
    plain = plain_address(url)
    with psycopg.connect(plain) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s",
            (name,),
        ).fetchone()
    assert row is not None
    return int(row[0])
