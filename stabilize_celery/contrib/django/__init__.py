"""The engine within a Django project: put ``stabilize_celery.contrib.django`` into ``INSTALLED_APPS``.

* ``stabilize.start(workflow)`` inside ``transaction.atomic()`` is part of that transaction, if the workflows live in the
  same database; ``connection="default"`` says so explicitly (``transactions``).
* ``stabilize_database_url`` may be left out: it is made from ``DATABASES`` (``database``).
* ``manage.py migrate`` makes the tables (``migrations``).
* The tables as models, to be read (``models``); workflows and stages in the admin, to be looked at (``admin``).
* The signal :data:`~stabilize_celery.contrib.django.signals.workflow_ended`.
"""
