"""What is set up when Django has loaded its apps."""

from __future__ import annotations

from django.apps import AppConfig


class StabilizeConfig(AppConfig):
    """The Django app: its label is ``stabilize``, as in ``manage.py migrate stabilize``."""

    name = "stabilize_celery.contrib.django"
    label = "stabilize"
    verbose_name = "Workflows"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Tell the engines of this process about Django's databases, transactions and signals."""
        from stabilize_celery import observe, settings
        from stabilize_celery.contrib.django.database import settings_of_django
        from stabilize_celery.contrib.django.signals import send_workflow_ended
        from stabilize_celery.contrib.django.transactions import find_transaction, transaction_of
        from stabilize_celery.persistence import transactions

        settings.add_source(settings_of_django)
        transactions.register(transaction_of, find_transaction)
        if send_workflow_ended not in observe.everywhere:
            observe.everywhere.append(send_workflow_ended)
