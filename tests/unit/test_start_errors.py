"""What a start says when the database refuses its row: only what is there already was started before."""

from __future__ import annotations

import traceback

import pytest
from sqlalchemy.exc import IntegrityError

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery.errors import StoreError, WorkflowStateError
from tests.conformance.harness import flow, stage


def test_a_rule_of_the_database_that_is_broken_is_told_as_it_is() -> None:
    refuse = "BEGIN SELECT RAISE(ABORT, 'no starts today'); END"
    with Stabilize.embedded(check_types=False) as stabilize:
        workflow = flow(stage("a"))
        with stabilize.store.database.begin() as connection:
            connection.exec_driver_sql(f"CREATE TRIGGER t BEFORE INSERT ON stabilize_workflows {refuse}")
        with pytest.raises(IntegrityError, match="no starts today"):
            stabilize.start(workflow)
        with stabilize.store.database.begin() as connection:
            connection.exec_driver_sql("DROP TRIGGER t")
        stabilize.start(workflow)
        with pytest.raises(WorkflowStateError, match="in the database already"):
            stabilize.start(workflow)


@pytest.mark.parametrize(
    ("url", "create_tables", "told"),
    [
        ("postgresql+psycopg://nobody@127.0.0.1:1/none", False, "cannot be reached"),
        ("sqlite:////nonexistent/folder/x.db", False, "cannot be reached"),
        ("sqlite://", False, "the tables of stabilize_celery are missing"),
    ],
)
def test_a_good_sentence_ends_a_short_traceback(url: str, create_tables: bool, told: str) -> None:
    engine = Stabilize.embedded(url, create_tables=create_tables)
    with pytest.raises(StoreError, match=told) as caught:
        engine.start(Workflow.create("test", "short", [StageExecution.single("a", "noop")]))
    shown = "".join(traceback.format_exception(caught.value))
    assert len(shown.splitlines()) < 60
    engine.close()
