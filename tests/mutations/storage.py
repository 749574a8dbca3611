"""Rows: messages, leases and fencing tokens, signals, dedup keys, retention, time."""

from __future__ import annotations

from tests.mutations.change import Change

CHANGES = [
    Change(
        "the due time is ignored by take",
        "A delayed control message is handled at once.",
        'messages.c.due_at <= bindparam("latest"),',
        'or_(messages.c.due_at <= bindparam("latest"), messages.c.id == bindparam("message_id")),',
        ("tests/unit/test_stale_messages.py::test_a_control_message_is_not_taken_before_its_time",),
        inside="Queries._take",
    ),
    Change(
        "the due time is ignored by claim",
        "A retry runs as soon as its message is delivered, without its backoff.",
        'messages.c.due_at <= bindparam("latest"),',
        'or_(messages.c.due_at <= bindparam("latest"), messages.c.id == bindparam("message_id")),',
        ("tests/unit/test_stale_messages.py::test_a_retry_is_not_claimed_before_its_time",),
        inside="Queries._claim",
    ),
    Change(
        "every delayed message is ten seconds late",
        "Retries, timers and waits last ten seconds longer than they say.",
        "due = now + timedelta(seconds=delay)",
        "due = now + timedelta(seconds=delay + 10 * (delay > 0))",
        ("tests/unit/test_stale_messages.py::test_a_suspension_ends_at_its_time",),
        inside="new_row",
    ),
    Change(
        "signals are taken newest first",
        "Two signals reach a task in the wrong order.",
        ".order_by(signals.c.at, signals.c.id)",
        ".order_by(signals.c.at.desc(), signals.c.id.desc())",
        ("tests/unit/test_stale_messages.py::test_a_signal_sent_in_two_is_taken_in_order",),
    ),
    Change(
        "a claim that another one has replaced is given back",
        "A worker that froze takes a task from the worker that has it now, and it runs twice.",
        "return and_(messages.c.id == message_id, free if token is None else messages.c.claims == token)",
        "return and_(messages.c.id == message_id)",
        (
            "tests/unit/test_fencing.py::test_a_claim_that_cannot_be_read_is_given_back_by_its_own_worker_alone",
            "tests/unit/test_fencing.py::test_a_type_of_a_newer_release_is_not_taken_from_its_worker",
            "tests/unit/test_fencing.py::test_a_result_that_cannot_be_recorded_is_not_held_against_another_worker",
        ),
    ),
    Change(
        "a message that is held is taken",
        "A message is handled by two processes.",
        'or_(messages.c.lease_owner.is_(None), messages.c.send_at <= bindparam("now")),',
        'or_(messages.c.lease_owner.is_(None), messages.c.send_at <= bindparam("now"), messages.c.lease_owner.is_not(None)),',
        ("tests/unit/test_schedules.py::test_an_embedded_engine_has_no_beat",),
        inside="Queries._take",
    ),
    Change(
        "a result with an old fencing token is taken",
        "Two workers record results of one attempt.",
        'messages.c.claims == bindparam("token"),',
        'messages.c.claims >= bindparam("token"),',
        ("tests/unit/test_schedules.py::test_an_embedded_engine_has_no_beat",),
        inside="Queries._settle",
    ),
    Change(
        "a claim does not count the attempt",
        "A task that kills its worker is run for ever.",
        "attempts=messages.c.attempts + 1,",
        "attempts=messages.c.attempts,",
        ("tests/unit/test_schedules.py::test_an_embedded_engine_has_no_beat",),
        inside="Queries._claim",
    ),
    Change(
        "a claim starts no lease",
        "A second worker begins a task that runs.",
        'send_at=bindparam("lease_end"),',
        'send_at=case((messages.c.id.is_(None), bindparam("lease_end")), else_=messages.c.due_at),',
        ("tests/unit/test_schedules.py::test_an_embedded_engine_has_no_beat",),
        inside="Queries._claim",
    ),
    Change(
        "the database is never asked for the time again",
        "A clock that was set wrong stays wrong.",
        "and steady - self._measured < _FRESH",
        "and steady - self._measured < 1e9",
        ("tests/unit/test_registration.py::test_an_unknown_type_is_refused_at_the_start_with_a_suggestion",),
    ),
]
