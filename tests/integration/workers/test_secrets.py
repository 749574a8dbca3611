"""What users pass to workflows stays in the database, and what is secret is not shown to people."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from kombu import Connection, Exchange, Queue
from sqlalchemy import text

from stabilize_celery import Stabilize, StageExecution, TaskResult, TransientError, Workflow
from stabilize_celery.cli import main
from stabilize_celery.errors import StabilizeError
from tests.conformance.harness import flow, stage
from tests.integration.workers.conftest import Deploy
from tests.services import RabbitService

MARKER = "x5-marker-of-user-data"
SECRET = "hunter2-tr0ub4dor"


class Tap:
    """Reads a copy of every message that is published while it is open, whatever the exchange."""

    def __init__(self, url: str) -> None:
        self.seen: list[str] = []
        self._connection = Connection(url)
        self._stopping = threading.Event()
        self._channel = self._connection.channel()
        trace = Exchange("amq.rabbitmq.trace", type="topic", durable=True, internal=True, no_declare=True)
        self._queue = Queue("tap", trace, routing_key="publish.#", auto_delete=True)(self._channel)
        self._queue.declare()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while True:
            message = self._queue.get(no_ack=True)
            if message is not None:
                self.seen.append(repr((message.headers, message.properties, bytes(message.body))))
            elif self._stopping.wait(0.05):
                return

    def close(self) -> None:
        """Everything published until now has been read."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._thread.join()
            self._connection.release()


@pytest.fixture
def tap(rabbit_service: RabbitService, broker_url: str) -> Iterator[Tap]:
    vhost = broker_url.rsplit("/", 1)[1]
    answer = httpx.put(
        f"{rabbit_service.api}/api/vhosts/{vhost}",
        json={"tracing": True},
        auth=(rabbit_service.user, rabbit_service.password),
        timeout=30,
        trust_env=False,
    )
    answer.raise_for_status()
    opened = Tap(broker_url)
    yield opened
    opened.close()


def test_the_broker_and_the_log_never_see_user_data(deploy: Deploy, tap: Tap) -> None:
    deployment = deploy(worker_send_task_events=True, task_send_sent_event=True, inline=False)
    engine = deployment.engine
    worker = deployment.worker(arguments=["-E"])
    run = engine.start(
        flow(
            stage("a", outputs={"out": MARKER}, own=MARKER),
            stage(
                "b",
                "script",
                after=["a"],
                do=[
                    {"raise": "TransientError", "message": MARKER},
                    {"return": "suspend"},
                    {"return": "success"},
                ],
            ),
            stage("c", "fail", after=["b"], message=MARKER, continuePipelineOnFailure=True),
            context={"given": MARKER},
        )
    )
    engine.wait_status(run, "b", "SUSPENDED")
    run.signal("b", "go", {"data": MARKER})
    result = engine.settle(run)
    assert result.status.is_complete
    tap.close()

    assert any("stabilize.RunTask" in seen for seen in tap.seen)
    assert any("task-succeeded" in seen for seen in tap.seen)
    assert [seen for seen in tap.seen if MARKER in seen] == []
    received = [line for line in worker.output.splitlines() if "received" in line or "succeeded" in line]
    assert received
    assert not [line for line in received if MARKER in line]


@pytest.fixture
def engine(tmp_path: Any) -> Iterator[Stabilize]:
    with Stabilize.embedded(f"sqlite:///{tmp_path}/flows.db", retry_delay=0.01) as made:
        yield made


