"""The set-up of the seed documents: a queue, a processor made of handlers, an orchestrator.

A facade.  What is pushed into a queue is moved into the messages table of the store, and from there on the
one engine handles it.  New programs are shorter with :class:`stabilize_celery.Stabilize`.
"""

from __future__ import annotations

from stabilize_celery.persistence.message_queue import MessageQueue, PostgresQueue, SqliteQueue
from stabilize_celery.seeds.orchestrator import Orchestrator
from stabilize_celery.seeds.processor import QueueProcessor

__all__ = ["MessageQueue", "Orchestrator", "PostgresQueue", "QueueProcessor", "SqliteQueue"]
