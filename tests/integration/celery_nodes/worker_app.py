"""The app of a worker, as pytest-celery wants it: it puts its own words into the places that say None."""

from __future__ import annotations

from celery import Celery

from tests.integration.celery_nodes.work import stabilize

imports = None

app = Celery("celery_test_app")
config = None

if config:
    app.config_from_object(config)

stabilize.init_app(app)
