"""``task_always_eager`` in Django: the commit runs the workflow, in the test's own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery
from django.db import transaction
from django.test import TestCase

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.contrib.django import models
from stabilize_celery.errors import WorkflowFailedError
from tests.contrib.django.app.models import Order


class OwnError(Exception):
    """The caller's own."""


@pytest.fixture
def shop(django_url: str) -> Iterator[Stabilize]:
    # Nobody listens on port 1.
    app = Celery("shop", broker="amqp://127.0.0.1:1//", set_as_current=False)
    app.conf.task_always_eager = True
    engine = Stabilize(app)

    @engine.task("pack")
    def pack(item: str) -> dict[str, int]:
        if item == "unicorn":
            raise ValueError("there is none")
        with transaction.atomic():
            Order.objects.create(item=f"packed {item}")
        return {"orders": Order.objects.count()}

    yield engine
    engine.close()
    app.close()


def order(item: str = "lamp") -> Workflow:
    stages = [StageExecution.single(ref, "pack", {"item": item}) for ref in ("a", "b")]
    return Workflow.create("shop", "order", stages)


def test_the_commit_runs_it_as_in_a_transaction_test_case(shop: Stabilize) -> None:
    with transaction.atomic():
        Order.objects.create(item="lamp")
        run = shop.start(order())
        assert models.Workflow.objects.get(id=run.id).status == "NOT_STARTED"

    assert models.Workflow.objects.get(id=run.id).status == "SUCCEEDED"
    assert run.get(timeout=5) == {"orders": 3}


def test_without_a_transaction_the_start_runs_it(shop: Stabilize) -> None:
    assert shop.start(order()).status is S.SUCCEEDED


def test_a_rollback_runs_nothing(shop: Stabilize) -> None:
    def fail() -> None:
        with transaction.atomic():
            shop.start(order())
            raise OwnError

    with pytest.raises(OwnError):
        fail()
    assert Order.objects.count() == 0


def test_a_failure_comes_out_of_the_commit_if_the_app_says_so(shop: Stabilize) -> None:
    assert shop.app is not None
    with transaction.atomic():
        run = shop.start(order("unicorn"))
    assert run.status is S.TERMINAL

    shop.app.conf.task_eager_propagates = True
    with pytest.raises(WorkflowFailedError, match="there is none"), transaction.atomic():
        shop.start(order("unicorn"))


def test_a_test_case_that_never_commits_says_what_to_use(shop: Stabilize) -> None:
    with transaction.atomic():
        # What django.test.TestCase does around each test.
        with TestCase.captureOnCommitCallbacks() as callbacks:
            run = shop.start(order())
        assert len(callbacks) == 1
        assert models.Workflow.objects.get(id=run.id).status == "NOT_STARTED"

        with pytest.warns(RuntimeWarning, match="use TransactionTestCase"):
            callbacks[0]()
        assert models.Workflow.objects.get(id=run.id).status == "NOT_STARTED"
        transaction.set_rollback(True)
