"""The tables and drawings of the benchmarks say what was measured, and what was not."""

from __future__ import annotations

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from benchmarks import targets
from benchmarks.contenders.base import Contender
from benchmarks.plot import bars
from benchmarks.profile import rooms
from benchmarks.results import peers_plot, peers_table
from benchmarks.samples import Samples, measure, processor_seconds
from benchmarks.shapes import CHAIN, MANY, SHAPES, requires


class Scripted(Contender):
    """Takes so many milliseconds for each stage; remembers when it was asked."""

    calls: list[tuple[str, int]] = []

    def __init__(self, name, milliseconds, fails_at=None):
        super().__init__(name)
        self.milliseconds, self.fails_at = milliseconds, fails_at

    def start(self, servers):
        pass

    def run(self, shape, size):
        self.calls.append((self.name, size))
        if size == self.fails_at:
            raise RuntimeError("fell over")
        return self.milliseconds * size / 1000


@pytest.fixture(autouse=True)
def forgotten():
    Scripted.calls.clear()


def test_contenders_run_by_turns_and_nobody_is_always_the_first():
    measure([Scripted("a", 1), Scripted("b", 2)], [CHAIN], [100], 2, 60)
    assert [name for name, size in Scripted.calls if size == 100] == ["a", "b", "b", "a"]


def test_the_table_shows_median_spread_and_ratio():
    samples = Samples({("chain", 100, "a"): [1.0, 3.0, 2.0], ("chain", 100, "b"): [8.0]})
    table = peers_table(samples, "chain", [100], ["a", "b", "c"])
    assert "| a | 2.00 (1.00 to 3.00) |  |" in table
    assert "| b | 8.00 (8.00 to 8.00), **4.00x** |  |" in table
    assert not any(line.startswith("| c") for line in table)


def test_runs_that_would_take_too_long_are_left_out_and_said_so():
    samples = measure([Scripted("slow", 100)], [CHAIN], [100, 1000], 1, 60)
    assert samples.median("chain", 1000, "slow") is None
    assert "would take about 100 s" in "\n".join(peers_table(samples, "chain", [100, 1000], ["slow"]))


def test_processor_time_is_that_of_this_process_and_of_all_it_started():
    before = processor_seconds()
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    with subprocess.Popen([sys.executable, "-c", burn]):
        pass
    assert processor_seconds() - before > 0.2


def test_a_failure_takes_the_figure_away_and_nothing_else(capsys):
    samples = measure([Scripted("a", 1, fails_at=200), Scripted("b", 2)], [CHAIN], [100, 200], 2, 60)
    assert samples.absent["chain", 200, "a"] == "failed: RuntimeError: fell over"
    assert samples.median("chain", 100, "a") == pytest.approx(1)
    assert samples.median("chain", 200, "b") == pytest.approx(2)
    assert "fell over" in capsys.readouterr().err


def test_flat_is_the_largest_size_by_the_smallest():
    samples = Samples({("chain", 100, "a"): [2.0], ("chain", 1000, "a"): [2.5]})
    assert peers_table(samples, "chain", [100, 1000], ["a"])[-2].endswith("| 1.25 |")


def test_stages_of_many_workflows_are_counted_whole():
    samples = measure([Scripted("a", 1)], [MANY], [100], 1, 60)
    assert samples.median("many", 100, "a") == pytest.approx(100 / 99)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes_have_as_many_stages_as_they_should(shape):
    graph = requires(shape, 30)
    assert len(graph) == 30
    assert all(before < number for number, many in enumerate(graph) for before in many)


def test_the_drawing_is_svg_with_a_bar_for_each_figure():
    samples = Samples({("chain", 100, "a < b"): [2.0], ("fan", 100, "a < b"): [20.0]})
    root = ElementTree.fromstring(peers_plot(samples, 100, ["a < b"]))
    _background, *drawn = root.iter("{http://www.w3.org/2000/svg}rect")
    widths = [float(bar.attrib["width"]) for bar in drawn]
    assert len(widths) == 2
    assert widths[0] < widths[1]


def test_nothing_measured_is_no_drawing():
    assert bars("nothing", {}, []) == ""


def test_samples_of_a_profile_are_sorted_by_what_they_are_about():
    work = "workloop (billiard/pool.py:351);trace_task (celery/app/trace.py:1)"
    ours = "stabilize_celery"
    found = rooms(
        [
            f"{work};send ({ours}/persistence/pipeline.py:1);_results ({ours}/persistence/pipeline.py:9) 3",
            f"{work};run ({ours}/worker/execution.py:1);send ({ours}/persistence/pipeline.py:1) 2",
            f"{work};handle ({ours}/handlers/start_stage.py:1);loads (json/__init__.py:1) 4",
            "workloop (billiard/pool.py:351);_recv (billiard/connection.py:1) 50",
            "_bootstrap (threading.py:1);_work (stabilize_celery/worker/leases.py:1) 70",
        ]
    )
    assert found == {
        "waiting for PostgreSQL": 3,
        "statements: sending, converting values": 2,
        "handlers and rules": 4,
        "waiting for the next message": 50,
    }


def a_page(folder, name, *samples):
    told = [
        {"shape": shape, "stages": stages, "contender": who, "ms_per_stage": values}
        for shape, stages, who, values in samples
    ]
    (folder / f"{name}.json").write_text(json.dumps({"samples": told}))


def test_targets_are_compared_with_medians_of_the_largest_size(tmp_path):
    a_page(
        tmp_path,
        "peers",
        ("chain", 100, targets.OURS, [1.0]),
        ("chain", 1000, targets.OURS, [2.0, 4.0, 90.0]),
        ("chain", 1000, targets.CANVAS, [20.0, 16.0, 1.0]),
        ("chain", 100, targets.CANVAS, [1.0]),
        ("chain", 1000, targets.BARE, [2.5, 2.0, 2.2]),
    )
    found, missing = targets.findings(targets.Results(tmp_path))
    by_target = {each.target: each for each in found}
    assert by_target["T1"].measured == 4.0
    assert by_target["T1"].met
    assert not by_target["T3"].met
    assert by_target["T3"].verdict == "missed: 1.2 times as much"
    assert {"reference", "large", "past", "latency"} <= {what.split(":")[0] for what in missing}
    page = "\n".join(targets.table(found, missing))
    assert "| T1 | chain, 1,000 stages: times as fast as canvas | at least 4 | 4.00 | met |" in page
    assert "not measured: latency" in page
