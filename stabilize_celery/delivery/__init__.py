"""Getting messages handled: in this process, or through Celery and RabbitMQ."""

from __future__ import annotations
