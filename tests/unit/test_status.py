"""The table of statuses and the transitions between them, against the behaviour contract, section 1."""

from __future__ import annotations

from itertools import product

import pytest

from stabilize_celery.errors import InvalidStateTransitionError
from stabilize_celery.models.status import (
    ACTIVE_STATUSES,
    COMPLETED_STATUSES,
    CONTINUABLE_STATUSES,
    HALT_STATUSES,
    can_transition,
    validate_transition,
)
from stabilize_celery.models.status import WorkflowStatus as S

#: status: complete, halt, successful, failure, continuable, active
TABLE = {
    "NOT_STARTED": "-----a",
    "RUNNING": "-----a",
    "PAUSED": "-----a",
    "SUSPENDED": "-----a",
    "BUFFERED": "------",
    "REDIRECT": "----c-",
    "SUCCEEDED": "C-s-c-",
    "SKIPPED": "C-s-c-",
    "FAILED_CONTINUE": "C--fc-",
    "TERMINAL": "CH-f--",
    "STOPPED": "CH-f--",
    "CANCELED": "CH----",
}

#: Pausing is possible before the start and while waiting for a slot, and resuming leads back there.
TRANSITIONS = {
    "NOT_STARTED": {"RUNNING", "CANCELED", "SKIPPED", "BUFFERED", "TERMINAL", "PAUSED"},
    "BUFFERED": {"NOT_STARTED", "RUNNING", "CANCELED", "SKIPPED", "PAUSED"},
    "RUNNING": {
        "SUCCEEDED",
        "FAILED_CONTINUE",
        "TERMINAL",
        "CANCELED",
        "PAUSED",
        "STOPPED",
        "SUSPENDED",
        "REDIRECT",
        "SKIPPED",
    },
    "PAUSED": {"RUNNING", "CANCELED", "STOPPED", "NOT_STARTED", "BUFFERED"},
    "SUSPENDED": {"RUNNING", "CANCELED", "STOPPED"},
    "REDIRECT": {"RUNNING", "SUCCEEDED", "CANCELED"},
}


def test_the_table_names_every_status() -> None:
    assert [str(status) for status in S] == list(TABLE)


@pytest.mark.parametrize("status", S, ids=str)
def test_what_a_status_means(status: S) -> None:
    complete, halt, successful, failure, continuable, active = (flag != "-" for flag in TABLE[str(status)])

    assert status.is_complete is complete
    assert status.is_halt is halt
    assert status.is_successful is successful
    assert status.is_failure is failure
    assert status.is_continuable is continuable
    assert status.is_active is active
    assert status.is_skipped is (status is S.SKIPPED)
    assert status.is_dirty is (str(status) in ("RUNNING", "REDIRECT"))
    assert (status in COMPLETED_STATUSES) is complete
    assert (status in HALT_STATUSES) is halt
    assert (status in CONTINUABLE_STATUSES) is continuable
    assert (status in ACTIVE_STATUSES) is active


@pytest.mark.parametrize(("current", "target"), list(product(S, S)), ids=str)
def test_which_transitions_are_legal(current: S, target: S) -> None:
    legal = current is target or str(target) in TRANSITIONS.get(str(current), set())

    assert can_transition(current, target) is legal
    if legal:
        validate_transition(current, target)
        return
    with pytest.raises(InvalidStateTransitionError) as refused:
        validate_transition(current, target, "stage", "s1")
    assert str(refused.value).startswith(f"stage s1 cannot go from {current} to {target}")
    assert (refused.value.current, refused.value.target) == (current, target)


def test_nothing_leaves_a_status_that_is_complete() -> None:
    assert not any(
        can_transition(status, other) for status in COMPLETED_STATUSES for other in S if other is not status
    )
