"""Workflows in the admin: everything can be looked at, nothing changed, and secrets are not shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from stabilize_celery import Stabilize, StageExecution, Workflow, WorkflowRun
from stabilize_celery.contrib.django.models import DeadLetter
from stabilize_celery.contrib.django.models import Workflow as WorkflowModel

MODELS = ("workflow", "stage")
SECRET = "do not show me"


@pytest.fixture
def run(stabilize: Stabilize) -> WorkflowRun:
    """A workflow with something of everything: an end, a failure, a dead letter, a message, secrets."""

    @stabilize.task("leak")
    def leak() -> None:
        raise ValueError(f"password: {SECRET.replace(' ', '-')}")

    workflow = Workflow.create(
        "shop",
        "order <b>bold</b>",
        [
            StageExecution.single("a", "noop", {"api_key": SECRET, "item": "<script>alert(1)</script>"}),
            StageExecution.single("b", "leak", requires={"a"}),
        ],
        context={"password": SECRET, "city": "Århus"},
    )
    found = stabilize.run(workflow, timeout=60)
    DeadLetter.objects.create(
        id="D" * 26,
        type="StartStage",
        workflow_id=found.id,
        label="order / a",
        row={"payload": {"token": SECRET}},
        error={"details": {"error": f"by design, token={SECRET.replace(' ', '-')}"}},
        attempts=3,
        died_at=found.workflow().end_time,
    )
    waiting = Workflow.create("shop", "waits", [StageExecution.single("w", "wait", {"seconds": 86400})])
    stabilize.start(waiting)
    return found


@pytest.fixture
def client(django_url: str) -> Iterator[Client]:
    client = Client()
    client.force_login(User.objects.create_superuser("kim"))
    yield client
    client.session.flush()


def page(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200, url
    return response.content.decode()


def objects(client: Client, model: str) -> list[str]:
    """The links of a list to what it lists."""
    listed = page(client, reverse(f"admin:stabilize_{model}_changelist"))
    return re.findall(rf'href="(/admin/stabilize/{model}/[^"?/]+/change/)[^"]*"', listed)


def test_everything_can_be_looked_at_without_secrets(client: Client, run: WorkflowRun) -> None:
    assert "Workflows" in page(client, "/admin/")
    seen = ""
    for model in MODELS:
        found = objects(client, model)
        assert found, model
        for url in found:
            seen += page(client, url)
    assert "Århus" in seen
    assert "***" in seen
    assert SECRET not in seen
    assert SECRET.replace(" ", "-") not in seen
    assert "<script>alert(1)" not in seen
    assert "<b>bold" not in seen


def test_a_workflow_leads_to_what_belongs_to_it(client: Client, run: WorkflowRun) -> None:
    shown = page(client, reverse("admin:stabilize_workflow_change", args=[run.id]))
    for stage in run.workflow().stages:
        assert reverse("admin:stabilize_stage_change", args=[stage.id]) in shown
    history = [(entry["event"], str(entry["to_status"])) for entry in run.history()]
    assert re.findall(r"(workflow|stage|task)\b[^<]*? → (\w+)", shown) == history
    assert "StartStage order / a by design, token=***" in shown


def test_a_workflow_leads_to_its_sub_workflows_and_a_stage_to_its_workflow(
    client: Client, run: WorkflowRun, stabilize: Stabilize
) -> None:
    child = Workflow.create("shop", "inner", [StageExecution.single("a", "noop")])
    stabilize.start(child)
    WorkflowModel.objects.filter(id=child.id).update(parent_workflow=run.id)
    assert child.id in page(client, reverse("admin:stabilize_workflow_change", args=[run.id]))
    stage = run.workflow().stages[1]
    shown = page(client, reverse("admin:stabilize_stage_change", args=[stage.id]))
    assert reverse("admin:stabilize_workflow_change", args=[run.id]) in shown
    assert "RUNNING → TERMINAL" in shown


def test_a_long_history_says_that_there_is_more(
    client: Client, run: WorkflowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stabilize_celery.contrib.django.admin._MOST", 2)
    shown = page(client, reverse("admin:stabilize_workflow_change", args=[run.id]))
    assert shown.count(" → ") == 2
    assert "and more than these 2" in shown


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("status__exact=TERMINAL", 1),
        ("status__exact=SUCCEEDED", 0),
        ("application=shop", 2),
        ("q=waits", 1),
        ("q=nothing", 0),
    ],
)
def test_filters_and_search(client: Client, run: WorkflowRun, query: str, found: int) -> None:
    shown = page(client, reverse("admin:stabilize_workflow_changelist") + "?" + query)
    assert len(re.findall(r'<th class="field-id', shown)) == found


def test_an_id_is_found(client: Client, run: WorkflowRun) -> None:
    for model in MODELS:
        shown = page(client, reverse(f"admin:stabilize_{model}_changelist") + f"?q={run.id}")
        assert run.id in shown


@pytest.mark.parametrize("model", MODELS)
def test_nothing_can_be_changed(client: Client, run: WorkflowRun, model: str) -> None:
    change = objects(client, model)[0]
    shown = page(client, change)
    assert 'name="_save"' not in shown
    assert "deletelink" not in shown
    assert client.post(change, {"status": "SUCCEEDED", "name": "x"}).status_code == 403
    assert client.post(change.replace("/change/", "/delete/"), {"post": "yes"}).status_code == 403
    assert client.get(reverse(f"admin:stabilize_{model}_add")).status_code == 403
    chosen = {"action": "delete_selected", "_selected_action": [change.split("/")[-3]], "post": "yes"}
    client.post(reverse(f"admin:stabilize_{model}_changelist"), chosen)
    page(client, change)


def test_looking_needs_the_permission(django_url: str, run: WorkflowRun) -> None:
    user = User.objects.create_user("lee", is_staff=True)
    client = Client()
    client.force_login(user)
    url = reverse("admin:stabilize_workflow_change", args=[run.id])
    assert client.get(url).status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_workflow"))
    assert client.get(url).status_code == 200


def test_lists_do_not_read_the_data(client: Client, run: WorkflowRun, queries_of_django: Any) -> None:
    for model in MODELS:
        with queries_of_django as queries:
            page(client, reverse(f"admin:stabilize_{model}_changelist"))
        listing = [q["sql"] for q in queries if 'FROM "stabilize_' in q["sql"] and "ORDER BY" in q["sql"]]
        assert listing
        for sql in listing:
            for column in ("context", "outputs", "payload", "row", "trigger"):
                assert f'"{column}"' not in sql
