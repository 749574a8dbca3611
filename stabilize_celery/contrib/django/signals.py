"""Django signals."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import close_old_connections
from django.dispatch import Signal

from stabilize_celery.observe import Transition

#: A workflow has ended.  Sent to receivers with ``workflow_id``, ``application``, ``name``, ``status`` (a
#: :class:`~stabilize_celery.models.status.WorkflowStatus`), ``reason`` and ``ended_at``; the sender is the model
#: :class:`~stabilize_celery.contrib.django.models.Workflow`.
#:
#: It is sent in the process that commits the end, a worker as a rule, right after that commit, at most once: if the
#: process dies in between, it is not sent.  A workflow that is restarted and ends again sends it again.  What must
#: happen belongs into a last stage instead.
workflow_ended = Signal()


def send_workflow_ended(transitions: Sequence[Transition]) -> None:
    """An observer: receivers that fail are logged by Django and stop nothing else."""
    for transition in transitions:
        if transition.ends_workflow and workflow_ended.receivers:
            from stabilize_celery.contrib.django.models import Workflow

            # As around a request: this may be a thread whose connections are closed by nothing else.
            close_old_connections()
            workflow_ended.send_robust(
                sender=Workflow,
                workflow_id=transition.workflow_id,
                application=transition.application,
                name=transition.workflow_name,
                status=transition.new,
                reason=transition.reason or "",
                ended_at=transition.at,
            )
            close_old_connections()
