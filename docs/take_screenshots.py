"""Take the pictures of the documentation anew: a real Flower, worker, PostgreSQL and RabbitMQ, and Chromium.

python -m docs.take_screenshots
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from stabilize_celery import StageExecution, WorkflowRun
from stabilize_celery.persistence.schema import create_tables
from tests.contrib.flower.browser import Browser, browser_running
from tests.contrib.flower.deployment import Shop, shop_running
from tests.services import choose_postgres, choose_rabbit

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
    with ExitStack() as stack:
        postgres, rabbit = choose_postgres(), choose_rabbit()
        stack.callback(postgres.discard)
        stack.callback(rabbit.discard)
        postgres.start()
        rabbit.start()
        create_tables(postgres.create_database("template"))
        folder = Path(stack.enter_context(TemporaryDirectory()))
        shop = stack.enter_context(shop_running(postgres, "template", rabbit, folder))
        take(shop, stack.enter_context(browser_running(folder / "chromium")))


if __name__ == "__main__":
    main()
