"""Celery canvases as stages: signatures read as data, references to the outputs of others."""