def told_of_a_failure(engine: Stabilize, caplog: pytest.LogCaptureFixture, **context: Any) -> tuple[Any, str]:
    """A run whose task fails with everything it knows in its errors, and all that people see of it."""
    failed = []

    def connect(stage: StageExecution) -> TaskResult:
        assert stage.context["password"] == SECRET, "the task needs the real one"
        failed.append(1)
        if len(failed) == 1:
            raise TransientError(f"cannot log in with {SECRET}", context_update={"tried": 1})
        raise ValueError(f"cannot log in with {SECRET}, {stage.context['url']}, api_key={SECRET}")

    engine.registry.register("connect", connect)
    engine.registry.register(
        "make", lambda stage: {"token": SECRET, "n": 1, "log": f"Authorization: Bearer {SECRET}"}
    )
    stages = [
        StageExecution.single("m", "make"),
        StageExecution.single(
            "c",
            "connect",
            {"password": SECRET, "url": f"postgresql://shop:{SECRET}@db/shop", **context},
            requires={"m"},
        ),
    ]
    with caplog.at_level("DEBUG"):
        run = engine.run(
            Workflow.create("shop", "login", stages, context={"nested": [{"client_secret": SECRET}]}),
            timeout=30,
        )
    url = engine.store.url
    outputs = [
        CliRunner()
        .invoke(main, ["--database-url", url, command, *([run.id] if command == "show" else []), *options])
        .output
        for command, options in [
            ("show", ["--history", "--outputs"]),
            ("show", ["--json", "--history"]),
            ("list", ["--json"]),
        ]
    ]
    return run, "\n".join([caplog.text, *outputs, json.dumps(run.history(), default=str)])


def test_secrets_are_hidden_from_people_and_given_to_tasks(
    engine: Stabilize, caplog: pytest.LogCaptureFixture
) -> None:
    run, seen = told_of_a_failure(engine, caplog)

    assert "cannot log in with ***" in seen
    assert SECRET not in seen
    stored = run.workflow()
    assert stored.stages[1].own_context["password"] == SECRET
    assert stored.stages[0].outputs["token"] == SECRET
    assert SECRET not in json.dumps(stored.stages[1].own_context["exception"])
    assert SECRET not in json.dumps(stored.stages[1].tasks[0].last_error)


def test_other_keys_can_be_named(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    with Stabilize.embedded(
        f"sqlite:///{tmp_path}/flows.db", retry_delay=0.01, redact_keys=("iban",)
    ) as engine:
        engine.registry.register("pay", lambda stage: 1 / 0 if stage.context["iban"] == "DE02-1203" else None)
        run = engine.run(
            Workflow.create("a", "n", [StageExecution.single("p", "pay", {"iban": "DE02-1203"})])
        )
        assert "DE02-1203" not in json.dumps(run.history(), default=str)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://shop:{SECRET}@127.0.0.1:1/shop",
        f"postgresql://shop@127.0.0.1:1/shop?password={SECRET}",
        f"mysql://shop:{SECRET}@127.0.0.1:1/shop",
        f"postgresql://shop:{SECRET}@127.0.0.1:notaport/shop",
        f"shop:{SECRET}@127.0.0.1",
        f"postgresql+nonsense://shop:{SECRET}@127.0.0.1:1/shop",
    ],
)
def test_errors_name_the_database_without_its_password(url: str) -> None:
    with pytest.raises(StabilizeError) as refused:
        Stabilize.embedded(url)
    assert SECRET not in str(refused.value)
    result = CliRunner().invoke(main, ["--database-url", url, "list"])
    assert result.exit_code == 1
    assert SECRET not in result.output


def test_celery_shows_its_configuration_without_our_password(deploy: Deploy) -> None:
    app = deploy(database=f"postgresql://shop:{SECRET}@127.0.0.1:1/shop").engine.stabilize.app
    assert app is not None
    assert app.conf.stabilize_database_url
    for shown in (
        app.bugreport(),
        app.conf.humanize(),
        str(app.conf.table(with_defaults=False, censored=True)),
    ):
        assert SECRET not in shown


def test_errors_of_statements_do_not_show_what_was_to_be_stored(engine: Stabilize) -> None:
    with (
        pytest.raises(Exception, match="no such table") as failed,
        engine.store.database.begin() as connection,
    ):
        connection.execute(text("INSERT INTO nowhere VALUES (:value)"), {"value": MARKER})
    assert MARKER not in str(failed.value)
