"""The Celery app that docker-compose.yml runs: a deployment of the engine with nothing but configuration.

`celery -A app worker` finds it with this folder on PYTHONPATH. Your own project has an app already and only
adds the line with `Stabilize`.
"""

from __future__ import annotations

from celery import Celery

from stabilize_celery import Stabilize

app = Celery("stabilize")
app.config_from_object("celeryconfig")
stabilize = Stabilize(app)
