"""Ours is in Flower's lists, once, in the right place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from flower import urls
from flower.views.error import NotFoundErrorHandler
from tornado.template import Loader

from stabilize_celery.contrib.flower import HERE, install
from stabilize_celery.contrib.flower.routes import ROUTES
from stabilize_celery.contrib.flower.views import FlowerLoader, with_tab

FLOWERS = Path(urls.settings["template_path"])


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "handlers", list(urls.handlers))
    monkeypatch.setattr(urls, "settings", dict(urls.settings))
    install()


@pytest.mark.usefixtures("installed")
def test_a_second_install_changes_nothing():
    before = list(urls.handlers)
    loader = urls.settings["template_loader"]
    install()
    assert urls.handlers == before
    assert urls.settings["template_loader"] is loader


@pytest.mark.usefixtures("installed")
def test_the_route_that_catches_everything_stays_last():
    assert urls.handlers[-1][1] is NotFoundErrorHandler
    assert urls.handlers[-1 - len(ROUTES) : -1] == ROUTES


def test_every_template_of_ours_and_of_flower_compiles():
    loader = FlowerLoader([HERE / "pages", FLOWERS])
    names = [path.name for folder in (HERE / "pages", FLOWERS) for path in folder.glob("*.html")]
    assert len(names) > 10
    for name in names:
        loader.load(name)


def test_our_templates_hide_none_of_flowers():
    ours = {path.name for path in (HERE / "pages").iterdir()}
    assert ours & {path.name for path in FLOWERS.iterdir()} == set()


def test_the_tab_stands_at_the_end_of_the_navigation():
    navigation = with_tab((FLOWERS / "navbar.html").read_text())
    shown = Loader(str(FLOWERS), autoescape="xhtml_escape")
    assert navigation.index("Broker</a>") < navigation.index("Workflows</a>") < navigation.index("</ul>")
    assert shown.load("navbar.html") is not None


def test_a_navigation_without_a_list_stays_as_it_is():
    assert with_tab("<nav>something new</nav>") == "<nav>something new</nav>"


def test_a_template_nobody_has_is_named():
    with pytest.raises(FileNotFoundError, match=r"no template nowhere\.html"):
        FlowerLoader([FLOWERS]).load("nowhere.html")


def test_the_package_needs_no_flower_until_it_is_installed(tmp_path: Path):
    """Somebody without Flower is told what to install."""
    (tmp_path / "flower.py").write_text("raise ImportError('none here')")
    code = (
        "from stabilize_celery.contrib.flower import install\n"
        "from stabilize_celery.errors import ConfigurationError\n"
        "try:\n    install()\nexcept ConfigurationError as error:\n    print(error)"
    )
    root = Path(__file__).resolve().parents[3]
    ended = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": f"{tmp_path}:{root}"},
    )
    assert ended.stdout.strip() == "Flower is not installed; run: pip install 'stabilize-celery[flower]'"
