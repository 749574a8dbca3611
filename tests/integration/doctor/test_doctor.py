"""What the doctor says of deployments that are well, and of each thing that can be wrong with one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from kombu import Connection, Exchange, Queue
from sqlalchemy.engine import make_url

from stabilize_celery import Stabilize
from stabilize_celery.cli import main
from stabilize_celery.contrib.doctor import Level, examine
from stabilize_celery.messages import StartWorkflow
from tests.integration.doctor.conftest import GOOD, errors, problems
from tests.processes import run_successfully
from tests.services import plain_address
from tests.worker import ROOT

Checkup = Callable[..., Any]

SHOP = """\
import json, os
from celery import Celery
from stabilize_celery import Stabilize

app = Celery("shop", broker=os.environ["BROKER"])
app.conf.update(json.loads(os.environ["CONF"]))
if "DATABASE" in os.environ:
    app.conf.stabilize_database_url = os.environ["DATABASE"]
    stabilize = Stabilize(app)
"""


@pytest.fixture
def shop(tmp_path: Any, broker_url: str, postgres_url: str) -> dict[str, Any]:
    """What a worker of an app in a file is started with."""
    (tmp_path / "shop.py").write_text(SHOP)
    env = {"BROKER": broker_url, "DATABASE": postgres_url, "CONF": json.dumps(GOOD), "PYTHONPATH": str(ROOT)}
    return {"app": "shop", "env": env, "cwd": tmp_path}


# ---------------------------------------------------------------------------------------------- all is well


def test_a_good_deployment_has_no_errors(shop: dict[str, Any], start_worker: Any, make_engine: Any) -> None:
    first = start_worker(**shop, queues=["stabilize"], pool="threads", wait=False, name="a@localhost")
    start_worker(
        **shop, queues=["stabilize.tasks"], name="b@localhost", arguments=["--prefetch-multiplier", "1"]
    )
    first.wait_ready(60)
    engine = make_engine()
    found = examine(engine, timeout=5.0)
    # The tests' own server is allowed to forget.
    assert problems(found) == ["fsync is off"]
    said = " ".join(one.what for one in found)
    assert "RabbitMQ" in said
    assert "PostgreSQL 1" in said
    assert re.search(r"a relay runs in a@localhost, b@localhost", said)
    assert "queue stabilize.tasks: 0 messages, 1 consumers" in said

    doctor = [sys.executable, "-m", "celery", "-A", "shop", "stabilize", "doctor"]
    done = run_successfully([*doctor, "--json", "--timeout", "5"], cwd=shop["cwd"], env=shop["env"])
    told = json.loads(done.stdout)
    assert told["healthy"] is True
    assert [one["what"] for one in told["findings"] if one["level"] != "ok"] == ["fsync is off"]


# ---------------------------------------------------------------------------------------------- workers


def test_workers_that_are_not_well(shop: dict[str, Any], start_worker: Any, make_engine: Any) -> None:
    options = ["--no-stabilize-relay", "--prefetch-multiplier", "4"]
    solo = start_worker(**shop, pool="solo", name="solo@localhost", arguments=options, wait=False)
    stranger = {name: value for name, value in shop["env"].items() if name != "DATABASE"}
    start_worker("shop", env=stranger, cwd=shop["cwd"], queues=["stabilize"], name="other@localhost")
    solo.wait_ready(60)
    engine = make_engine(stabilize_task_routes={"charge": "payments"})
    found = examine(engine, timeout=5.0)
    said = errors(found)
    assert "solo@localhost has a solo pool" in said
    assert "other@localhost consumes stabilize but does not know the engine's messages" in said
    assert f"no worker runs a relay for database {engine.store.database.identity}" in said
    assert "no worker that answers consumes queue payments" in said
    reason = next(one.why for one in found if "payments" in one.what and one.level is Level.ERROR)
    assert reason == "Tasks of type charge wait there."
    assert "solo@localhost consumes stabilize and stabilize.tasks" in problems(found)


def test_nobody_is_there(checkup: Checkup) -> None:
    found = checkup()
    assert errors(found) == ["no worker answers"]
    assert "queue stabilize does not exist yet" in problems(found)


def test_their_own_settings_are_looked_at(shop: dict[str, Any], start_worker: Any, make_engine: Any) -> None:
    shop["env"]["CONF"] = json.dumps({**GOOD, "broker_heartbeat": 300})
    start_worker(**shop, pool="threads", name="a@localhost")
    found = examine(make_engine(), timeout=5.0)
    assert "a@localhost: broker_heartbeat is 300" in problems(found, "workers")


# ---------------------------------------------------------------------------------------------- broker


def test_no_broker(checkup: Checkup) -> None:
    found = checkup(broker_url="amqp://ops:hunter2@127.0.0.1:1//")
    (said,) = errors(found)
    assert said.startswith("amqp://ops:**@127.0.0.1:1// is not reachable")
    assert "hunter2" not in said


def test_a_broker_of_one_process(checkup: Checkup) -> None:
    assert "memory:/// connects no two processes" in errors(checkup(broker_url="memory://"))


def test_queues_of_another_kind_and_without_consumers(checkup: Checkup, broker_url: str) -> None:
    with Connection(broker_url) as connection:
        for name, arguments in (("stabilize", {"x-queue-type": "quorum"}), ("stabilize.tasks", {})):
            queue = Queue(name, Exchange(name), routing_key=name, queue_arguments=arguments)
            queue(connection.default_channel).declare()
    found = checkup()
    assert any(
        re.match(r"queue stabilize is of another kind than the app declares: .*x-queue-type", said)
        for said in errors(found)
    )
    assert "queue stabilize.tasks has no consumer, and 0 messages" in errors(found)


def test_queues_that_nobody_may_make(checkup: Checkup) -> None:
    found = checkup(task_create_missing_queues=False, task_queues=[Queue("celery")])
    assert any(said.startswith("queue stabilize is not in task_queues") for said in errors(found))


# ---------------------------------------------------------------------------------------------- database


def test_no_database(checkup: Checkup) -> None:
    found = checkup(stabilize_database_url="postgresql+psycopg://ops:hunter2@127.0.0.1:1/shop")
    said = errors(found)[0]
    assert said.startswith("not reachable: database postgresql+psycopg://ops:***@127.0.0.1:1/shop")
    assert "hunter2" not in said


def test_no_tables(checkup: Checkup, empty_postgres_url: str) -> None:
    found = checkup(stabilize_database_url=empty_postgres_url)
    assert any(said.startswith("the tables of stabilize_celery are missing") for said in errors(found))


def test_settings_of_the_server(checkup: Checkup, postgres_url: str) -> None:
    url = make_url(postgres_url)
    wrong = {
        "default_transaction_read_only": "on",
        "synchronous_commit": "off",
    }
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        for name, value in wrong.items():
            connection.execute(f"ALTER DATABASE \"{url.database}\" SET {name} = '{value}'")
    found = checkup()
    assert "its transactions are read-only" in errors(found)
    assert "synchronous_commit is off" in problems(found, "database")


def test_clocks_that_differ(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import datetime as real

    from stabilize_celery.contrib import doctor

    class Fast:
        @staticmethod
        def now(zone: Any) -> Any:
            return real.now(zone) + timedelta(seconds=30)

    monkeypatch.setattr(doctor, "datetime", Fast)
    engine = make_engine()
    found = doctor.examine_database(engine.store, engine.settings)
    assert any(re.match(r"its clock and this machine's are (29|30)\.\d s apart", x) for x in problems(found))


def test_a_pooler_in_transaction_mode(make_engine: Any, pooled_url: str, postgres_url: str) -> None:
    from stabilize_celery.contrib.doctor import examine_database

    pooled = make_engine(stabilize_database_url=pooled_url, stabilize_database_prepare=False)
    found = examine_database(pooled.store, pooled.settings)
    assert "a pooler gives each transaction another session (transaction mode)" in problems(found)
    assert errors(found) == []

    listening = make_engine(
        stabilize_database_url=pooled_url,
        stabilize_database_listen_url=postgres_url,
        stabilize_database_prepare=False,
    )
    assert not any(
        "pooler" in said for said in problems(examine_database(listening.store, listening.settings))
    )

    prepared = make_engine(stabilize_database_url=pooled_url)
    loses = errors(examine_database(prepared.store, prepared.settings))
    version = subprocess.run(["pgbouncer", "--version"], capture_output=True, text=True, check=True).stdout
    old = tuple(map(int, re.findall(r"\d+", version)[:2])) < (1, 21)
    assert bool(loses) is old


def test_messages_that_nobody_sends(make_engine: Any, postgres_url: str) -> None:
    engine = make_engine()
    engine.dispatcher.send(StartWorkflow(workflow_id="01ARZ3NDEKTSV4RRFFQ69G5FAV"))
    plain = plain_address(postgres_url)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("UPDATE stabilize_messages SET send_at = now() - interval '1 hour'")
    found = examine(engine, timeout=0.5)
    assert any(
        re.match(r"1 messages should have been sent, the first 36\d\d s ago", x) for x in errors(found)
    )


def test_sqlite_with_workers(checkup: Checkup, tmp_path: Any) -> None:
    assert "SQLite with Celery workers" in errors(
        checkup(stabilize_database_url=f"sqlite:///{tmp_path}/a.db")
    )


# ---------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("conf", "level", "what"),
    [
        ({"accept_content": ["msgpack"]}, "error", "accept_content is ['msgpack']"),
        ({"accept_content": ["json", "pickle"]}, "warning", "accept_content is ['json', 'pickle']"),
        ({"task_always_eager": True}, "error", "task_always_eager is True"),
        ({"broker_channel_error_retry": False}, "warning", "broker_channel_error_retry is False"),
        (
            {"broker_connection_retry_on_startup": None},
            "warning",
            "broker_connection_retry_on_startup is None",
        ),
        ({"broker_heartbeat": 120}, "warning", "broker_heartbeat is 120"),
        ({"broker_heartbeat": 0}, "warning", "broker_heartbeat is 0"),
        ({"broker_transport_options": {}}, "warning", "broker_transport_options is {}"),
        ({"worker_soft_shutdown_timeout": 0.0}, "warning", "worker_soft_shutdown_timeout is 0.0"),
        (
            {"worker_pool": "threads"},
            "error",
            "worker_cancel_long_running_tasks_on_connection_loss is True",
        ),
        (
            {"worker_cancel_long_running_tasks_on_connection_loss": False},
            "warning",
            "worker_cancel_long_running_tasks_on_connection_loss is False",
        ),
        ({"worker_enable_remote_control": False}, "warning", "worker_enable_remote_control is False"),
        ({"worker_pool": "solo"}, "error", "worker_pool is 'solo'"),
        ({"task_default_queue_type": "quorum"}, "warning", "task_default_queue_type is 'quorum'"),
        ({"result_backend": "rpc://"}, "warning", "task_ignore_result is False"),
        (
            {"task_time_limit": 60},
            "warning",
            "task_time_limit is 60 s, stabilize_task_time_limit 14400 s",
        ),
        (
            {"stabilize_lease": 5.0},
            "warning",
            "stabilize_lease is 5 s, stabilize_heartbeat 3 s",
        ),
        (
            {"task_annotations": {"*": {"acks_late": False}}},
            "error",
            "the engine's Celery tasks (",
        ),
        (
            {"task_annotations": {"*": {"rate_limit": "10/m"}}},
            "error",
            "the engine's Celery tasks (all) have rate_limit = '10/m' instead of None",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_does_not_fit(make_engine: Any, conf: dict[str, Any], level: str, what: str) -> None:
    from stabilize_celery.contrib.doctor import examine_configuration

    def check(**more: Any) -> list[Any]:
        engine = make_engine(broker_url="amqp://127.0.0.1:1//", **more)
        return examine_configuration(engine.app, engine.settings)

    assert problems(check()) == []
    found = [one for one in check(**conf) if one.what.startswith(what)]
    assert [str(one.level) for one in found] == [level]
    assert found[0].advice
    assert found[0].why


def test_routes_set_after_the_first_use(make_engine: Any) -> None:
    from stabilize_celery.contrib.doctor import examine_configuration

    engine = make_engine()
    _ = engine.app.conf.task_routes
    engine.app.conf.task_routes = {"shop.*": {"queue": "shop"}}
    found = examine_configuration(engine.app, engine.settings)
    assert problems(found) == ["task_routes sends the engine's Celery tasks to queue celery"]


def test_tasks_that_hold_their_message(make_engine: Any) -> None:
    from stabilize_celery.contrib.doctor import examine_configuration

    engine = make_engine()

    def work() -> None: ...

    engine.app.task(name="shop.long", acks_late=True, shared=False)(work)
    engine.app.task(name="shop.short", acks_late=True, time_limit=60, shared=False)(work)
    engine.app.task(name="shop.early", shared=False)(work)
    found = examine_configuration(engine.app, engine.settings)
    assert problems(found) == ["shop.long: acknowledged late, with no time limit below 1800 s"]


# ---------------------------------------------------------------------------------------------- the command


def test_the_command_tells_people(tmp_path: Any) -> None:
    with Stabilize.embedded(f"sqlite:///{tmp_path}/a.db"):
        pass
    runner = CliRunner()
    well = runner.invoke(main, ["--database-url", f"sqlite:///{tmp_path}/a.db", "doctor"])
    assert well.exit_code == 0
    assert "✔ no message is overdue" in well.stdout
    assert "0 errors, 0 warnings" in well.stdout
    ill = runner.invoke(main, ["--database-url", f"sqlite:///{tmp_path}/none/a.db", "doctor"])
    assert ill.exit_code == 1
    assert "✖ not reachable: " in ill.stdout
    assert "1 errors" in ill.stdout
