"""What a start says when the database refuses its row: only what is there already was started before."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import IntegrityError

from stabilize_celery import Stabilize
from stabilize_celery.errors import WorkflowStateError
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
