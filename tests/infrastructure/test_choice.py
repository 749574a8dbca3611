"""Where the servers come from, and that nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from tests import services
from tests.processes import wait_until
from tests.services import NotOurs, PostgresService, RabbitService, ServicesMissing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No URL, no binaries, no Docker engine."""
    monkeypatch.delenv("STABILIZE_TEST_DATABASE_URL", raising=False)
    monkeypatch.delenv("STABILIZE_TEST_BROKER_URL", raising=False)
    monkeypatch.setattr(services, "postgres_binaries", lambda: None)
    monkeypatch.setattr(services, "rabbit_scripts", lambda: None)
    monkeypatch.setattr(services, "docker_answers", lambda: False)


@pytest.mark.usefixtures("bare_machine")
def test_a_missing_server_fails_with_what_to_install() -> None:
    with pytest.raises(ServicesMissing, match="apt-get install postgresql"):
        services.choose_postgres()
    with pytest.raises(ServicesMissing, match="apt-get install rabbitmq-server"):
        services.choose_rabbit()


def test_a_docker_engine_is_the_last_resort(bare_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "docker_answers", lambda: True)
    assert isinstance(services.choose_postgres(), services.ComposePostgres)
    assert isinstance(services.choose_rabbit(), services.ComposeRabbit)


def test_a_server_given_by_url_is_used_and_never_restarted(
    postgres_service: PostgresService, rabbit_service: RabbitService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STABILIZE_TEST_DATABASE_URL", postgres_service.url)
    monkeypatch.setenv("STABILIZE_TEST_BROKER_URL", rabbit_service.url)
    monkeypatch.setenv("STABILIZE_TEST_BROKER_API", rabbit_service.api)
    database, broker = services.choose_postgres(), services.choose_rabbit()
    database.start()
    broker.start()
    database.create_database("by_url")
    database.drop_database("by_url")
    broker.add_vhost("by_url")
    broker.delete_vhost("by_url")
    for action in (database.restart, database.kill, broker.restart, broker.kill, broker.wipe_data):
        with pytest.raises(NotOurs):
            action()


def test_a_killed_run_leaves_no_server_and_no_folder(postgres_service: PostgresService) -> None:
    if not isinstance(postgres_service, services.LocalPostgres):
        pytest.fail("this test needs the installed PostgreSQL binaries")
    program = textwrap.dedent(
        """
        import os, signal
        from tests.services import choose_postgres
        service = choose_postgres()
        service.start()
        print(service.pid, service._folder, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    pid, folder = done.stdout.split()
    wait_until(lambda: not psutil.pid_exists(int(pid)), 10, "the forgotten server's end")
    wait_until(lambda: not Path(folder).exists(), 10, "the forgotten folder's removal")
