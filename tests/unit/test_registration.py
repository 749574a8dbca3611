"""Task types: found when a workflow is started, by import and by autodiscovery."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from celery import Celery

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery.errors import TaskNotFoundError


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
