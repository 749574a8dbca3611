"""A user's project, tested with the kit by a pytest of its own: no broker, no PostgreSQL, nothing to wait for."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

SHOP = """
from celery import Celery
from stabilize_celery import Stabilize, StageDefinitionBuilder, StageExecution, TaskExecution, Workflow

app = Celery("shop", broker="amqp://nobody:nothing@127.0.0.1:1//", include=["shop_more"])
app.conf.stabilize_database_url = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"
app.conf.stabilize_max_attempts = 4
app.conf.broker_connection_retry = False
stabilize = Stabilize(app)

class PackBuilder(StageDefinitionBuilder):
    def build_tasks(self, stage):
        return [TaskExecution.create("Pack", "pack")]

stabilize.register_builder(PackBuilder())
stabilize.register_workflow("receipt", lambda seen: Workflow.create(
    "shop", "receipt", [StageExecution.celery("mail", send_receipt.s(seen["charge_id"]))]))

@stabilize.task("charge")
def charge(order_id: int):
    return {"charge_id": f"ch_{order_id}"}

@app.task(name="shop.send_receipt")
def send_receipt(charge_id):
    return f"receipt for {charge_id}"

def order(order_id):
    return Workflow.create("shop", "order", [
        StageExecution.single("charge", "charge", {"order_id": order_id}),
        StageExecution.create("pack", "Pack", "pack", {}, {"charge"}),
        StageExecution.single("later", "wait", {"seconds": 604800}, {"pack"}),
        StageExecution.celery("receipt", send_receipt.s("{{ charge.charge_id }}"), requires={"later"}),
        StageExecution.single("inner", "sub_workflow", {"workflow": "receipt"}, {"later"}),
    ])
"""
MORE = """
from shop import stabilize

@stabilize.task("pack")
def pack(charge_id: str):
    return {"packed": charge_id}
"""
TESTS = """
from shop import order, send_receipt
from stabilize_celery.testing import assert_order, assert_stage, assert_succeeded

def test_an_order(stabilize):
    run = stabilize.run(order(42))
    assert_succeeded(run, {"packed": "ch_42", "result": "receipt for ch_42"})
    assert_order(run, "charge", "pack", "later", "receipt")
    assert_stage(run, "inner", outputs={"sub_workflow_outputs": {"result": "receipt for ch_42"}})
    assert stabilize.settings.max_attempts == 4
    assert len(stabilize.runs) == 2

def test_stand_ins(stabilize):
    charge = stabilize.stub("charge", returns={"charge_id": "fake"})
    mail = stabilize.stub(send_receipt, results=["one", "two"])
    run = stabilize.run(order(42))
    assert_succeeded(run, {"packed": "fake"})
    assert charge.last.context == {"order_id": 42}
    assert [call.args for call in mail.calls] == [["fake"], ["fake"]]

def test_stand_ins_do_not_outlive_the_test(stabilize):
    assert_succeeded(stabilize.run(order(1)), {"packed": "ch_1"})

def test_a_celery_task_that_fails(stabilize):
    stabilize.stub(send_receipt, raises=OSError("no mail today"))
    run = stabilize.run(order(42))
    assert_stage(run, "receipt", status="TERMINAL", error="no mail today")
"""


OVERRIDDEN = """
import datetime, pytest
from shop import app
from stabilize_celery import FakeClock, StageExecution, Workflow

@pytest.fixture
def stabilize_app():
    return app

@pytest.fixture
def stabilize_options(tmp_path):
    return {"max_attempts": 2, "url": f"sqlite:///{tmp_path}/kept.db"}

@pytest.fixture
def stabilize_clock():
    return FakeClock(datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc))

def test_it(stabilize, tmp_path):
    assert (stabilize.settings.max_attempts, stabilize.clock.now().year) == (2, 2030)
    run = stabilize.run(Workflow.create("a", "b", [StageExecution.single("charge", "charge", {"order_id": 1})]))
    assert run.get() == {"charge_id": "ch_1"}
    assert (tmp_path / "kept.db").exists()
"""
FAILING = """
from shop import order
from stabilize_celery.testing import assert_succeeded

def test_by_the_kit(stabilize):
    stabilize.stub("pack", raises=ValueError("no boxes"))
    assert_succeeded(stabilize.run(order(42)))

def test_by_hand(stabilize):
    stabilize.stub("pack", raises=ValueError("no boxes"))
    assert stabilize.run(order(42)).successful()

def test_typo(stabilize):
    stabilize.stub("chrage", returns={})

def test_elsewhere(stabilize):
    stabilize.stub("elsewhere", returns={}, new=True)
"""


@pytest.fixture
def project(pytester):
    pytester.syspathinsert()
    pytester.makepyfile(shop=SHOP, shop_more=MORE)
    pytester.makeini("[pytest]\nstabilize_app = shop:app\nfilterwarnings = error\n")
    return pytester


def test_an_app_is_tested_without_a_broker(project):
    project.makepyfile(test_order=TESTS, test_overridden=OVERRIDDEN)
    project.runpytest_subprocess().assert_outcomes(passed=5)


def test_a_failure_shows_the_workflow_once(project):
    project.makepyfile(FAILING)
    result = project.runpytest_subprocess()
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines(
        ["*no task type 'chrage' is registered, did you mean 'charge'? (if its code*"]
    )
    told = result.stdout.str()
    by_the_kit, rest = told.split("test_by_the_kit ___")[1].split("test_by_hand ___")
    by_hand, typo = rest.split("test_typo ___")
    assert "- workflows -" in by_hand
    for part in (by_the_kit, by_hand):
        assert "no boxes" in part
        assert part.count("shop/order") == 1
    assert "- workflows -" not in typo


def test_a_run_that_uses_nothing_of_it_does_not_import_the_engine(pytester):
    pytester.makepyfile(
        """
        import sys

        def test_it(request):
            assert request.config.pluginmanager.has_plugin("stabilize_celery")
            for name in ("stabilize_celery.engine", "stabilize_celery.clock", "celery", "sqlalchemy", "pydantic", "rich"):
                assert name not in sys.modules
        """
    )
    pytester.runpytest_subprocess("-p", "no:celery").assert_outcomes(passed=1)
