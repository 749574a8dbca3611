"""Who gets in, and who may act: for every route there is, so that a new one cannot be forgotten."""

from __future__ import annotations

import re

import pytest

from stabilize_celery import StageExecution
from stabilize_celery.contrib.flower.routes import API, ROUTES
from tests.contrib.flower.deployment import Shop

SOME_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def address(pattern: str) -> str:
    """An address that a route takes."""
    pattern = pattern.removesuffix("$").replace("([0-9A-Z]{26})", SOME_ID).replace("\\.", ".")
    return pattern.replace("(.+)", "list.js")


def is_post(route) -> bool:
    return "route" in (route.kwargs or {}) and route.kwargs["route"].method == "POST"


POSTS = [address(route.regex.pattern) for route in ROUTES if is_post(route)]
READS = [
    address(route.regex.pattern)
    for route in ROUTES
    if not is_post(route) and "/static/" not in route.regex.pattern
]


def test_every_route_is_known_to_these_tests():
    assert len(POSTS) == 2 * len([route for route in API if route.method == "POST"]) > 20
    assert len(POSTS) + len(READS) == len(ROUTES) - 1
    assert all(route.regex.match(address(route.regex.pattern)) for route in ROUTES)


@pytest.fixture
def run(shop: Shop):
    """A workflow that waits, for actions to be tried on."""
    run = shop.start(StageExecution.single("ask", "approval"))
    shop.until_status(run, "ask", "SUSPENDED")
    return run


def test_nobody_reads_without_a_password(shop: Shop):
    for path in READS:
        assert shop.flower.ask(path, user=None).status == 401, path
        assert shop.flower.ask(path, user="someone else").status == 401, path
        assert shop.flower.ask(path).status in (200, 404), path


def test_nobody_acts_without_a_password(shop: Shop, run):
    for path in POSTS:
        place = path.replace(SOME_ID, run.id, 1)
        assert shop.flower.ask(place, {}, user=None).status == 401, path
    assert run.workflow().status.name == "RUNNING"


def test_no_post_is_taken_without_the_token(shop: Shop, run):
    for flower in (shop.flower, shop.read_only, shop.open):
        for path in POSTS:
            place = path.replace(SOME_ID, run.id, 1)
            assert flower.ask(place, {}, token=False).status == 403, path
            cookie = flower.ask(place, {}, token=False, Cookie="_xsrf=one", X_XSRFToken="another")
            assert cookie.status == 403, path
    assert run.workflow().status.name == "RUNNING"


def test_no_post_is_taken_from_another_site(shop: Shop, run):
    for path in POSTS:
        place = path.replace(SOME_ID, run.id, 1)
        assert shop.flower.ask(place, {}, Sec_Fetch_Site="cross-site").status == 403, path
        assert shop.flower.ask(place, {}, Origin="https://evil.example").status == 403, path
    assert run.workflow().status.name == "RUNNING"


def test_a_read_only_flower_shows_and_does_nothing(shop: Shop, run):
    for path in POSTS:
        answer = shop.read_only.ask(path.replace(SOME_ID, run.id, 1), {})
        assert (answer.status, answer.json["error"]) == (403, "Read only mode is enabled"), path
    assert shop.read_only.ask(f"/api/workflows/{run.id}").json["workflow"]["status"] == "RUNNING"
    assert run.workflow().status.name == "RUNNING"


def test_a_flower_open_to_everybody_does_nothing_and_closes_its_interface(shop: Shop, run):
    for path in POSTS:
        answer = shop.open.ask(path.replace(SOME_ID, run.id, 1), {})
        assert answer.status == (401 if path.startswith("/api/") else 403), path
        assert "authentication" in answer.json["error"] or "--basic_auth" in answer.json["error"]
    for path in READS:
        expected = (401,) if path.startswith("/api/") else (200, 404)
        assert shop.open.ask(path).status in expected, path
    assert run.workflow().status.name == "RUNNING"


def test_what_can_only_be_read_cannot_be_posted_to(shop: Shop):
    for path in READS:
        assert shop.flower.ask(path, {}).status == 405, path


def test_what_can_only_be_posted_cannot_be_read(shop: Shop):
    for path in POSTS:
        assert shop.flower.ask(path).status == 405, path


def test_pages_and_data_forbid_everything_foreign(shop: Shop):
    for path in READS:
        headers = shop.flower.ask(path).headers
        policy = headers["Content-Security-Policy"]
        assert "script-src 'self';" in policy, path
        assert "frame-ancestors 'none'" in policy, path
        assert headers["X-Content-Type-Options"] == "nosniff", path
        assert headers["Cache-Control"] == "no-store", path


def test_no_page_needs_an_inline_script(shop: Shop):
    for path in READS:
        if not path.startswith(("/workflows/data", "/api")):
            scripts = re.findall(r"<script(?![^>]*\bsrc=)[^>]*>", shop.flower.ask(path).text)
            assert scripts == [], path


def test_static_files_are_ours_alone(shop: Shop):
    assert shop.flower.ask("/workflows/static/list.js", user=None).status == 200
    for path in ("../data.py", "%2e%2e/data.py", "..%2f..%2f..%2fpyproject.toml", "/etc/passwd"):
        assert shop.flower.ask(f"/workflows/static/{path}", user=None).status in (403, 404), path


def test_actions_name_the_user_of_flower(shop: Shop, run):
    answer = shop.flower.ask(f"/api/workflows/{run.id}/cancel", {"reason": "not today"})
    assert answer.status == 202
    shop.until(run.ready, "the cancellation")
    workflow = run.workflow()
    assert (workflow.canceled_by, workflow.cancellation_reason) == ("kim", "not today")
