"""The pytest plugin.  Every pytest run of every user loads it: what it needs it imports when it is used."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stabilize_celery.clock import FakeClock
    from stabilize_celery.testing.kit import StabilizeForTests
    from stabilize_celery.testing.simulation.user import Simulation

_HISTORIES = 100
_APP = "stabilize_app"
_OPTION, _SEED_OPTION = "--stabilize-simulate", "--stabilize-simulate-seed"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("stabilize-celery", "durable workflows")
    group.addoption(
        _OPTION,
        nargs="?",
        const=_HISTORIES,
        default=0,
        type=_number,
        metavar="N",
        help=f"run each test that uses the fixture stabilize_simulate under N seeds of faults (default: {_HISTORIES})",
    )
    group.addoption(_SEED_OPTION, type=int, default=0, metavar="SEED", help="the first of these seeds")
    parser.addini(
        _APP,
        default="",
        help="whose task types and settings the fixture stabilize takes over: module, module:app or module:engine",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Say which markers there are."""
    config.addinivalue_line(
        "markers",
        f"stabilize_simulate(histories=N): under at most N seeds of faults, whatever {_OPTION} says",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per seed."""
    histories: int = metafunc.config.getoption(_OPTION)
    if histories and "stabilize_simulate" in metafunc.fixturenames:
        for marker in metafunc.definition.iter_markers("stabilize_simulate"):
            histories = min(histories, marker.kwargs.get("histories", histories))
        first: int = metafunc.config.getoption(_SEED_OPTION)
        seeds = range(first, first + histories)
        metafunc.parametrize(
            "stabilize_simulate", seeds, ids=[f"seed{seed}" for seed in seeds], indirect=True
        )


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
    """The clock of :func:`stabilize`: it stands still until the engine moves it; override it to begin at another time."""
    from stabilize_celery.clock import FakeClock

    return FakeClock()


@pytest.fixture
def stabilize(
    stabilize_app: Any, stabilize_options: dict[str, Any], stabilize_clock: FakeClock
) -> Iterator[StabilizeForTests]:
    """An engine for one test, in its process: see :class:`stabilize_celery.testing.StabilizeForTests`."""
    from stabilize_celery.testing.kit import StabilizeForTests
    from stabilize_celery.testing.origin import find_engine

    engine = StabilizeForTests.like(find_engine(stabilize_app), clock=stabilize_clock, **stabilize_options)
    yield engine
    engine.close()


@pytest.fixture
def stabilize_simulate(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    """Runs a workflow under simulated faults: ``run = stabilize_simulate(make_workflow, stabilize)``.

    Without ``--stabilize-simulate`` it runs once, without faults.  Task code runs for real, and under faults more than
    once; see :meth:`stabilize_celery.testing.simulation.user.Simulation.__call__`.
    """
    from stabilize_celery.testing.simulation.user import Simulation

    seed: int | None = getattr(request, "param", None)
    test = request.node.nodeid.partition("[")[0]
    simulation = Simulation(seed, f"pytest {test} {_OPTION}=1 {_SEED_OPTION}={seed}")
    yield simulation
    simulation.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails tells what was simulated, and what has become of its workflows."""
    report = yield
    simulation: Any = getattr(item, "funcargs", {}).get("stabilize_simulate")
    if report.when == "call" and report.failed and simulation is not None:
        report.sections += [("simulated history", story) for story in simulation.stories]
    if report.when == "call" and report.failed:
        engine: Any = getattr(item, "funcargs", {}).get("stabilize")
        tell = getattr(engine, "tell_runs", None)
        if tell is not None:
            report.sections += [("workflows", told) for told in tell(str(report.longrepr))]
    return report


def _number(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(
            f"a number is wanted, not {text!r}: write {_OPTION}=N, or {_OPTION} last"
        )
    return number
