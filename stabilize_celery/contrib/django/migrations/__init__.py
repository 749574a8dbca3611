"""Migrations for ``manage.py migrate``: one for each revision in ``stabilize_celery/persistence/migrations``."""
