"""The command line as people use it: real processes, a real broker, real workers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.worker import ROOT, WorkerProcess

SHOP = """\
import os
from celery import Celery
from stabilize_celery import Stabilize, TaskResult

app = Celery("shop", broker=os.environ["BROKER"])
app.conf.stabilize_database_url = os.environ["DATABASE"]
stabilize = Stabilize(app)

@stabilize.task("charge")
def charge(stage):
    return {"charged": stage.execution.context.get("amount", 5)}

@stabilize.task("approve")
def approve(stage):
    if "_signal_name" in stage.context:
        return {"by": stage.context["_signal_data"]["by"]}
    return TaskResult.suspend()
"""
ORDER = """\
application: shop
name: order
stages:
  - {ref: charge, type: charge}
  - {ref: approve, type: approve, requires: charge}
"""
FLOW = """\
from stabilize_celery import StageExecution, Task, TaskResult, Workflow

class Poll(Task):
    def execute(self, stage):
        print("polled", flush=True)
        return TaskResult.running()
    def on_cancel(self, stage):
        print("told to stop", flush=True)

tasks = {"make": lambda stage: {"made": 3}, "poll": Poll}
workflow = Workflow.create("shop", "flow", [StageExecution.single("a", "WHAT")])
"""
STANDALONE = (str(Path(sys.executable).with_name("stabilize-celery")),)
CELERY = (sys.executable, "-m", "celery")


class Shell:
    """Runs commands in a folder with an app in it."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        unset = {"STABILIZE_DATABASE_URL", "APP"}
        inherited = {name: value for name, value in os.environ.items() if name not in unset}
        self.env = {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "160",
            "PYTHONIOENCODING": "utf-8",
            **env,
        }

    def __call__(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def ok(self, *command: str, **env: str) -> str:
        done = self(*command, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refused(self, *command: str, code: int = 1, **env: str) -> str:
        """The message of a command that must fail."""
        done = self(*command, **env)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "order.yaml").write_text(ORDER)
    (tmp_path / "flow.py").write_text(FLOW.replace("WHAT", "make"))
    (tmp_path / "poll.py").write_text(FLOW.replace("WHAT", "poll"))
    return tmp_path


@pytest.fixture
def alone(folder: Path) -> Shell:
    """No broker, no database server."""
    return Shell(folder, BROKER="amqp://127.0.0.1:1//", DATABASE=f"sqlite:///{folder}/shop.db")


@pytest.fixture
def shop(folder: Path, empty_postgres_url: str, broker_url: str) -> Shell:
    """The app's own database and broker; the tables are made by its command."""
    shell = Shell(folder, BROKER=broker_url, DATABASE=empty_postgres_url)
    assert "from no tables" in shell.ok(*CELERY, "-A", "shop", "stabilize", "migrate")
    return shell


# ---------------------------------------------------------------------------------------------- embedded


def test_run_a_file(alone: Shell) -> None:
    said = alone.ok(*STANDALONE, "run", "flow.py")
    assert re.match(r"✔ shop/flow  SUCCEEDED .*\n└── ✔ a  SUCCEEDED", said)
    assert re.search(r"^made +3$", said, re.MULTILINE)
    assert "\x1b" not in said, "escape codes in a pipe"


def test_the_same_commands_on_celery_without_an_app(alone: Shell) -> None:
    assert "✔ a  SUCCEEDED" in alone.ok(*CELERY, "stabilize", "run", "flow.py")
    assert "name the app with -A" in alone.refused(*CELERY, "stabilize", "list", code=2)


def test_celery_lists_the_commands_and_complains_of_nothing(alone: Shell) -> None:
    done = alone(*CELERY, "--help")
    assert re.search(r"^ +stabilize +Durable workflows", done.stdout, re.MULTILINE)
    assert done.stderr == ""
    assert re.search(r"^ +signal +Send a signal", alone.ok(*CELERY, "stabilize", "--help"), re.MULTILINE)


def test_what_celery_imports_for_each_of_its_commands_is_little(alone: Shell) -> None:
    code = "import stabilize_celery.cli, sys; print(*sys.modules)"
    loaded = set(alone.ok(sys.executable, "-c", code).split())
    assert not loaded & {"alembic", "stabilize_celery.cli.base", "stabilize_celery.cli.run"}


def test_a_database_file_is_kept_and_continued(alone: Shell) -> None:
    named = (*STANDALONE, "--database-url", "sqlite:///kept.db")
    made = json.loads(alone.ok(*named, "run", "flow.py", "--json"))
    shown = json.loads(alone.ok(*STANDALONE, "list", "--json", STABILIZE_DATABASE_URL="sqlite:///kept.db"))
    assert [found["id"] for found in shown] == [made["id"]]


@pytest.mark.parametrize("database", [(), ("--database-url", "sqlite:///kept.db")])
def test_an_interrupt_ends_a_run(alone: Shell, database: tuple[str, ...]) -> None:
    process = subprocess.Popen(
        [*STANDALONE, *database, "run", "poll.py"],
        cwd=alone.folder,
        env=alone.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background lets them ignore the signal, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "polled\n"
        process.send_signal(signal.SIGINT)
        said, complained = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in complained
    if database:
        assert re.search(r"Error: interrupted; `run FILE --continue \w+` goes on with it", complained)
    else:
        assert "told to stop" in said
        assert re.search(
            r"Workflow \w+ was canceled, because it was interrupted; it was kept in memory", complained
        )


# ---------------------------------------------------------------------------------------------- with workers


def test_a_workflow_through_workers(
    shop: Shell, start_worker: Callable[..., WorkerProcess], folder: Path
) -> None:
    def ask(*arguments: str) -> Any:
        return json.loads(shop.ok(*CELERY, "-A", "shop", "stabilize", *arguments, "--json"))

    start_worker("shop:app", cwd=folder, env=shop.env, pool="threads", concurrency=2)
    started = shop.ok(
        *CELERY, "-A", "shop", "stabilize", "start", "order.yaml", "--context", '{"amount": 7}'
    ).strip()
    assert [found["id"] for found in ask("list", "--application", "shop")] == [started]
    # Kept until the stage waits for it.
    assert ask("signal", started[-8:], "approve", "yes", '{"by": "kim"}')["accepted"] is True
    watched = shop.ok(*CELERY, "-A", "shop", "stabilize", "watch", started, "--timeout", "30")
    assert "✔ shop/order  SUCCEEDED" in watched
    shown = ask("show", started, "--history")
    assert shown["outputs"] == {"charged": 7, "by": "kim"}
    assert ("stage", "approve", "SUCCEEDED") in [(e["event"], e["stage"], e["to"]) for e in shown["history"]]
    assert "classDef SUCCEEDED" in shop.ok(*CELERY, "-A", "shop", "stabilize", "graph", started)


def test_run_and_cancel_through_workers(
    shop: Shell, start_worker: Callable[..., WorkerProcess], folder: Path
) -> None:
    start_worker("shop:app", cwd=folder, env=shop.env, pool="threads", concurrency=2)
    first = json.loads(shop.ok(*STANDALONE, "-A", "shop:app", "start", "order.yaml", "--json"))["id"]
    shop.ok(*STANDALONE, "-A", "shop:app", "cancel", first, "--user", "kim", "--reason", "no")
    ended = shop(*STANDALONE, "-A", "shop:app", "watch", first, "--timeout", "30")
    assert ended.returncode == 1
    assert "canceled by kim: no" in ended.stdout
    # What is written without the app reaches its workers too.
    url = shop.env["DATABASE"]
    second = shop.ok(*STANDALONE, "--database-url", url, "start", "order.yaml").strip()
    signal_it = ("signal", second, "approve", "yes", '{"by": "robin"}')
    shop.ok(*STANDALONE, "--database-url", url, *signal_it)
    said = shop.ok(*STANDALONE, "--database-url", url, "watch", second, "--timeout", "30")
    assert re.search(r'^by +"robin"', said, re.MULTILINE)


def test_run_on_an_app_leaves_the_work_to_its_workers(
    shop: Shell, start_worker: Callable[..., WorkerProcess], folder: Path
) -> None:
    (folder / "charge.json").write_text('{"stages": [{"ref": "c", "type": "charge"}]}')
    worker = start_worker("shop:app", cwd=folder, env=shop.env, pool="threads", concurrency=2)
    said = shop.ok(*STANDALONE, "-A", "shop", "run", "charge.json", "--timeout", "30")
    assert re.search(r"^charged +5", said, re.MULTILINE)
    worker.wait_log("stabilize.RunTask")


def test_start_while_the_broker_is_down(shop: Shell) -> None:
    started = shop.ok(
        *CELERY, "-A", "shop", "stabilize", "start", "order.yaml", BROKER="amqp://127.0.0.1:1//"
    )
    found = json.loads(shop.ok(*CELERY, "-A", "shop", "stabilize", "list", "--json"))
    assert [(one["id"], one["status"]) for one in found] == [(started.strip(), "NOT_STARTED")]


# ---------------------------------------------------------------------------------------------- bad input


def test_apps_that_cannot_be_used(alone: Shell, folder: Path) -> None:
    (folder / "bare.py").write_text("from celery import Celery\napp = Celery('bare')\n")
    (folder / "broken.py").write_text("import no_such_thing\n")
    assert "no Stabilize is installed on app 'bare'" in alone.refused(
        *CELERY, "-A", "bare", "stabilize", "list"
    )
    assert "no Stabilize is installed on app 'bare'" in alone.refused(*STANDALONE, "-A", "bare", "list")
    said = alone.refused(*STANDALONE, "-A", "nowhere", "list")
    assert said.startswith("Error: app nowhere cannot be loaded: ModuleNotFoundError")
    said = alone.refused(*STANDALONE, "-A", "broken", "list")
    assert re.search(
        r"app broken cannot be loaded: .*No module named 'no_such_thing' \(.*broken.py:1\)", said
    )


def test_databases_that_cannot_be_used(alone: Shell, empty_postgres_url: str) -> None:
    celery = (*CELERY, "-A", "shop", "stabilize")
    said = alone.refused(*celery, "list", DATABASE=empty_postgres_url)
    assert re.search(
        r"tables of stabilize_celery are missing .* run `celery -A <your app> stabilize migrate`", said
    )
    said = alone.refused(*celery, "start", "order.yaml", DATABASE="postgresql://127.0.0.1:1/shop")
    assert "database postgresql+psycopg://127.0.0.1:1/shop cannot be reached" in said
    assert len(said.splitlines()) == 1


def test_files_and_arguments_that_cannot_be_used(shop: Shell, folder: Path) -> None:
    celery = (*CELERY, "-A", "shop", "stabilize")
    (folder / "typo.yaml").write_text("stages: [{ref: c, type: chrage}]")
    (folder / "broken.yaml").write_text("stages: [")
    said = shop.refused(*celery, "start", "typo.yaml")
    assert "stage c" in said
    assert "no task type 'chrage' is registered, did you mean 'charge'?" in said
    assert re.match(r"Error: broken.yaml:\d+:\d+: ", shop.refused(*celery, "start", "broken.yaml"))
    assert shop.refused(*celery, "start", "none.yaml") == "Error: none.yaml: there is no such file\n"
    assert json.loads(shop.ok(*celery, "list", "--json")) == [], "something was started"
    started = shop.ok(*celery, "start", "order.yaml").strip()
    assert "is not JSON" in shop.refused(*celery, "signal", started, "approve", "yes", "{by: kim}", code=2)
    wrong = started[:-1] + ("0" if started[-1] != "0" else "1")
    assert f"did you mean {started}?" in shop.refused(*celery, "show", wrong)
