"""``task_always_eager`` in Django: the commit runs the workflow, in the test's own process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from celery import Celery
from django.db import DatabaseError, connection, transaction
from django.test import TestCase

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.contrib.django import models
from stabilize_celery.errors import WorkflowFailedError, WorkflowNotFoundError
from tests.contrib.django.app.models import Order

WAY_OUT = "use TransactionTestCase"


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


@pytest.fixture
def test_case(shop: Stabilize) -> Iterator[None]:
    """What django.test.TestCase does around each test."""
    around = TestCase._enter_atomics()
    yield
    TestCase._rollback_atomics(around)


@pytest.mark.usefixtures("test_case")
def test_a_test_case_that_never_commits_says_what_to_use(shop: Stabilize) -> None:
    with TestCase.captureOnCommitCallbacks() as callbacks, pytest.warns(RuntimeWarning, match=WAY_OUT):
        run = shop.start(order())
    assert len(callbacks) == 1
    assert models.Workflow.objects.get(id=run.id).status == "NOT_STARTED"

    with pytest.warns(RuntimeWarning, match=WAY_OUT):
        callbacks[0]()
    assert models.Workflow.objects.get(id=run.id).status == "NOT_STARTED"


@pytest.mark.usefixtures("test_case")
def test_asking_for_a_workflow_whose_start_is_not_committed_says_so(shop: Stabilize) -> None:
    """Also without the setting, and in any transaction: the engine has a connection of its own."""
    assert shop.app is not None
    shop.app.conf.task_always_eager = False
    run = shop.start(order())
    asked: list[Callable[[], object]] = [run.get, run.ready, run.workflow, run.cancel]
    for ask in asked:
        with pytest.raises(WorkflowNotFoundError, match=f"only after its commit.*{WAY_OUT}"):
            ask()


def test_a_workflow_that_does_not_exist_is_no_matter_of_a_transaction(shop: Stabilize) -> None:
    with pytest.raises(WorkflowNotFoundError) as outside:
        shop.get("0" * 26)
    assert "commit" not in str(outside.value)
    with transaction.atomic():
        with contextlib.suppress(DatabaseError), connection.cursor() as cursor:
            cursor.execute("SELECT nonsense")
        with pytest.raises(WorkflowNotFoundError, match="there is no workflow 000"):
            shop.get("0" * 26)
        transaction.set_rollback(True)


@pytest.mark.filterwarnings("error")
def test_a_transaction_that_commits_is_not_warned_of(shop: Stabilize) -> None:
    with transaction.atomic(), transaction.atomic():
        run = shop.start(order())
    assert run.status is S.SUCCEEDED
