"""How long does the Workflows page take for a large workflow?  Measured in Chromium, on a real Flower.

python -m benchmarks.flower_page [--stages 2000] [--rounds 5]
"""

from __future__ import annotations

import statistics
import sys

import click
import psutil
from rich.console import Console
from rich.table import Table

from stabilize_celery import StageExecution, Workflow
from tests.contrib.flower.browser import Browser
from tests.contrib.flower.deployment import Shop
from tests.contrib.flower.standalone import watched_shop

#: Milliseconds from the navigation until the graph is drawn, and until the browser has painted it.
_DRAWN = "return performance.getEntriesByName('wf-drawn')[0]?.startTime"
_PAINTED = """
    const done = arguments[0];
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())));
"""
#: Frames while the drawing is moved about: the longest, and the median, in milliseconds.
_PANNED = """
    const done = arguments[0];
    const cy = document.getElementById("wf-graph").cytoscape;
    cy.fit();
    const frames = [];
    let last = performance.now();
    const step = () => {
        const now = performance.now();
        frames.push(now - last);
        last = now;
        cy.panBy({ x: 3, y: 2 });
        if (frames.length < 40) requestAnimationFrame(step);
        else done(frames.slice(2).sort((a, b) => a - b));
    };
    requestAnimationFrame(step);
"""


def layers_workflow(stages: int) -> Workflow:
    """Layers of forty stages, each of which requires two of the layer before."""
    wide = 40

    def requires(number: int) -> set[str]:
        if number < wide:
            return set()
        before = number // wide * wide - wide
        return {f"s{before + (number * 7 + 13 * turn) % wide}" for turn in range(2)}

    many = [StageExecution.single(f"s{i}", "give", requires=requires(i)) for i in range(stages)]
    return Workflow.create("bench", "layers", many)


def fan_workflow(stages: int) -> Workflow:
    """A root, arms, and a join of them all."""
    arms = [f"a{i}" for i in range(stages - 2)]
    many = [StageExecution.single(arm, "give", requires=["root"]) for arm in arms]
    ends = [StageExecution.single("root", "give"), StageExecution.single("join", "give", requires=arms)]
    return Workflow.create("bench", "fan", [*ends, *many])


def chain_workflow(stages: int) -> Workflow:
    """One stage after the other."""
    many = [
        StageExecution.single(f"s{i}", "give", requires=[f"s{i - 1}"] if i else ()) for i in range(stages)
    ]
    return Workflow.create("bench", "chain", many)


def opened(shop: Shop, browser: Browser, workflow_id: str) -> float:
    """Open the page once; milliseconds until the graph is painted."""
    browser.open(f"{shop.flower.url_with_name}/workflows/{workflow_id}")
    browser.until(lambda: browser.run(_DRAWN) is not None, "the graph")
    painted = browser.driver.execute_async_script(_PAINTED)
    assert painted >= browser.run(_DRAWN)
    return float(browser.run(_DRAWN))


@click.command()
@click.option("--stages", default=2000, show_default=True)
@click.option("--rounds", default=5, show_default=True, help="How often each page is opened.")
def main(stages: int, rounds: int) -> None:
    """Print how long the page takes to open, to ask for changes, and to be moved about, for three shapes."""
    table = Table(title=f"Workflows page at {stages} stages, milliseconds, medians of {rounds}")
    for column in (
        "shape",
        "opened",
        "slowest",
        "of it computing",
        "graph endpoint",
        "nothing new",
        "frame",
        "slowest frame",
    ):
        table.add_column(column)
    with watched_shop() as (shop, browser):
        for build in (layers_workflow, fan_workflow, chain_workflow):
            run = shop.stabilize.start(build(stages))
            run.wait(600)
            opened(shop, browser, run.id)
            before = _computing(browser)
            times = [opened(shop, browser, run.id) for _ in range(rounds)]
            computing = (_computing(browser) - before) / rounds * 1000
            frames = browser.driver.execute_async_script(_PANNED)
            asked = [_asked(browser, run.id, "") for _ in range(rounds)]
            mark = shop.flower.ask(f"/api/workflows/{run.id}").json["mark"]
            nothing = [_asked(browser, run.id, mark) for _ in range(rounds)]
            figures = (
                statistics.median(times),
                max(times),
                computing,
                statistics.median(asked),
                statistics.median(nothing),
                statistics.median(frames),
                max(frames),
            )
            table.add_row(build.__doc__ or "", *(f"{figure:.0f}" for figure in figures))
    Console(file=sys.stdout, width=120).print(table)


def _computing(browser: Browser) -> float:
    """Seconds of processor time that the pages took so far: the figure that holds on a busy machine too."""
    total = 0.0
    for process in psutil.Process(browser.driver.service.process.pid).children(recursive=True):
        if "--type=renderer" in process.cmdline():
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _asked(browser: Browser, workflow_id: str, mark: str) -> float:
    """Milliseconds for the whole graph, or for hearing that nothing has changed."""
    script = """
        const [id, mark, done] = arguments;
        const start = performance.now();
        const query = mark ? `?since=${encodeURIComponent(mark)}` : "";
        fetch(`${location.origin}/workflows/data/${id}${query}`).then((answer) => answer.json())
            .then(() => done(performance.now() - start));
    """
    return float(browser.driver.execute_async_script(script, workflow_id, mark))


if __name__ == "__main__":
    main()
