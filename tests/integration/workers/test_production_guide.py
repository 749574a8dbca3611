"""docs/how-to/production.md: its unit files start a worker and stop it as the program that reads them would."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest

from stabilize_celery import WorkflowStatus as S
from tests.integration.workers import stops_app
from tests.integration.workers.conftest import Place
from tests.worker import ROOT, WorkerProcess, wait_until

PAGE = ROOT / "docs" / "how-to" / "production.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```ini\n(.+?)^```$", TEXT, re.MULTILINE | re.DOTALL)


class Unit:
    """What a block says of starting and stopping."""

    def __init__(self, block: str) -> None:
        parser = configparser.RawConfigParser(strict=False)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(block)
        self.is_systemd = parser.has_section("Service")
        section = dict(parser["Service" if self.is_systemd else "program:shop-worker"])
        self.command = section["ExecStart" if self.is_systemd else "command"]
        environment = section.get("Environment" if self.is_systemd else "environment", "")
        self.environment = dict(part.split("=", 1) for part in shlex.split(environment.replace(",", " ")))
        if self.is_systemd:
            self.signal = signal.Signals[section["KillSignal"]]
            self.whole_group = section["KillMode"] == "control-group"
            self.grace = float(section["TimeoutStopSec"])
        else:
            self.signal = signal.Signals["SIG" + section["stopsignal"]]
            self.whole_group = section["stopasgroup"] == "true"
            self.grace = float(section["stopwaitsecs"])

    def argv(self) -> list[str]:
        """The command, with this environment's Celery and the app of these tests."""
        line = self.command.replace("%H", "here").replace("%(process_num)d", "0")
        program, *arguments = shlex.split(line)
        assert program.endswith("/celery")
        arguments[arguments.index("-A") + 1] = "tests.integration.workers.stops_app"
        return [sys.executable, "-m", "celery", *arguments]


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in target]
    assert [target for target in targets if not (PAGE.parent / target).exists()] == []


def test_there_is_a_unit_of_each_kind() -> None:
    assert [Unit(block).is_systemd for block in BLOCKS] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=["systemd", "supervisord"])
def test_a_unit_is_started_and_stopped(place: Place, tmp_path: Path, block: str) -> None:
    """Its command in a process group, then its signal: the task is handed back, nothing is left when the grace ends."""
    unit = Unit(block)
    environment = {
        stops_app.BROKER: place.broker,
        stops_app.DATABASE: place.database,
        stops_app.FOLDER: str(place.folder),
        stops_app.MORE: json.dumps({"worker_soft_shutdown_timeout": 1.0}),
        **unit.environment,
    }
    log = tmp_path / "unit.log"
    name = "tests.integration.workers.stops_app"
    queues = ["-Q", "celery,stabilize,stabilize.tasks"]
    with WorkerProcess(name, log=log, command=[*unit.argv(), *queues], env=environment) as worker:
        run = place.start("function")
        pid = place.begun()[0]["pid"]
        other = place.worker("threads")
        if unit.whole_group:
            os.killpg(worker.pid, unit.signal)
        else:
            os.kill(worker.pid, unit.signal)
        second = place.begun(2, within=1.0 + 6.0)[1]
        worker.wait(unit.grace)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 10, "the end of its processes")
        place.open()
        assert run.wait(timeout=20) is S.SUCCEEDED
        assert second["pid"] == other.pid
        assert run.workflow().stages[0].tasks[0].attempts == 1
