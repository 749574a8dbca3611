"""Celery tasks as the work of stages: sending them, holding their lease, reading how they end."""
