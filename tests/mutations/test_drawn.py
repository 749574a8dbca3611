"""The list says what the code says, and eight of its changes are made with each run of the suite."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutations.bench import PACKAGE, ROOT, Bench
from tests.mutations.change import Change, StaleChangeError, locate
from tests.mutations.changes import CHANGES, drawn

DRAWN = 8


def test_the_list_is_long_and_each_name_stands_once() -> None:
    assert len(CHANGES) >= 80
    assert [name for name, n in Counter(change.name for change in CHANGES).items() if n > 1] == []


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name.replace(" ", "-"))
def test_a_change_is_found_in_one_place_and_its_killers_exist(change: Change) -> None:
    place = locate(change, ROOT / PACKAGE)
    assert place.changed() != place.file.read_text()
    compile(place.changed(), str(place.file), "exec")
    assert change.killers
    for killer in change.killers:
        file, _, function = killer.partition("[")[0].partition("::")
        assert f"def {function.rpartition('::')[2]}(" in (ROOT / file).read_text(), killer


def test_no_change_uses_a_name_that_is_not_there(tmp_path: Path) -> None:
    for number, change in enumerate(CHANGES):
        (tmp_path / f"change_{number}.py").write_text(locate(change, ROOT / PACKAGE).changed())
    checked = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--no-cache",
            "--select",
            "E9,F821",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_text_that_is_not_there_any_more_is_an_error_that_says_so() -> None:
    gone = Change("a", "b", "this text stands nowhere", "c", ("d",))
    with pytest.raises(StaleChangeError, match="is not in the package any more"):
        locate(gone, ROOT / PACKAGE)
    with pytest.raises(StaleChangeError, match="stands in several places"):
        locate(Change("a", "b", "from __future__ import annotations", "c", ("d",)), ROOT / PACKAGE)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A copy of the project."""
    folder = tmp_path_factory.mktemp("mutations")
    yield Bench(folder)
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.served
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(DRAWN))
def test_a_drawn_change_is_killed(bench: Bench, number: int) -> None:
    change = drawn(DRAWN, os.environ.get("SEED"))[number]
    assert bench.fails_unchanged([change]) == set()
    verdict = bench.judge(change)
    assert not verdict.survived, verdict
