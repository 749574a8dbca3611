"""docker-compose.yml without Docker: every command in it is run here as a process, every path looked up."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests import services
from tests.processes import ChildProcess, free_port, run_successfully, temporary_folder, wait_ready
from tests.services import LocalPostgres, LocalRabbit, PostgresService
from tests.worker import WorkerProcess

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CELERY = [sys.executable, "-m", "celery"]


def command_of(service: str) -> list[str]:
    """The service's command with this interpreter's Celery in place of the container's."""
    command = SERVICES[service]["command"]
    assert command[0] == "celery"
    return [*CELERY, *command[1:]]


@pytest.fixture
def environment(broker_url: str, empty_postgres_url: str) -> dict[str, str]:
    return {
        **os.environ,
        "CELERY_BROKER_URL": broker_url,
        "STABILIZE_DATABASE_URL": empty_postgres_url,
        "PYTHONPATH": f"{CONFIG}:{ROOT}",
    }


@pytest.fixture
def migrated(environment: dict[str, str]) -> dict[str, str]:
    run_successfully(command_of("migrate"), env=environment, cwd=CONFIG)
    return environment


def test_the_services_of_a_deployment_are_there() -> None:
    assert set(SERVICES) == {"postgres", "rabbitmq", "migrate", "engine", "tasks", "flower"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_pinned_image_and_a_health_check(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[a-z-]+:\d+\.\d+(\.\d+)?(-[a-z]+)?", service["image"]), service["image"]
    if name != "migrate":
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    for needed in service.get("depends_on", {}):
        assert needed in SERVICES


@pytest.mark.parametrize("name", SERVICES)
def test_every_path_exists(name: str) -> None:
    service = SERVICES[name]
    if "build" in service:
        assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert source in COMPOSE["volumes"] or (ROOT / source).is_file(), source


def test_the_image_copies_what_exists_and_runs_without_privileges() -> None:
    lines = (CONFIG / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert copied
    for path in copied:
        assert (ROOT / path).exists(), path
    assert re.fullmatch(r"FROM python:\d+\.\d+\.\d+-slim-[a-z]+", lines[1])
    assert "USER stabilize" in lines


def test_postgresql_accepts_its_settings(postgres_service: PostgresService) -> None:
    if not isinstance(postgres_service, LocalPostgres):
        pytest.fail("this test needs the installed PostgreSQL binaries")
    folder = temporary_folder("settings", postgres_service.user)
    command = [str(postgres_service.binaries / "postgres"), "-D", str(postgres_service.data)]
    settings = folder / "postgresql.conf"
    settings.write_text((CONFIG / "postgresql.conf").read_text())
    settings.chmod(0o644)
    command += ["-c", f"config_file={settings}", "-C", "max_connections"]
    process = ChildProcess(command, log=folder / "log", cwd=folder, user=postgres_service.user)
    process.start()
    assert process.wait(10) == 0, process.tail()
    assert process.output().split()[-1] == "200"


@pytest.mark.slow
def test_rabbitmq_accepts_its_settings() -> None:
    scripts = services.rabbit_scripts()
    assert scripts is not None, "this test needs the installed RabbitMQ"
    broker = LocalRabbit(scripts, settings=(CONFIG / "rabbitmq.conf").read_text())
    broker.start()
    try:
        assert broker.setting("rabbit", "consumer_timeout") == "1800000"
    finally:
        broker.discard()


@pytest.mark.parametrize("name", ["engine", "tasks"])
def test_a_worker_starts_with_its_command(name: str, migrated: dict[str, str], tmp_path: Path) -> None:
    worker = WorkerProcess(
        "app", command=command_of(name), log=tmp_path / "worker.log", env=migrated, cwd=CONFIG
    )
    with worker:
        assert ".> stabilize" in worker.output
        check = (
            SERVICES[name]["healthcheck"]["test"][1].replace("$$", "$").replace("celery", " ".join(CELERY))
        )
        run_successfully(["sh", "-c", check], env=migrated, cwd=CONFIG)


@pytest.fixture
def flower(migrated: dict[str, str], tmp_path: Path) -> Iterator[str]:
    port = free_port()
    command = [
        part.replace("5555", str(port)).replace("0.0.0.0", "127.0.0.1") for part in command_of("flower")
    ]
    process = ChildProcess(command, log=tmp_path / "flower.log", env=migrated, cwd=CONFIG)
    url = f"http://127.0.0.1:{port}"
    process.start()
    try:
        wait_ready(process, lambda: _answers(f"{url}/healthcheck"), 30)
        yield url
    finally:
        process.kill_tree()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def test_flower_answers_its_health_check(flower: str, migrated: dict[str, str]) -> None:
    check = [
        part.replace("http://127.0.0.1:5555", flower) for part in SERVICES["flower"]["healthcheck"]["test"]
    ]
    assert check[:2] == ["CMD", "python"]
    run_successfully([sys.executable, *check[2:]], env=migrated)


def test_a_run_started_from_the_deployment_uses_both_workers(
    migrated: dict[str, str], tmp_path: Path, start_worker: Callable[..., WorkerProcess]
) -> None:
    for name in ("engine", "tasks"):
        start_worker("app", command=command_of(name), log=tmp_path / f"{name}.log", env=migrated, cwd=CONFIG)
    program = """
from app import stabilize
from stabilize_celery import StageExecution, Workflow
stage = StageExecution.single("hello", "python", context={"script": "RESULT = {'answer': 42}"})
run = stabilize.start(Workflow.create(application="compose", name="hello", stages=[stage]))
print(run.wait(60))
"""
    done = run_successfully([sys.executable, "-c", program], env=migrated, cwd=CONFIG)
    assert "SUCCEEDED" in done.stdout, done.stdout + done.stderr
