"""Task types: found when a workflow is started, by import and by autodiscovery."""

from __future__ import annotations

import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from stabilize_celery import Stabilize, StageExecution, Task, TaskRegistry, TaskResult, Workflow
from stabilize_celery.errors import ConfigurationError, TaskNotFoundError
from stabilize_celery.settings import Settings


def workflow(type_name: str) -> Workflow:
    return Workflow.create("test", "types", [StageExecution.single("pay", type_name)])


def test_an_unknown_type_is_refused_at_the_start_with_a_suggestion() -> None:
    with Stabilize.embedded() as engine:
        engine.task("charge")(lambda stage: None)
        with pytest.raises(TaskNotFoundError, match=r"stage pay.*'chrage'.*did you mean 'charge'"):
            engine.start(workflow("chrage"))
        assert engine.find() == []


def test_a_process_without_types_leaves_it_to_the_workers(tmp_path: Path) -> None:
    app = Celery("client", broker="memory://", set_as_current=False)
    app.conf.stabilize_database_url = f"sqlite:///{tmp_path}/w.db"
    engine = Stabilize(app)
    engine.create_tables()
    run = engine.start(workflow("known_elsewhere"))
    assert run.workflow().stages[0].tasks[0].implementing_class == "known_elsewhere"
    engine.close()


def charge(stage: StageExecution) -> None:
    """A task at the top level of a module."""


def refund(stage: StageExecution) -> None:
    """Another."""


class Ship(Task):
    def execute(self, stage: StageExecution) -> TaskResult:
        return TaskResult.success()


def _again(source: Any) -> Any:
    """The same function or class, as a second import of its module makes it."""
    made: dict[str, Any] = {"__name__": source.__module__, "StageExecution": StageExecution, "Task": Task}
    made["TaskResult"] = TaskResult
    exec(textwrap.dedent(inspect.getsource(source)), made)
    return made[source.__name__]


def test_a_type_that_is_registered_twice_is_refused() -> None:
    registry = TaskRegistry()
    registry.register("pay", charge)
    with pytest.raises(
        ConfigurationError, match=r"'pay' is registered already: charge of .*, and now refund of"
    ):
        registry.register("pay", refund)
    with pytest.raises(ConfigurationError, match="now Ship of"):
        registry.register("pay", Ship)
    assert registry.resolve("pay").name == "charge"  # type: ignore[attr-defined]


def test_functions_made_within_others_are_not_taken_for_the_same() -> None:
    registry = TaskRegistry()
    registry.register("pay", lambda stage: None)
    with pytest.raises(ConfigurationError, match="give one of them another name"):
        registry.register("pay", lambda stage: None)


@pytest.mark.parametrize("source", [charge, Ship])
def test_a_module_may_be_imported_again(source: Any) -> None:
    registry = TaskRegistry()
    registry.register("pay", source)
    registry.register("pay", source)
    again = _again(source)
    registry.register("pay", again)
    assert getattr(registry.source("pay"), "function", registry.source("pay")) is again


def test_a_built_in_type_may_be_replaced_and_a_stand_in_says_so() -> None:
    with Stabilize.embedded() as engine:
        engine.registry.register("shell", charge)
        with pytest.raises(ConfigurationError, match="registered already"):
            engine.registry.register("shell", refund)
        engine.registry.register("shell", refund, replace=True)
        assert engine.registry.resolve("shell").name == "refund"  # type: ignore[attr-defined]


def test_a_deployment_may_do_without_types_that_run_programs() -> None:
    with Stabilize.embedded(builtin_tasks=["http"], check_types=False) as engine:
        for name in ("shell", "python", "docker", "ShellTask", "stabilize.tasks.shell"):
            with pytest.raises(
                TaskNotFoundError, match=r"left out of this deployment by .*stabilize_builtin_tasks"
            ):
                engine.start(workflow(name))
        assert engine.find() == []
        assert engine.registry.knows("http")
        with pytest.raises(TaskNotFoundError, match="left out"):
            engine.registry.resolve("shell")


def test_a_type_of_ones_own_takes_the_name_of_one_that_is_left_out() -> None:
    engine = Stabilize()
    engine.registry.register("shell", charge)
    engine._use(Settings.of(database_url="sqlite://", builtin_tasks=()))
    assert engine.registry.resolve("shell").name == "charge"  # type: ignore[attr-defined]


def test_a_worker_that_does_without_a_type_fails_its_stage() -> None:
    with Stabilize.embedded() as engine:
        run = engine.start(
            Workflow.create("t", "t", [StageExecution.single("a", "shell", {"command": "true"})])
        )
        engine.registry.exclude(["shell"])
        engine.processor.drain()
        assert "left out of this deployment" in run.workflow().stages[0].context["error"]


def test_there_is_no_such_built_in_type_to_choose() -> None:
    with pytest.raises(ConfigurationError, match="stabilize_builtin_tasks"):
        Settings.of(builtin_tasks="shell,ssh")
    assert Settings.of(builtin_tasks="shell, http").builtin_tasks == ("shell", "http")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"shop_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "app.py").write_text(
        "from celery import Celery\nfrom stabilize_celery import Stabilize\n"
        "app = Celery('shop', broker='memory://', set_as_current=False)\n"
        "app.conf.stabilize_database_url = 'sqlite://'\n"
        "stabilize = Stabilize(app)\n"
    )
    (folder / "stages.py").write_text(
        f"from {name}.app import stabilize\n\n@stabilize.task('charge')\ndef charge(stage):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def load(package: str) -> tuple[Celery, Stabilize]:
    __import__(f"{package}.app")
    module = sys.modules[f"{package}.app"]
    return module.app, module.stabilize


def test_autodiscovery_finds_stages_beside_tasks(package: str) -> None:
    app, engine = load(package)
    app.autodiscover_tasks([package])
    assert not engine.registry.knows("charge")
    app.loader.import_default_modules()
    assert engine.registry.knows("charge")


def test_imports_are_loaded_with_the_settings(package: str) -> None:
    app, engine = load(package)
    app.conf.stabilize_imports = (f"{package}.stages",)
    assert engine.settings.imports == (f"{package}.stages",)
    assert engine.registry.knows("charge")


def test_a_type_that_was_adopted_gives_way_to_one_of_the_engine_itself():
    with Stabilize.embedded() as shop, Stabilize.embedded() as tried:
        shop.task("charge")(lambda: {"by": "the shop"})
        tried.adopt(shop)
        tried.task("charge")(lambda: {"by": "the test"})
        run = tried.run(Workflow.create("shop", "order", [StageExecution.single("c", "charge")]), timeout=30)
        assert run.get(timeout=0) == {"by": "the test"}
        with pytest.raises(ConfigurationError, match="registered already"):
            tried.task("charge")(lambda: {"by": "another"})
