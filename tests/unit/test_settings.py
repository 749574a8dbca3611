"""Options: where they come from, what is refused, and that they have an effect."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from celery import Celery

from stabilize_celery import Stabilize, StageExecution, Workflow, WorkflowStatus
from stabilize_celery.delivery.celery_app import read_settings
from stabilize_celery.errors import ConfigurationError
from stabilize_celery.settings import Settings


def test_defaults_are_valid() -> None:
    assert Settings.load({}, {}) == Settings()


def test_the_configuration_beats_the_environment() -> None:
    environment = {"STABILIZE_LEASE": "5", "STABILIZE_INLINE": "false"}
    settings = Settings.load({"stabilize_lease": 7}, environment)
    assert (settings.lease, settings.inline) == (7, False)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"stabilize_leese": 3}, "there is no setting stabilize_leese"),
        ({"stabilize_lease": "soon"}, r"stabilize_lease: .* \(is 'soon'\)"),
        ({"stabilize_max_attempts": 0}, "stabilize_max_attempts"),
        ({"stabilize_lease": float("inf")}, "stabilize_lease"),
        ({"stabilize_lease": "nan"}, "stabilize_lease"),
        ({"stabilize_heartbeat": True}, "stabilize_heartbeat: .*truth value"),
        ({"stabilize_retry_delay_max": 1e300}, "stabilize_retry_delay_max"),
        ({"stabilize_retention": -1}, "stabilize_retention"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(values: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Settings.load(values, {})


def test_the_environment_lists_names_with_commas() -> None:
    settings = Settings.load({}, {"STABILIZE_REDACT_KEYS": "iban, pin", "STABILIZE_IMPORTS": "shop.stages"})
    assert (settings.redact_keys, settings.imports) == (("iban", "pin"), ("shop.stages",))


def test_a_refused_value_is_shown_without_its_password() -> None:
    with pytest.raises(ConfigurationError, match=r"shop:\*\*\*@db") as refused:
        Settings.load({"stabilize_database_url": ["postgresql://shop:hunter2@db/shop"]}, {})
    assert "hunter2" not in str(refused.value)


def test_both_styles_of_celery_configuration() -> None:
    class Django:
        CELERY_STABILIZE_LEASE = 9.0
        CELERY_STABILIZE_TASK_ROUTES = {"charge": {"queue": "payments"}}

    plain, django = Celery(set_as_current=False), Celery(set_as_current=False)
    plain.conf.stabilize_lease = 8.0
    django.config_from_object(Django, namespace="CELERY")
    assert read_settings(plain).lease == 8.0
    assert read_settings(django).lease == 9.0
    assert read_settings(django).queue_for("charge") == "payments"
    assert read_settings(django).queue_for("ship") == "stabilize.tasks"


@pytest.fixture
def local_url() -> Iterator[str]:
    class Ok(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Ok)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("allowed", "status"), [(True, WorkflowStatus.SUCCEEDED), (False, WorkflowStatus.TERMINAL)]
)
def test_private_urls_are_opened_for_one_engine(
    local_url: str, allowed: bool, status: WorkflowStatus
) -> None:
    with Stabilize.embedded(allow_private_urls=allowed) as engine:
        stage = StageExecution.single("call", "http", {"url": local_url})
        assert engine.run(Workflow.create("test", "call", [stage]), timeout=20).status is status
