"""Worker settings for a durable orchestrator, read by `app.py`.

Only what concerns the worker as a whole stands here. What a message of the engine needs (late or early
acknowledgement, no result, no automatic retry) the engine sets on its own Celery tasks, so that the tasks of
a host application keep their own settings.
"""

from __future__ import annotations

import os

broker_url = os.environ.get("CELERY_BROKER_URL", "amqp://guest:guest@localhost:5672//")
stabilize_database_url = os.environ.get(
    "STABILIZE_DATABASE_URL", "postgresql+psycopg://stabilize:stabilize@localhost:5432/stabilize"
)
# Modules with your task types and builders, separated by commas.
stabilize_imports = tuple(filter(None, os.environ.get("STABILIZE_IMPORTS", "").split(",")))

# Workflow state lives in PostgreSQL: nobody reads a result backend.
result_backend = None
task_serializer = "json"
accept_content = ["json"]
enable_utc = True

# The default of 120 seconds notices a dead peer after two to four minutes.
broker_heartbeat = 20
broker_connection_retry_on_startup = True
# Without this one channel error, such as RabbitMQ's consumer_timeout, ends the worker process.
broker_channel_error_retry = True
# User code that publishes by itself hears of a broker that refuses; the relay counts its own confirms.
broker_transport_options = {"confirm_publish": True}

# A cold shutdown (SIGQUIT) lets handlers finish for so long; in Kubernetes set REMAP_SIGTERM=SIGQUIT as well.
worker_soft_shutdown_timeout = 20
# Engine messages take milliseconds: fetch some ahead. Workers for user tasks override this with
# `--prefetch-multiplier 1`, because a message that waits behind a long task helps nobody.
worker_prefetch_multiplier = 8

# Flower lives on these. They cost about half a millisecond per message: set to 0 where that matters.
worker_send_task_events = os.environ.get("CELERY_SEND_EVENTS", "1") == "1"
