"""Every kind of fault once, while workflows run: none is lost, nothing happens twice (promises P1 to P5).

`make chaos` does the same for minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import faults
from tests.chaos.driver import Deployment, Driver, deployed
from tests.services import services_running

#: Killing the broker is a part of wiping it, and starting it takes most of the time.
KINDS = [each for each in faults.ALL if each.name != faults.BROKER_KILLED]
SEED, WORKFLOWS = 20, 40


@pytest.fixture
def chaos(tmp_path: Path) -> Iterator[Deployment]:
    """A deployment whose servers belong to this test alone."""
    with services_running() as (postgres, rabbit), deployed(postgres, rabbit, tmp_path) as deployment:
        yield deployment


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_workflow_ends_as_it_must_whatever_breaks(chaos: Deployment) -> None:
    report = Driver(chaos, KINDS, SEED, print).run(WORKFLOWS, seconds=0)

    print(report)
    assert report.problems == []
    assert report.workflows >= WORKFLOWS
    assert {injection.fault for injection in report.injections} == {each.name for each in KINDS}
    assert all(under_way for _, _, under_way, *_ in report.rows()), "a fault met nothing that it could harm"
    granted, most, _ = report.granted
    assert granted
    assert most > 1
