"""Deployments that are well, and others that are not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from sqlalchemy.engine import make_url

from stabilize_celery import Stabilize
from stabilize_celery.delivery.doctor import Finding, Level, examine
from tests.processes import ChildProcess, free_port, temporary_folder, wait_ready
from tests.services import _unprivileged_user

#: What docs/how-to/doctor.md recommends.
GOOD = {
    "accept_content": ["json"],
    "broker_channel_error_retry": True,
    "broker_connection_retry_on_startup": True,
    "broker_heartbeat": 20,
    "broker_transport_options": {"confirm_publish": True},
    "worker_soft_shutdown_timeout": 20,
    "worker_cancel_long_running_tasks_on_connection_loss": True,
}


def problems(found: list[Finding], area: str = "") -> list[str]:
    """What is wrong, in an area or in all."""
    return [one.what for one in found if one.level is not Level.OK and area in ("", one.area)]


def errors(found: list[Finding]) -> list[str]:
    return [one.what for one in found if one.level is Level.ERROR]


@pytest.fixture
def make_engine(postgres_url: str, broker_url: str) -> Iterator[Callable[..., Stabilize]]:
    """An engine on an app of good settings but for those given."""
    made: list[Stabilize] = []

    def make(**conf: Any) -> Stabilize:
        app = Celery("shop", broker=conf.pop("broker_url", broker_url), set_as_current=False)
        app.conf.update(GOOD)
        app.conf.update(stabilize_database_url=postgres_url)
        app.conf.update(conf)
        made.append(Stabilize(app))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
        assert engine.app is not None
        engine.app.close()


@pytest.fixture
def checkup(make_engine: Callable[..., Stabilize]) -> Callable[..., list[Finding]]:
    """What the doctor says of an app with such settings."""

    def check(**conf: Any) -> list[Finding]:
        return examine(make_engine(**conf), timeout=1.0)

    return check


@pytest.fixture(scope="session")
def pooler_port(postgres_service: Any) -> Iterator[int]:
    """The port of a PgBouncer in transaction mode before the tests' PostgreSQL."""
    binary = shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if binary is None:
        pytest.fail("the tests need PgBouncer: `apt-get install pgbouncer`")
    user = _unprivileged_user() if os.geteuid() == 0 else None
    folder = temporary_folder("pgbouncer", user)
    server, port = make_url(postgres_service.url), free_port()
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={server.host} port={server.port} user={server.username}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\npool_mode = transaction\nignore_startup_parameters = extra_float_digits\n"
    )
    (folder / "pgbouncer.ini").chmod(0o644)
    process = ChildProcess(
        [binary, str(folder / "pgbouncer.ini")], log=folder / "pgbouncer.log", cwd=folder, user=user
    )
    process.start()
    wait_ready(process, lambda: "process up" in process.output(), 30)
    yield port
    process.kill_tree()


@pytest.fixture
def pooled_url(pooler_port: int, postgres_url: str) -> str:
    return make_url(postgres_url).set(port=pooler_port).render_as_string(hide_password=False)
