"""A shop whose workflows are watched: PostgreSQL, RabbitMQ, a worker, and Flowers in their several moods."""

from __future__ import annotations

import base64
import json
import re
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stabilize_celery import Stabilize, StageExecution, Workflow, WorkflowRun
from tests.contrib.flower import flower_app
from tests.processes import wait_until
from tests.services import PostgresService, RabbitService
from tests.worker import ROOT, WorkerProcess

APP = "tests.contrib.flower.flower_app"
USER, PASSWORD = "kim", "s3same"
AUTHENTICATED = f"--basic_auth={USER}:{PASSWORD}"
_VISIT = re.compile(r"Visit me at http://127\.0\.0\.1:(\d+)")


@dataclass
class Answer:
    """What an address answered."""

    status: int
    text: str
    headers: Any

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Flower:
    """A running Flower, as a program sees it."""

    process: WorkerProcess
    prefix: str = ""
    user: str | None = USER
    _port: str = field(default="", init=False)

    @property
    def host(self) -> str:
        if not self._port:
            found = _VISIT.search(self.process.wait_log(_VISIT, 90))
            assert found is not None
            self._port = found.group(1)
        return f"127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}{self.prefix}"

    @property
    def url_with_name(self) -> str:
        name = f"{USER}:{PASSWORD}@" if self.user else ""
        return f"http://{name}{self.host}{self.prefix}"

    def ask(
        self,
        path: str,
        body: Any = None,
        *,
        method: str | None = None,
        user: str | None = "",
        token: bool = True,
        **headers: str,
    ) -> Answer:
        """GET, or POST with a body; ``token=False`` leaves out what protects against other sites."""
        request = urllib.request.Request(self.url + path, method=method)
        if body is not None or method == "POST":
            request.data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
            request.add_header("Content-Type", "application/json")
            if token:
                request.add_header("Cookie", "_xsrf=made-up")
                request.add_header("X-XSRFToken", "made-up")
        who = self.user if user == "" else user
        if who is not None:
            secret = base64.b64encode(f"{who}:{PASSWORD}".encode()).decode()
            request.add_header("Authorization", f"Basic {secret}")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, answer.read().decode(), answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read().decode(), error.headers)


@dataclass
class Shop:
    """What the tests hold."""

    stabilize: Stabilize
    #: With basic authentication.
    flower: Flower
    #: Started with ``flowerconfig.py``, under a prefix, in read-only mode.
    read_only: Flower
    #: Without any authentication.
    open: Flower
    folder: Path

    def start(self, *stages: StageExecution, name: str = "order", **options: Any) -> WorkflowRun:
        return self.stabilize.start(Workflow.create("shop", name, list(stages), **options))

    def gate(self) -> Path:
        return self.folder / f"gate-{uuid.uuid4().hex}"

    def until(self, predicate: Callable[[], object], what: str) -> None:
        wait_until(lambda: bool(predicate()), 90, what)

    def until_status(self, run: WorkflowRun, ref: str, status: str) -> StageExecution:
        def stage() -> StageExecution:
            found = run.workflow().stage_by_ref_id(ref)
            assert found is not None
            return found

        self.until(lambda: stage().status.name == status, f"stage {ref} being {status}")
        return stage()


@contextmanager
def shop_running(
    postgres: PostgresService, template: str, rabbit: RabbitService, folder: Path
) -> Iterator[Shop]:
    """All of it while the block runs; the Flowers may still be on their way up."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    with ExitStack() as stack:
        database = postgres.create_database(name, template=template)
        stack.callback(postgres.drop_database, name)
        broker = rabbit.add_vhost(name)
        stack.callback(rabbit.delete_vhost, name)
        env = {flower_app.BROKER: broker, flower_app.DATABASE: database, "COLUMNS": "200"}

        def process(log: str, command: list[str] | None = None, **options: Any) -> WorkerProcess:
            made = WorkerProcess(APP, log=folder / log, env=env, command=command, **options)
            stack.callback(made.kill)
            return made.start()

        def flower(log: str, *arguments: str) -> WorkerProcess:
            celery = [sys.executable, "-m", "celery", "-A", APP]
            return process(log, [*celery, *arguments, "--port=0", "--address=127.0.0.1"])

        app, stabilize = flower_app.make_app(broker, database)
        stack.callback(app.close)
        stack.callback(stabilize.close)
        worker = process("worker.log", pool="threads", concurrency=4)
        config = f"--conf={ROOT / 'config' / 'flowerconfig.py'}"
        shop = Shop(
            stabilize,
            Flower(flower("flower.log", "stabilize", "flower", AUTHENTICATED)),
            Flower(
                flower("read-only.log", "flower", config, "--read_only", "--url_prefix=tools", AUTHENTICATED),
                prefix="/tools",
            ),
            Flower(flower("open.log", "stabilize", "flower"), user=None),
            folder,
        )
        worker.wait_ready(90)
        yield shop
