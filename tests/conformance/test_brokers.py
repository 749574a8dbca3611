"""A part of the conformance suite on other brokers than classic queues of RabbitMQ, and what each of them loses."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stabilize_celery import Stabilize
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.contrib.doctor import Level, examine
from stabilize_celery.delivery.relay import Relay
from tests.acceptance.documents import blocks_of
from tests.conformance.conftest import Crew, crew_of
from tests.conformance.deployment import make_app
from tests.conformance.harness import WorkersEngine, flow, stage
from tests.conformance.test_basic_flow import (  # noqa: F401
    test_a_join_runs_once_after_all_its_branches,
    test_a_join_waits_for_its_slowest_branch,
)
from tests.conformance.test_failure_policies import (  # noqa: F401
    test_an_unknown_task_type_is_a_failure_that_names_it,
)
from tests.services import ROOT, PostgresService, RabbitService, RedisService

PAGE = ROOT / "docs" / "how-to" / "brokers.md"


def quorum_settings() -> dict[str, Any]:
    """Those of the page: everything the app and the engine declare is a quorum queue."""
    [block] = [block.text for block in blocks_of(PAGE) if block.language == "python"]
    found: dict[str, Any] = {}
    exec(block, {}, found)
    return found


@pytest.fixture(scope="module")
def quorum(
    postgres_service: PostgresService,
    rabbit_service: RabbitService,
    postgres_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Crew]:
    name = f"quorum_{uuid.uuid4().hex[:8]}"
    broker, folder = rabbit_service.add_vhost(name), tmp_path_factory.mktemp("quorum")
    with crew_of(postgres_service, broker, postgres_template, folder, **quorum_settings()) as crew:
        yield crew
    rabbit_service.delete_vhost(name)


@pytest.fixture(scope="module")
def redis(
    postgres_service: PostgresService,
    redis_service: RedisService,
    postgres_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Crew]:
    broker, folder = redis_service.add_database(), tmp_path_factory.mktemp("redis")
    with crew_of(postgres_service, broker, postgres_template, folder) as crew:
        yield crew


@pytest.fixture(params=["quorum", "redis"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WorkersEngine]:
    stabilize, workers = request.getfixturevalue(request.param)
    made = WorkersEngine(request.param, stabilize, tmp_path, workers)
    yield made
    made.close()


def test_a_workflow_of_24_stages(engine: WorkersEngine) -> None:
    """A fan-out of chains with retries, waits and Celery tasks, and a join."""
    stages = [stage("first")]
    for arm in range(5):
        stages += [
            stage(
                f"{arm}-celery", "celery", ["first"], context={"task": "conformance.add", "args": [arm, 1]}
            ),
            stage(
                f"{arm}-retry",
                "script",
                [f"{arm}-celery"],
                do=[{"raise": "TransientError"}, {"return": "success"}],
            ),
            stage(f"{arm}-wait", "wait", [f"{arm}-retry"], seconds=0.2),
            stage(f"{arm}-last", after=[f"{arm}-wait"]),
        ]
    stages += [
        stage("join", after=[f"{arm}-last" for arm in range(5)]),
        stage("a", after=["join"]),
        stage("b", after=["join"]),
    ]
    assert len(stages) == 24

    result = engine.run(flow(*stages), 60)

    assert set(result.statuses().values()) == {"SUCCEEDED"}
    assert result.executions("join") == 1
    assert result.executions("0-retry") == 2


def test_controls_arrive(engine: WorkersEngine) -> None:
    gate = engine.gate()
    run = engine.start(flow(stage("a", "script", do=[{"wait_file": gate.path}]), stage("b", after=["a"])))
    engine.wait_event(run, "a")
    run.cancel()
    assert engine.wait_final(run).status is S.CANCELED

    run = engine.start(flow(stage("a", "approval"), stage("b", after=["a"])))
    engine.wait_status(run, "a", "SUSPENDED")
    run.approve("a")
    assert engine.wait_final(run).status is S.SUCCEEDED


def test_queues_are_of_the_kind_that_the_app_wants(quorum: Crew) -> None:
    stabilize, workers = quorum
    assert stabilize.app is not None
    with stabilize.app.connection_for_write() as connection, connection.channel() as channel:
        for name in stabilize.settings.queues():
            queue = stabilize.app.amqp.queues[name]
            assert queue.queue_arguments["x-queue-type"] == "quorum"
            queue(channel).queue_declare()
    for worker in workers:
        assert not re.search(r"PRECONDITION|Unrecoverable|CRITICAL", worker.output)


def test_redis_that_loses_everything_costs_time_only(
    redis: Crew, redis_service: RedisService, tmp_path: Path
) -> None:
    stabilize, workers = redis
    engine = WorkersEngine("redis", stabilize, tmp_path, workers)
    for worker in workers:
        worker.stop()
    runs = [engine.start(flow(stage("a"), stage("b", after=["a"]))) for _ in range(10)]
    assert redis_service.queue_length(_broker(stabilize), "stabilize") == 10
    redis_service.wipe_data()
    for worker in workers:
        worker.start()

    assert {engine.settle(run, 60).status for run in runs} == {S.SUCCEEDED}


def test_a_backlog_in_redis_is_not_sent_again(redis_service: RedisService, postgres_url: str) -> None:
    """What waits there is counted, so that the relay does not fill the memory of the server with repetitions."""
    broker = redis_service.add_database()
    app, stabilize = make_app(
        broker, postgres_url, inline=True, stabilize_resend_delay=0.01, stabilize_resend_delay_max=0.01
    )
    for _ in range(20):
        stabilize.start(flow(stage("a")))
    relay = Relay(app, stabilize.store, stabilize.settings)
    for _ in range(10):
        relay.sweep()
    assert redis_service.queue_length(broker, "stabilize") == 20

    with redis_service.client(int(broker.rsplit("/", 1)[1])) as client:
        client.ltrim("stabilize", 0, 14)
        for _ in range(10):
            relay.sweep()
        assert redis_service.queue_length(broker, "stabilize") == 20, (
            "five were lost, and five are sent again"
        )
        here = [each for each in client.client_list() if each["db"] == broker.rsplit("/", 1)[1]]
        assert len(here) <= 8, "a few of the publisher, the relay and this test, not one for each of 20 looks"
    relay.disconnect()
    stabilize.close()
    app.close()


def test_the_doctor_says_what_redis_may_lose(redis: Crew, redis_service: RedisService) -> None:
    stabilize, _ = redis
    with redis_service.client() as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        found = [each for each in examine(stabilize, timeout=5.0) if each.area == "broker"]
        client.config_set("maxmemory-policy", "noeviction")
    told = {each.what: each.level for each in found}

    assert any(re.search(r"answers \(Redis \d", what) for what in told)
    assert told["Redis keeps no append-only file"] is Level.WARNING
    assert any("maxmemory-policy is allkeys-lru" in what for what in told)
    assert told["queue stabilize: 0 messages"] is Level.OK
    assert Level.ERROR not in told.values()


def _broker(stabilize: Stabilize) -> str:
    assert stabilize.app is not None
    return str(stabilize.app.conf.broker_url)
