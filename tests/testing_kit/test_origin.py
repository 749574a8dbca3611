"""Where the fixture finds the engine of the application."""

from __future__ import annotations

import sys

import pytest
from celery import Celery

from stabilize_celery import Stabilize
from stabilize_celery.errors import ConfigurationError
from stabilize_celery.testing.kit import find_engine, settings_of

MODULES = {
    "kit_shop": """
from celery import Celery
from stabilize_celery import Stabilize
app = Celery("kit_shop", set_as_current=False)
stabilize = Stabilize(app)
also = stabilize
number = 3
place = "kit_shop"
""",
    "kit_empty": "",
    "kit_two": "from stabilize_celery import Stabilize\na, b = Stabilize(), Stabilize()",
    "kit_bare": "from celery import Celery\napp = Celery('bare', set_as_current=False)",
}


@pytest.fixture(autouse=True)
def _modules(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("place", ["kit_shop", "kit_shop:app", "kit_shop:stabilize"])
def test_an_engine_is_found_by_its_place(place):
    found = find_engine(place)
    assert found is sys.modules["kit_shop"].stabilize


def test_an_engine_is_found_by_itself_and_by_its_app():
    app = Celery("here", set_as_current=False)
    stabilize = Stabilize(app)
    assert find_engine(app) is find_engine(stabilize) is stabilize
    assert find_engine(None) is find_engine("") is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("kit_shop:nothing", "module kit_shop has no 'nothing'"),
        ("kit_shop:number", "must be a Celery app, a Stabilize, or text such as 'shop:app', not 3"),
        ("kit_shop:place", "'kit_shop:place', which is 'kit_shop' and no app"),
        ("kit_empty", "a module with 0 Stabilize objects"),
        ("kit_two", "with 2 Stabilize objects; name the one that is meant, as in kit_two:stabilize"),
        ("kit_bare:app", "no Stabilize is installed on app 'bare'"),
        (3, "must be a Celery app"),
    ],
)
def test_an_engine_that_is_not_there_is_told(source, message):
    with pytest.raises(ConfigurationError) as caught:
        find_engine(source)
    assert message in str(caught.value)


def test_settings_of_the_place_stay_there():
    engine = Stabilize.embedded("sqlite://", max_attempts=3, create_tables=False)
    taken = settings_of(engine)
    assert taken["max_attempts"] == 3
    assert "database_url" not in taken
    assert settings_of(None) == settings_of(Stabilize()) == {}
    engine.close()


def test_an_app_that_is_configured_wrongly_is_told():
    app = Celery("wrong", set_as_current=False)
    app.conf.stabilize_max_attempts = "many"
    with pytest.raises(ConfigurationError, match="stabilize_max_attempts"):
        settings_of(Stabilize(app))
