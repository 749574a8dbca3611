"""The page as a person uses it: Chromium on a real Flower, with a real worker at work."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from selenium.webdriver.common.keys import Keys

from stabilize_celery import StageExecution
from tests.contrib.flower.browser import Browser
from tests.contrib.flower.deployment import Flower, Shop

S = StageExecution.single
NASTY = '<script>window.owned = 1</script><img src=x onerror="window.owned = 1">'


def open_workflow(browser: Browser, flower: Flower, workflow_id: str, stage_id: str = "") -> None:
    browser.open(f"{flower.url_with_name}/workflows/{workflow_id}{'#' + stage_id if stage_id else ''}")
    browser.until(lambda: browser.all("#wf-stages tr") and browser.all("#wf-panel h2"), "the workflow drawn")


def drawn(browser: Browser) -> dict[str, str]:
    """What the graph shows: status by the id of the stage."""
    script = """
        const found = {};
        document.getElementById("wf-graph").cytoscape.nodes().forEach((n) => { found[n.id()] = n.data("status"); });
        return found;
    """
    return dict(browser.run(script))


def id_of(run: Any, ref: str) -> str:
    stage = run.workflow().stage_by_ref_id(ref)
    assert stage is not None
    return str(stage.id)


def confirm(browser: Browser, action: str, **fields: str) -> None:
    browser.click(f'[data-action="{action}"]')
    for name, value in fields.items():
        browser.one(f'#wf-dialog [name="{name}"]').send_keys(value)
    browser.click(f'[data-confirm="{action}"]')


def test_a_running_workflow_changes_before_ones_eyes(shop: Shop, browser: Browser):
    gate = shop.gate()
    run = shop.start(
        S("first", "gate", {"gate": str(gate)}),
        StageExecution(ref_id="deploy", type="deploy", requisite_stage_ref_ids={"first"}),
        name="live",
    )
    shop.until_status(run, "first", "RUNNING")
    open_workflow(browser, shop.flower, run.id)
    browser.run("window.notReloaded = true")
    first, deploy = id_of(run, "first"), id_of(run, "deploy")
    assert drawn(browser) == {first: "RUNNING", deploy: "NOT_STARTED"}
    gate.touch()
    browser.until_text("#wf-status", "SUCCEEDED")
    browser.until(lambda: len(drawn(browser)) == 4, "the synthetic stages")
    assert set(drawn(browser).values()) == {"SUCCEEDED"}
    parents = browser.run(
        """return document.getElementById("wf-graph").cytoscape.nodes()
            .map((n) => [n.data("label").split(" ")[1].split("\\n")[0], n.parent().id() || null])"""
    )
    assert sorted(parents) == sorted(
        [["first", None], ["deploy", None], ["Check", deploy], ["Notify", deploy]]
    )
    browser.until_text("#wf-legend", "SUCCEEDED 4")
    assert browser.run("return window.notReloaded")
    # It has ended: nothing is asked for any more, and what could be done to it is gone.
    assert browser.all("#wf-actions button") == []


def test_cancel_with_a_reason(shop: Shop, browser: Browser):
    run = shop.start(S("ask", "approval"), S("end", "give", requires={"ask"}))
    shop.until_status(run, "ask", "SUSPENDED")
    open_workflow(browser, shop.flower, run.id)
    confirm(browser, "cancel", reason="ordered twice")
    browser.until_text("#wf-status", "CANCELED")
    browser.until_text("#wf-panel", "ordered twice")
    assert "kim" in browser.text("#wf-panel")
    workflow = run.workflow()
    assert (workflow.canceled_by, workflow.cancellation_reason) == ("kim", "ordered twice")


def test_an_approval_is_given_from_the_list_on(shop: Shop, browser: Browser):
    run = shop.start(S("ask", "approval"), S("end", "give", requires={"ask"}), name="to be approved")
    shop.until_status(run, "ask", "SUSPENDED")
    browser.open(f"{shop.flower.url_with_name}/workflows?search=to+be+approved")
    browser.click(f'tr[data-id="{run.id}"] a')
    browser.click(f'button[data-stage="{id_of(run, "ask")}"]')
    confirm(browser, "approve", data='{"note": "fine by me"}')
    browser.until_text("#wf-status", "SUCCEEDED")
    browser.until_text("#wf-panel", "fine by me")
    assert run.workflow().stage_by_ref_id("ask").outputs["approved_by"] == "kim"


def test_data_that_is_not_json_is_refused_in_the_dialog(shop: Shop, browser: Browser):
    run = shop.start(S("ask", "approval"))
    stage = shop.until_status(run, "ask", "SUSPENDED")
    open_workflow(browser, shop.flower, run.id, stage.id)
    browser.click('[data-action="reject"]')
    browser.one('#wf-dialog [name="data"]').send_keys("{fine")
    browser.click('[data-confirm="reject"]')
    browser.until_text('#wf-dialog [role="alert"]', "The data is not JSON.")
    assert run.workflow().stages[0].status.name == "SUSPENDED"


def test_a_failed_stage_is_restarted_from_the_panel(shop: Shop, browser: Browser):
    run = shop.start(
        S("boom", "fail", {"message": "card=4711 declined"}), S("end", "give", requires={"boom"})
    )
    shop.until(run.ready, "the failure")
    boom = id_of(run, "boom")
    open_workflow(browser, shop.flower, run.id, boom)
    browser.until_text("#wf-panel", "ValueError: card=*** declined")
    browser.click("#wf-panel .wf-error summary")
    browser.until_text("#wf-panel .wf-error pre", "raise ValueError(message)")
    confirm(browser, "restart")
    browser.until_text("#wf-panel", "Pass\n2")
    browser.until_text("#wf-status", "TERMINAL")
    shop.until(lambda: run.workflow().stage_by_id(boom).generation == 1, "the second pass")


def test_the_panel_tells_what_a_stage_sees_and_leads_to_who_gave_it(shop: Shop, browser: Browser):
    run = shop.start(
        S("fetch", "give", {"given": {"rows": 3, "password": "hunter2"}}),
        S("use", "give", {"given": {}}, {"fetch"}),
    )
    shop.until(run.ready, "the end")
    open_workflow(browser, shop.flower, run.id, id_of(run, "use"))
    browser.click('details[data-section="What it sees"] summary')
    browser.until_text('tr[data-key="rows"]', "output of fetch")
    assert "***" in browser.text('tr[data-key="password"]')
    assert "this stage" in browser.text('tr[data-key="given"]')
    browser.click('tr[data-key="rows"] button')
    browser.until(lambda: browser.all(f'#wf-panel h2[data-stage="{id_of(run, "fetch")}"]'), "the stage fetch")
    assert "hunter2" not in browser.driver.page_source


def test_jumps_are_drawn_back(shop: Shop, browser: Browser):
    run = shop.start(S("write", "write"), S("review", "jump_back", requires={"write"}))
    shop.until(run.ready, "the end")
    open_workflow(browser, shop.flower, run.id)
    jumps = browser.run(
        """return document.getElementById("wf-graph").cytoscape.edges(".jump")
            .map((e) => [e.source().id(), e.target().id(), e.data("label")])"""
    )
    assert jumps == [[id_of(run, "review"), id_of(run, "write"), "jump"]]


def test_names_are_never_html(shop: Shop, browser: Browser):
    run = shop.start(
        S("a", "give", {"given": {NASTY: NASTY}}, name=NASTY),
        S(NASTY, "fail", {"message": NASTY}, {"a"}),
        name=NASTY,
    )
    shop.until(run.ready, "the end")
    browser.open(f"{shop.flower.url_with_name}/workflows?name={quote(NASTY)}")
    browser.until_text(f'tr[data-id="{run.id}"]', "<script>")
    for stage in run.workflow().stages:
        open_workflow(browser, shop.flower, run.id, stage.id)
        browser.run('document.querySelectorAll("details").forEach((each) => { each.open = true; })')
        browser.until_text("#wf-panel", "<script>")
    assert browser.run("return window.owned === undefined")
    assert browser.all("#workflows-app img, #workflows-app script") == []


def test_filters_counts_and_pages_of_the_list(shop: Shop, browser: Browser):
    runs = [shop.start(S("a", "give"), name=f"many {number}") for number in range(52)]
    shop.until(lambda: all(run.ready() for run in runs), "the end of all")
    browser.open(f"{shop.flower.url_with_name}/workflows")
    browser.one('#wf-filter [name="search"]').send_keys("many", Keys.ENTER)
    browser.until(lambda: len(browser.all("#wf-rows tr")) == 50, "a full page")
    browser.until_text('#wf-counts [data-status="SUCCEEDED"]', "52")
    browser.click("#wf-older")
    browser.until(lambda: len(browser.all("#wf-rows tr")) == 2, "the rest")
    assert "search=many" in browser.driver.current_url
    browser.driver.refresh()
    browser.until(lambda: len(browser.all("#wf-rows tr")) == 2, "the same page after a reload")
    browser.click("#wf-newest")
    browser.until(lambda: len(browser.all("#wf-rows tr")) == 50, "the newest again")
    browser.click('#wf-counts [data-status="SUCCEEDED"]')
    browser.until(lambda: "status=SUCCEEDED" in browser.driver.current_url, "the status in the address")
    browser.click('#wf-filter [type="reset"]')
    browser.until(lambda: "search" not in browser.driver.current_url, "an empty filter")


def test_the_keyboard_reaches_everything(shop: Shop, browser: Browser):
    run = shop.start(
        S("one", "give"), S("two", "give", requires={"one"}), S("three", "give", requires={"one"})
    )
    shop.until(run.ready, "the end")
    open_workflow(browser, shop.flower, run.id)
    reached: list[str] = []
    browser.run("document.body.focus()")
    for _ in range(60):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(
            browser.run("return document.activeElement.id || document.activeElement.dataset.stage || ''")
        )
        if reached[-1] == id_of(run, "three"):
            break
    assert {"wf-fit", "wf-graph", "wf-stage-filter", id_of(run, "one"), id_of(run, "two")} <= set(reached)

    graph = browser.one("#wf-graph")
    browser.run("arguments[0].focus()", graph)

    def chosen() -> str:
        return str(
            browser.run('return document.getElementById("wf-graph").cytoscape.$("node:selected").id() || ""')
        )

    for key, ref in ((Keys.ARROW_RIGHT, "one"), (Keys.ARROW_RIGHT, "two"), (Keys.ARROW_DOWN, "three"),
                     (Keys.ARROW_UP, "two"), (Keys.ARROW_LEFT, "one")):  # fmt: skip
        graph.send_keys(key)
        browser.until(lambda ref=ref: chosen() == id_of(run, ref), f"stage {ref} to be chosen")
        spoken = browser.run('return document.getElementById("wf-spoken").textContent')
        assert spoken == f"{ref}, SUCCEEDED"
    browser.until(lambda: browser.all(f'#wf-panel h2[data-stage="{id_of(run, "one")}"]'), "its panel")
    graph.send_keys(Keys.ENTER)
    assert browser.run("return document.activeElement.id") == "wf-panel"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_status_can_be_read_in_both_schemes(shop: Shop, browser: Browser, scheme: str):
    """Contrast of 4.5 and more, of the badges and of what is drawn."""
    run = shop.start(S("a", "give"))
    shop.until(run.ready, "the end")
    browser.scheme(scheme)
    open_workflow(browser, shop.flower, run.id)
    assert browser.run("return document.documentElement.dataset.bsTheme") == scheme
    poor = browser.run(CONTRASTS)
    assert poor == []
    fill = browser.run(
        'return document.getElementById("wf-graph").cytoscape.nodes()[0].style("background-color")'
    )
    assert fill == {"light": "rgb(220,252,231)", "dark": "rgb(5,46,22)"}[scheme]


def test_the_drawing_follows_a_change_of_scheme(shop: Shop, browser: Browser):
    run = shop.start(S("a", "give"))
    shop.until(run.ready, "the end")
    open_workflow(browser, shop.flower, run.id)
    browser.scheme("dark")
    fill = 'return document.getElementById("wf-graph").cytoscape.nodes()[0].style("background-color")'
    browser.until(lambda: browser.run(fill) == "rgb(5,46,22)", "the dark drawing")


def test_a_telephone_shows_all_of_it(shop: Shop, browser: Browser):
    run = shop.start(
        S("a stage with a name that is rather long for a telephone", "give", {"given": {"key": "x" * 300}}),
        name="a-workflow-with-a-name-without-any-blank-in-it-that-could-be-broken",
    )
    shop.until(run.ready, "the end")
    browser.size(390, 844)
    wide = "return document.documentElement.scrollWidth"
    for path in ("", "/waiting"):
        browser.open(f"{shop.flower.url_with_name}/workflows{path}")
        browser.until(lambda: browser.all("tbody tr"), "a table")
        assert browser.run(wide) <= 390, path
    open_workflow(browser, shop.flower, run.id, run.workflow().stages[0].id)
    browser.until_text("#wf-panel", "Outputs")
    assert browser.run(wide) <= 390
    graph, panel = browser.one("#wf-graph").rect, browser.one("#wf-panel").rect
    assert graph["width"] > 300
    assert panel["y"] > graph["y"] + graph["height"]


def test_under_a_prefix_and_read_only_it_is_all_there_but_for_the_buttons(shop: Shop, browser: Browser):
    run = shop.start(S("ask", "approval"))
    stage = shop.until_status(run, "ask", "SUSPENDED")
    browser.open(f"{shop.read_only.url_with_name}/workflows")
    browser.click(f'tr[data-id="{run.id}"] a')
    browser.click(f'button[data-stage="{stage.id}"]')
    browser.until(lambda: browser.all('#wf-panel [data-action="approve"]'), "the buttons")
    assert [each.is_enabled() for each in browser.all("[data-action]")] == [False] * len(
        browser.all("[data-action]")
    )
    assert browser.text("#wf-why-not") == "Read only mode is enabled"


def test_the_tab_is_on_every_page_of_flower(shop: Shop, browser: Browser):
    for page in ("/tasks", "/workers", "/broker"):
        browser.open(shop.flower.url_with_name + page)
        assert browser.one('.app-nav a[href="/workflows"]').text == "Workflows"
    browser.click('.app-nav a[href="/workflows"]')
    assert browser.one('.app-nav a[aria-current="page"]').text == "Workflows"


def test_waiting_and_given_up(shop: Shop, browser: Browser):
    gate = shop.gate()
    limit = {"limitConcurrent": True, "maxConcurrentExecutions": 1, "keepWaitingPipelines": True}
    runs = [shop.start(S("a", "gate", {"gate": str(gate)}), name="slow lane", config=limit) for _ in range(2)]
    shop.until(lambda: "BUFFERED" in {run.status.name for run in runs}, "one to wait")
    browser.open(f"{shop.flower.url_with_name}/workflows")
    browser.click(".wf-header a")
    browser.until_text("#wf-slots", "shop/slow lane")
    browser.until_text("#wf-slots", "1 of 1")
    gate.touch()


CONTRASTS = """
    const app = document.getElementById("workflows-app");
    const light = (text) => {
        const canvas = document.createElement("canvas").getContext("2d");
        canvas.fillStyle = text;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
            .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const poor = [];
    const judge = (name, text, ground) => {
        const [a, b] = [light(text), light(ground)].sort((x, y) => y - x);
        const contrast = (a + 0.05) / (b + 0.05);
        if (contrast < 4.5) poor.push(`${name}: ${contrast.toFixed(2)}`);
    };
    const all = getComputedStyle(app);
    const of = (name) => all.getPropertyValue(name).trim();
    const statuses = ["NOT_STARTED", "RUNNING", "PAUSED", "SUSPENDED", "BUFFERED", "REDIRECT", "SUCCEEDED", "SKIPPED",
        "FAILED_CONTINUE", "TERMINAL", "STOPPED", "CANCELED"];
    for (const status of statuses) {
        judge(status, of(`--wf-${status}-text`), of(`--wf-${status}-fill`));
        const badge = document.createElement("span");
        badge.className = "wf-badge";
        badge.dataset.status = status;
        app.append(badge);
        const style = getComputedStyle(badge);
        judge(`${status} badge`, style.color, style.backgroundColor);
        badge.remove();
    }
    const page = getComputedStyle(document.body).backgroundColor;
    const card = getComputedStyle(document.querySelector(".wf-card")).backgroundColor;
    for (const ground of [page, card]) {
        judge("text", all.color, ground);
        judge("quiet", getComputedStyle(document.querySelector(".wf-quiet")).color, ground);
        judge("jump", of("--wf-jump"), ground);
        for (const kind of ["primary", "danger", "secondary"]) {
            const button = document.createElement("button");
            button.className = `btn btn-outline-${kind}`;
            app.append(button);
            judge(kind, getComputedStyle(button).color, ground);
            button.remove();
        }
    }
    return poor;
"""
