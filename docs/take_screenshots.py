"""Take the pictures of the documentation anew: a real Flower, worker, PostgreSQL and RabbitMQ, and Chromium.

python -m docs.take_screenshots
"""

from __future__ import annotations

import time
from pathlib import Path

from stabilize_celery import StageExecution, WorkflowRun
from tests.contrib.flower.browser import Browser
from tests.contrib.flower.deployment import Shop
from tests.contrib.flower.standalone import watched_shop

IMAGES = Path(__file__).resolve().parent / "images"


def release(shop: Shop, gate: Path) -> WorkflowRun:
    """A workflow with something of everything, in the middle of it."""
    single = StageExecution.single
    return shop.start(
        single("build", "give", {"given": {"version": "2.4.1", "image": "shop:2.4.1", "password": "hidden"}}),
        single("unit tests", "flaky", requires={"build"}),
        StageExecution(ref_id="staging", type="deploy", name="Staging", requisite_stage_ref_ids={"build"}),
        single("write", "write", requires={"build"}),
        single("review", "jump_back", requires={"write"}),
        single("load test", "gate", {"gate": str(gate)}, requires={"staging"}),
        single(
            "announce", "fail", {"message": "no such channel", "continuePipelineOnFailure": True}, {"staging"}
        ),
        single("approve", "approval", requires={"unit tests", "review", "announce"}),
        single("production", "give", requires={"approve", "load test"}),
        name="release 2.4.1",
    )


def take(shop: Shop, browser: Browser) -> None:
    """The page of one workflow, with a stage chosen."""
    gate = shop.gate()
    run = release(shop, gate)
    stage = shop.until_status(run, "approve", "SUSPENDED")
    browser.size(1360, 860)
    browser.open(f"{shop.flower.url_with_name}/workflows/{run.id}#{stage.id}")
    browser.until(lambda: browser.all(f'#wf-panel h2[data-stage="{stage.id}"]'), "the panel")
    browser.click('details[data-section="What it sees"] summary')
    browser.until(lambda: browser.all("tr[data-key]"), "what the stage sees")
    browser.run("window.scrollTo({ top: 0, behavior: 'instant' })")
    # The drawing follows in its own time.
    time.sleep(1)
    IMAGES.mkdir(exist_ok=True)
    browser.driver.save_screenshot(str(IMAGES / "workflow-page.png"))
    gate.touch()


def main() -> None:
    """Start everything, take the pictures, stop everything."""
    with watched_shop() as (shop, browser):
        take(shop, browser)


if __name__ == "__main__":
    main()
