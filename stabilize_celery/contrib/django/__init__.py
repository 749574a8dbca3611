"""The engine within a Django project: put ``stabilize_celery.contrib.django`` into ``INSTALLED_APPS``.

* ``stabilize.start(workflow)`` inside ``transaction.atomic()`` is part of that transaction, if the workflows live in the
  same database; ``connection="default"`` says so explicitly (``transactions``).
* ``stabilize_database_url`` may be left out: it is made from ``DATABASES`` (``database``).
* ``manage.py migrate`` makes the tables (``operations``, ``migrations``).
* Workflows, stages, history, messages and dead letters in the admin, to be looked at (``models``, ``admin``).
* The signal :data:`~stabilize_celery.contrib.django.signals.workflow_ended`.
"""
