"""The shop and a browser for programs that are no tests: benchmarks, and the pictures of the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from stabilize_celery.persistence.schema import create_tables
from tests.contrib.flower.browser import Browser, browser_running
from tests.contrib.flower.deployment import Shop, shop_running
from tests.services import services_running


@contextmanager
def watched_shop() -> Iterator[tuple[Shop, Browser]]:
    """Servers, the shop on them and Chromium, while the block runs."""
    with ExitStack() as stack:
        postgres, rabbit = stack.enter_context(services_running())
        create_tables(postgres.create_database("template"))
        folder = Path(stack.enter_context(TemporaryDirectory()))
        shop = stack.enter_context(shop_running(postgres, "template", rabbit, folder))
        yield shop, stack.enter_context(browser_running(folder / "chromium"))
