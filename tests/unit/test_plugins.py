"""The seam for features that the engine does not know."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from typing import Any

import click
import pytest
from click.testing import CliRunner

from stabilize_celery import Stabilize, StageExecution, TransientError, Workflow, cli, plugins
from stabilize_celery.errors import ConfigurationError
from stabilize_celery.plugins import Plugin
from stabilize_celery.settings import Settings


class Recorder(Plugin):
    """Writes down what it is called with."""

    calls: list[Any] = []

    def task_types(self) -> dict[str, Any]:
        return {"hello": lambda stage: {"greeting": "hello"}}

    def connect(self, engine: Stabilize) -> None:
        engine.observe(lambda transitions: self.calls.extend(each.event for each in transitions))

    def attempt_hook(self, settings: Settings) -> plugins.AttemptHook:
        return self._attempt

    @contextmanager
    def _attempt(self, run: Any, stage: Any, task: Any, hook: str) -> Iterator[Callable[[Any], None]]:
        self.calls.append(("entered", stage.ref_id, task.implementing_class, run.attempt, hook))
        yield lambda outcome: self.calls.append(("ended", outcome.verdict.value))
        self.calls.append("left")

    def starting(self, engine: Stabilize, workflows: Any) -> None:
        self.calls.append([workflow.name for workflow in workflows])

    def close(self, engine: Stabilize) -> None:
        self.calls.append("closed")


class Failing(Plugin):
    """Its attempt hooks fail at every moment."""

    def attempt_hook(self, settings: Settings) -> plugins.AttemptHook:
        return self._attempt

    @contextmanager
    def _attempt(self, run: Any, stage: Any, task: Any, hook: str) -> Iterator[Callable[[Any], None]]:
        if run.attempt == 1:
            raise OSError("at the beginning")

        def ended(outcome: Any) -> None:
            raise OSError("when it is called")

        yield ended
        raise OSError("at the end")


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The entry points of the process: name -> object."""
    offered: dict[str, str] = {}

    def entry_points(*, group: str, **_: Any) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in offered.items()]

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    plugins._loaded.cache_clear()
    monkeypatch.setattr(Recorder, "calls", [])
    yield offered
    plugins._loaded.cache_clear()


def order(kind: str) -> Workflow:
    return Workflow.create("shop", "order", [StageExecution.single("a", kind)])


def test_a_plugin_takes_part(offered: dict[str, str]) -> None:
    offered["recorder"] = f"{__name__}:Recorder"
    with Stabilize.embedded(concurrency=1) as engine:
        run = engine.run(order("hello"), timeout=30)
        assert run.workflow().stages[0].outputs == {"greeting": "hello"}
        assert not engine.registry.has_own_types
    calls = Recorder.calls
    entered = ("entered", "a", "hello", 1, "")
    assert [call for call in calls if not isinstance(call, str)] == [
        ["order"],
        entered,
        ("ended", "returned"),
    ]
    assert calls.index("left") > calls.index(("ended", "returned"))
    assert calls[-1] == "closed"
    assert "workflow" in calls, "it observes as well"


def test_attempt_hooks_that_fail_cost_no_attempt(
    offered: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    offered |= {"failing": f"{__name__}:Failing", "recorder": f"{__name__}:Recorder"}
    tries: list[int] = []

    def flaky(stage: StageExecution) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise TransientError("later")

    with Stabilize.embedded(concurrency=1, retry_delay=0.01, retry_delay_max=0.01) as engine:
        engine.registry.register("flaky", flaky)
        assert engine.run(order("flaky"), timeout=30).status.name == "SUCCEEDED"
    assert len(tries) == 2
    assert [call for call in Recorder.calls if call[0] == "ended"] == [
        ("ended", "retry"),
        ("ended", "returned"),
    ]
    told = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert told == ["at the beginning", "when it is called", "at the end"]


def test_without_hooks_nothing_is_entered(offered: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stabilize_celery.worker.attempt.watched", None)
    with Stabilize.embedded(concurrency=1) as engine:
        assert engine.run(order("noop"), timeout=30).status.name == "SUCCEEDED"


def test_a_plugin_that_cannot_be_loaded_is_an_error_in_the_log(
    offered: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    offered |= {"gone": "shop.gone:Plugin", "wrong": "builtins:dict", "recorder": f"{__name__}:Recorder"}
    with caplog.at_level(logging.ERROR), Stabilize.embedded() as engine:
        engine.run(order("hello"), timeout=30)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "the plugin 'gone' is left out",
        "the plugin 'wrong' is left out",
    ]
    assert "shop.gone:Plugin: ModuleNotFoundError" in caplog.text


@pytest.mark.parametrize(
    ("setting", "value", "name"),
    [
        ("metrics_port", 9464, "prometheus"),
        ("tracing", True, "opentelemetry"),
        ("send_events", True, "events"),
    ],
)
def test_a_setting_without_its_plugin_is_refused(
    offered: dict[str, str], setting: str, value: Any, name: str
) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"stabilize_{setting} needs the plugin '{name}', .*pip install"
    ):
        Stabilize.embedded(**{setting: value})
    plugins._loaded.cache_clear()
    offered[name] = "shop.gone:Plugin"
    with pytest.raises(ConfigurationError, match=rf"'{name}', which cannot be loaded from shop.gone:Plugin"):
        Stabilize.embedded(**{setting: value})


def test_a_command_of_another_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command("page", help="Page someone.")
    def page() -> None:
        click.echo("paged")

    monkeypatch.setattr(sys.modules[__name__], "page", page, raising=False)
    values = {"page": f"{__name__}:page", "gone": "shop.gone:command", "doctor": f"{__name__}:page"}

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        found = [EntryPoint(each, value, group) for each, value in values.items()]
        return [each for each in found if name in (None, each.name)]

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    monkeypatch.setattr(cli, "entry_points", entry_points)
    assert CliRunner().invoke(cli.main, ["page"]).output == "paged\n"
    gone = CliRunner().invoke(cli.main, ["gone"])
    assert (gone.exit_code, "the command gone cannot be loaded from shop.gone:command" in gone.output) == (
        1,
        True,
    )
    assert "did you mean 'page'" in CliRunner().invoke(cli.main, ["pages"]).output
    del values["gone"]
    assert "Page someone." in CliRunner().invoke(cli.main, ["--help"]).output
    assert "Check broker" in CliRunner().invoke(cli.main, ["doctor", "--help"]).output


def test_every_plugin_of_the_project_can_be_loaded() -> None:
    assert {entry.name for entry in plugins.entry_points(group=plugins.GROUP)} == plugins._loaded()[0].keys()
