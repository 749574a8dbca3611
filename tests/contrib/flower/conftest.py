"""One deployment and one browser for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contrib.flower.browser import Browser, browser_running
from tests.contrib.flower.deployment import Shop, shop_running
from tests.services import PostgresService, RabbitService


@pytest.fixture(scope="package")
def shop(
    postgres_service: PostgresService,
    postgres_template: str,
    rabbit_service: RabbitService,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    with shop_running(postgres_service, postgres_template, rabbit_service, folder) as running:
        yield running


@pytest.fixture(scope="package")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser_running(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """As every test finds it: wide, light, and at its end without a complaint of a script."""
    chromium.size(1400, 1000)
    chromium.scheme("light")
    chromium.console()
    yield chromium
    assert chromium.console() == []
