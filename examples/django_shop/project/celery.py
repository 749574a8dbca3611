"""The Celery app, with the engine on it.  Its options are the ``CELERY_...`` settings of the project."""

from __future__ import annotations

import os

from celery import Celery

from stabilize_celery import Stabilize

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

app = Celery("project")
app.config_from_object("django.conf:settings", namespace="CELERY")
stabilize = Stabilize(app)
app.autodiscover_tasks()  # finds tasks.py and stages.py in the installed apps
