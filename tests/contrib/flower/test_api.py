"""The HTTP interface, as a program uses it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from sqlalchemy import insert

from stabilize_celery import StageExecution
from stabilize_celery.contrib.flower.api import describe
from stabilize_celery.contrib.flower.routes import API, ROUTES
from stabilize_celery.persistence.tables import dead_letters
from tests.contrib.flower.deployment import Shop
from tests.inspection import slot_uses

S = StageExecution.single


@pytest.fixture(scope="module")
def finished(shop: Shop) -> Any:
    """A workflow with something of everything, at its end."""
    run = shop.start(
        S("fetch", "give", {"given": {"rows": 3, "password": "hunter2"}}),
        S("boom", "fail", {"message": "card=4711 declined", "continuePipelineOnFailure": True}, {"fetch"}),
        StageExecution(ref_id="deploy", type="deploy", requisite_stage_ref_ids={"fetch"}),
        S("flaky", "flaky", {"card": "4711"}, {"deploy", "boom"}),
        name="api % _ order",
    )
    shop.until(run.ready, "the end of the workflow")
    return run


def one_stage(shop: Shop, run: Any, ref: str) -> Any:
    stage = run.workflow().stage_by_ref_id(ref)
    answer = shop.flower.ask(f"/api/workflows/{run.id}/stages/{stage.id}")
    assert answer.status == 200
    return answer.json


def test_the_description_is_openapi_and_knows_every_address():
    told = describe(API)
    validate(told)
    paths = [re.sub(r"\{\w+\}", "ID", path) for path in told["paths"]]
    served = [
        route.regex.pattern.removesuffix("$").replace("([0-9A-Z]{26})", "ID")
        for route in ROUTES
        if route.regex.pattern.startswith("/api/") and "openapi" not in route.regex.pattern
    ]
    assert sorted(paths) == sorted(served)


def test_the_description_is_served_with_the_prefix(shop: Shop):
    assert shop.flower.ask("/api/workflows/openapi.json").json == describe(API)
    assert shop.read_only.ask("/api/workflows/openapi.json").json["servers"] == [{"url": "/tools"}]


def test_answers_are_as_described(shop: Shop, finished):
    told = describe(API)
    stage = finished.workflow().stages[0]
    shop.start(S("a", "give"), name="limited", config={"limitConcurrent": True, "maxConcurrentExecutions": 1})
    shop.until(lambda: slot_uses(shop.stabilize.store), "a configuration with a limit")
    for path, operations in told["paths"].items():
        if "get" not in operations:
            continue
        answer = shop.flower.ask(path.format(workflow_id=finished.id, stage_id=stage.id))
        assert answer.status == 200, path
        described = operations["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        schema = {**described, "components": told["components"]}
        problems = [error.message for error in Draft202012Validator(schema).iter_errors(answer.json)]
        assert problems == [], path
    refused = shop.flower.ask("/api/workflows?status=nope").json
    assert list(refused) == ["error"]


def test_filters_and_search(shop: Shop, finished):
    def found(query: str) -> list[str]:
        return [each["id"] for each in shop.flower.ask("/api/workflows?" + query).json["workflows"]]

    assert finished.id in found("application=shop&status=SUCCEEDED")
    assert found("search=" + finished.id[-8:].lower()) == [finished.id]
    assert found("search=" + finished.id[:20]).count(finished.id) == 1
    assert found("search=PI+%25+_+ORD") == [finished.id]
    assert found("search=%25_%25") == []
    assert found("name=api+%25+_+order") == [finished.id]
    assert finished.id not in found("status=RUNNING")
    assert found("application=nobody") == []


def test_pages_meet_without_gap_or_overlap(shop: Shop):
    runs = [shop.start(S("a", "give"), name="paged") for _ in range(5)]
    seen: list[str] = []
    before = ""
    while True:
        page = shop.flower.ask(f"/api/workflows?name=paged&limit=2&before={before}").json
        seen += [each["id"] for each in page["workflows"]]
        if page["next"] is None:
            break
        before = page["next"]
        # What is started meanwhile moves nothing.
        shop.start(S("a", "give"), name="paged")
    assert seen == [run.id for run in reversed(runs)]


def test_counts_follow_the_filter(shop: Shop, finished):
    counted = shop.flower.ask("/api/workflows/counts?name=api+%25+_+order").json
    assert counted["counts"]["SUCCEEDED"] == 1
    assert sum(counted["counts"].values()) == 1
    assert "shop" in counted["applications"]


def test_a_graph_has_no_data_and_changes_are_cheap(shop: Shop, finished):
    whole = shop.flower.ask(f"/api/workflows/{finished.id}").json
    names = {stage["name"]: stage for stage in whole["stages"]}
    assert {"fetch", "boom", "deploy", "flaky", "Check", "Notify"} == set(names)
    assert "outputs" not in names["fetch"]
    assert "own_context" not in names["fetch"]
    assert names["Check"]["parent_id"] == names["deploy"]["id"]
    assert [names["fetch"]["id"], names["boom"]["id"]] in whole["edges"]
    assert (names["flaky"]["attempts"], names["boom"]["status"]) == (2, "FAILED_CONTINUE")
    since = shop.flower.ask(f"/api/workflows/{finished.id}?since={whole['mark'].replace('+', '%2B')}").json
    assert since == {"mark": whole["mark"], "changed": False}
    all_again = shop.flower.ask(f"/api/workflows/{finished.id}?since=0@").json
    assert len(all_again["stages"]) == len(whole["stages"])


def test_a_stage_tells_what_it_sees_and_from_whom(shop: Shop, finished):
    ids = {stage.ref_id: stage.id for stage in finished.workflow().stages}
    flaky = one_stage(shop, finished, "flaky")
    assert flaky["sees"]["rows"] == 3
    assert flaky["origins"]["rows"] == {"kind": "output", "stage_id": ids["fetch"], "stage": "fetch"}
    assert flaky["origins"]["again"]["kind"] == "own"
    assert flaky["outputs"] == {"rows": 7}
    check = next(stage for stage in finished.workflow().stages if stage.name == "Check")
    inside = shop.flower.ask(f"/api/workflows/{finished.id}/stages/{check.id}").json
    assert inside["sees"]["rows"] == 3
    assert inside["phase"] == "before"


def test_what_is_secret_is_hidden_everywhere(shop: Shop, finished):
    paths = ["", "/history", *(f"/stages/{stage.id}" for stage in finished.workflow().stages)]
    shown = "".join(shop.flower.ask(f"/api/workflows/{finished.id}{path}").text for path in paths)
    assert "hunter2" not in shown
    assert "4711" not in shown
    assert one_stage(shop, finished, "flaky")["own_context"]["card"] == "***"
    (error,) = one_stage(shop, finished, "boom")["errors"]
    assert error["type"] == "ValueError"
    assert "card=*** declined" in error["error"]
    assert "raise ValueError(message)" in error["traceback"]


def test_history_comes_in_order_and_in_pages(shop: Shop, finished):
    whole = shop.flower.ask(f"/api/workflows/{finished.id}/history").json
    assert [each["id"] for each in whole["history"]] == [str(each["id"]) for each in finished.history()]
    first = shop.flower.ask(f"/api/workflows/{finished.id}/history?limit=3").json
    rest = shop.flower.ask(f"/api/workflows/{finished.id}/history?after={first['next']}").json
    assert first["history"] + rest["history"] == whole["history"]
    boom = finished.workflow().stage_by_ref_id("boom").id
    of_one = shop.flower.ask(f"/api/workflows/{finished.id}/history?stage={boom}").json["history"]
    assert of_one == [each for each in whole["history"] if each["stage_id"] == boom]


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("?limit=0", 400, "limit must be a number from 1 to 500, not '0'"),
        ("?limit=many", 400, "not 'many'"),
        ("?status=LOST", 400, "there is no status 'LOST'"),
        ("/01ARZ3NDEKTSV4RRFFQ69G5FAV", 404, "there is no workflow 01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        ("/01ARZ3NDEKTSV4RRFFQ69G5FAV/history", 404, "there is no workflow"),
        ("/{run}/stages/01ARZ3NDEKTSV4RRFFQ69G5FAV", 404, "has no stage of the id"),
        ("/{run}?since=yesterday", 400, "since must be the mark of an earlier answer, not 'yesterday'"),
        ("/{run}?since=1@2026-01-01T00:00:00", 400, "since must be the mark"),
    ],
)
def test_what_makes_no_sense_is_told(shop: Shop, finished, path, status, told):
    answer = shop.flower.ask("/api/workflows" + path.format(run=finished.id))
    assert answer.status == status
    assert told in answer.json["error"]


@pytest.mark.parametrize(
    ("action", "body", "status", "told"),
    [
        ("cancel", {}, 409, "it ended SUCCEEDED"),
        ("pause", {}, 409, "cannot pause"),
        ("resume", {}, 409, "cannot resume"),
        ("restart", {}, 400, "the body must have stage_id"),
        ("restart", {"stage_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV"}, 404, "has no stage of the id"),
        ("skip", {"stage_id": 7}, 400, "stage_id must be text"),
        ("signal", {"stage_id": "x"}, 400, "the body must have name"),
        ("cancel", {"because": "no"}, 400, "the body must not have because"),
        ("cancel", {"force": "yes"}, 400, "force must be true or false"),
        ("cancel", [1], 400, "the body must be a JSON object"),
        ("cancel", b"{", 400, "the body must be JSON"),
        ("cancel", b"[" * 100_000, 400, "the body must be JSON"),
        ("cancel", b"\xff", 400, "the body must be JSON"),
    ],
)
def test_an_action_that_makes_no_sense_is_told(shop: Shop, finished, action, body, status, told):
    answer = shop.flower.ask(f"/api/workflows/{finished.id}/{action}", body)
    assert (answer.status, told in answer.json["error"]) == (status, True), answer.text


def test_pause_resume_skip_signal_and_restart(shop: Shop):
    gate = shop.gate()
    run = shop.start(
        S("wait", "gate", {"gate": str(gate)}), S("ask", "approval"), S("end", "give", requires={"wait"})
    )
    ids = {stage.ref_id: stage.id for stage in run.workflow().stages}
    shop.until_status(run, "ask", "SUSPENDED")

    def act(action: str, **body: Any) -> None:
        answer = shop.flower.ask(f"/api/workflows/{run.id}/{action}", body)
        assert (answer.status, answer.text) == (202, answer.text)

    act("pause")
    shop.until(lambda: run.status.name == "PAUSED", "the pause")
    assert shop.flower.ask(f"/api/workflows/{run.id}").json["workflow"]["paused_by"] == "kim"
    act("resume")
    shop.until(lambda: run.status.name == "RUNNING", "the resumption")
    act("signal", stage_id=ids["ask"], name="approve", data={"note": "fine"})
    approved = shop.until_status(run, "ask", "SUCCEEDED")
    assert approved.outputs == {"approved": True, "approval": {"note": "fine"}, "approved_by": "kim"}
    act("skip", stage_id=ids["wait"], reason="no need")
    shop.until(run.ready, "the end")
    gate.touch()
    act("restart", stage_id=ids["wait"])
    shop.until(
        lambda: shop.stabilize.get(run.id).workflow().stage_by_id(ids["wait"]).generation == 1,
        "a second pass",
    )
    shop.until_status(run, "end", "SUCCEEDED")
    assert {"kim"} <= {entry["actor"] for entry in run.history()}


def test_waiting_executions_and_their_limit(shop: Shop):
    gate = shop.gate()
    limit = {"limitConcurrent": True, "maxConcurrentExecutions": 1, "keepWaitingPipelines": True}
    first, second = (
        shop.start(S("a", "gate", {"gate": str(gate)}), name="one at a time", config=limit) for _ in range(2)
    )
    shop.until(lambda: {first.status.name, second.status.name} == {"RUNNING", "BUFFERED"}, "one to wait")
    waits = first if first.status.name == "BUFFERED" else second

    def ours() -> Any:
        found = shop.flower.ask("/api/workflows/waiting").json["configurations"]
        return next(each for each in found if each["pipeline_config_id"] == "shop/one at a time")

    assert ours() == {
        "pipeline_config_id": "shop/one at a time",
        "max_concurrent": 1,
        "keep_waiting": True,
        "taken": 1,
        "waiting": 1,
        "oldest_waiting": waits.id,
    }
    gate.touch()
    shop.until(lambda: ours()["taken"] == 0, "the slot to be given back")


def bury(shop: Shop, run: Any, letter_id: str) -> None:
    """A message about a workflow that was given up, as the engine would."""
    store = shop.stabilize.store
    row = {
        "type": "CancelWorkflow",
        "version": 1,
        "workflow_id": run.id,
        "stage_id": None,
        "task_id": None,
        "generation": 0,
        "payload": {"user": "kim", "reason": "", "force": False},
        "exclusive": True,
        "queue": shop.stabilize.settings.queue,
        "label": "order",
    }
    letter = {
        "attempts": 10,
        "died_at": store.now(),
        "row": {"id": letter_id, **row},
        "error": {"details": {"error": "password=hunter2 refused", "type": "OSError", "traceback": "..."}},
    }
    kept = {name: row[name] for name in ("type", "workflow_id", "stage_id", "task_id", "label")}
    with store.database.begin() as connection:
        connection.execute(insert(dead_letters), {"id": letter_id, **kept, **letter})


def test_dead_letters_are_listed_tried_again_and_dropped(shop: Shop):
    run = shop.start(S("ask", "approval"))
    shop.until_status(run, "ask", "SUSPENDED")
    ids = [f"0DEAD{number:021d}" for number in range(3)]
    for letter_id in ids:
        bury(shop, run, letter_id)
    first = shop.flower.ask("/api/workflows/dead-letters?limit=2").json
    rest = shop.flower.ask(f"/api/workflows/dead-letters?limit=2&before={first['next']}").json
    assert [each["id"] for each in first["dead_letters"] + rest["dead_letters"]] == ids[::-1]
    assert rest["next"] is None
    assert first["dead_letters"][0]["error"]["error"] == "password=*** refused"

    def act(letter_id: str, action: str) -> Any:
        return shop.flower.ask(f"/api/workflows/dead-letters/{letter_id}/{action}", {})

    assert act(ids[0], "drop").status == 202
    answer = act(ids[0], "drop")
    assert (answer.status, "there is no dead letter" in answer.json["error"]) == (409, True)
    assert act(ids[1], "drop").status == 202
    assert run.status.name == "RUNNING"
    retried = act(ids[2], "retry")
    assert (retried.status, retried.json["letter_id"]) == (202, ids[2])
    shop.until(lambda: run.status.name == "CANCELED", "the message to be handled")
    assert shop.flower.ask("/api/workflows/dead-letters").json["dead_letters"] == []


def test_rows_of_flower_read_like_the_workflow(shop: Shop, finished):
    """Flower's own page of tasks shows which workflow, stage and message each is about."""

    def names() -> set[str]:
        return {task["name"] for task in shop.flower.ask("/api/tasks?limit=2000").json.values()}

    wanted = "api % _ order / boom (RunTask)"
    shop.until(lambda: wanted in names(), "the task in Flower")
    task = next(t for t in shop.flower.ask("/api/tasks?limit=2000").json.values() if t["name"] == wanted)
    assert "api % _ order / boom" in task["args"]
    assert task["kwargs"] == "{}"
