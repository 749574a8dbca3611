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
        "a message that is put back is due at once",
        "A retry does not wait for its backoff.",
        '"due_at": due if waits_in is None else self.now,',
        '"due_at": self.now,',
        ("tests/unit/test_stale_messages.py::test_a_retry_is_not_claimed_before_its_time",),
        inside="requeue",
    ),
    Change(
        "a forced cancel does not end the process",
        "cancel(force=True) leaves a body running that does not listen.",
        '.values(cancel="kill" if force else "ask")',
        '.values(cancel="ask")',
        ("tests/unit/test_controls_kept.py::test_a_running_body_is_told_how_it_is_canceled",),
    ),
]
