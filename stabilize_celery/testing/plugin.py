"""The pytest plugin.  Every pytest run of every user loads it, so it imports the engine in its fixtures only."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stabilize_celery.clock import FakeClock
    from stabilize_celery.testing.kit import StabilizeForTests

_APP = "stabilize_app"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of the ini file."""
    about = (
        "whose task types and settings the fixture stabilize takes over: module, module:app or module:engine"
    )
    parser.addini(_APP, default="", help=about)


@pytest.fixture
def stabilize_app(pytestconfig: pytest.Config) -> Any:
    """Whose task types, builders and settings :func:`stabilize` takes over; override it, or set it in pytest's ini file.

    A Celery app, a ``Stabilize``, the text ``"shop"`` or ``"shop:app"`` that says where it is, or nothing.
    """
    return pytestconfig.getini(_APP)


@pytest.fixture
def stabilize_options() -> dict[str, Any]:
    """Settings of :func:`stabilize` by their plain names, such as ``max_attempts``, and ``url``; override it."""
    return {}


@pytest.fixture
def stabilize_clock() -> FakeClock:
    """The clock of :func:`stabilize`: it stands still until the engine moves it; override it to start at another time."""
    from stabilize_celery.clock import FakeClock

    return FakeClock()


@pytest.fixture
def stabilize(
    stabilize_app: Any, stabilize_options: dict[str, Any], stabilize_clock: FakeClock
) -> Iterator[StabilizeForTests]:
    """An engine for one test, in its process: see :class:`stabilize_celery.testing.StabilizeForTests`."""
    from stabilize_celery.testing.kit import StabilizeForTests, find_engine

    engine = StabilizeForTests.like(find_engine(stabilize_app), clock=stabilize_clock, **stabilize_options)
    yield engine
    engine.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows the workflows it has run."""
    report = yield
    if report.when == "call" and report.failed:
        trees = getattr(getattr(item, "funcargs", {}).get("stabilize"), "_undrawn", None)
        if trees is not None:
            report.sections += [("workflows", tree) for tree in trees(str(report.longrepr))]
    return report
