"""The app as the next release would have it: two of its messages have a newer stored form."""

from __future__ import annotations

from stabilize_celery.messages import RunTask, StartStage

RunTask.version = StartStage.version = 2

from tests.conformance.deployment import app, stabilize  # noqa: E402, F401
