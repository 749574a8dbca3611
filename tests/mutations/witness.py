"""A plugin for the runs in a copy: writes down which package was tested, and how each test ended."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

_seen: dict[str, Any] = {"package": "", "collected": 0, "errors": [], "failures": []}


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A module that cannot be imported."""
    if report.failed:
        _seen["errors"].append(f"{report.nodeid}: {report.longreprtext[-500:]}")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What will be run."""
    _seen["collected"] = len(session.items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """How a test failed, if it did."""
    report = yield
    if call.excinfo is not None and report.failed:
        _seen["failures"].append(
            [item.nodeid, call.when, call.excinfo.typename, str(call.excinfo.value)[:300]]
        )
    return report


def pytest_sessionfinish() -> None:
    """Write it down."""
    import stabilize_celery

    _seen["package"] = str(stabilize_celery.__file__)
    Path(os.environ["STABILIZE_WITNESS"]).write_text(json.dumps(_seen))
