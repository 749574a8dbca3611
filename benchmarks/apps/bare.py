"""The least that a durable chain on a broker can cost: one Celery hop and the engine's row writes, and nothing else.

For each stage one message is published, and two transactions write the rows that the engine writes: the claim (which
does not wait for the disk), then the end of this stage, the start of the next, four rows of history and the next
message.  They are written to the engine's own tables.  Nothing is read, checked or decided.
"""

from __future__ import annotations

import os
from functools import cache

import psycopg
from celery import Celery

BROKER, DATABASE = "BENCH_BARE_BROKER", "BENCH_BARE_DATABASE"

CLAIM = """
    UPDATE stabilize_messages SET send_at = now() + interval '30 s', lease_owner = 'bare', claims = claims + 1,
        attempts = attempts + 1 WHERE id = %s
"""
DELETE = "DELETE FROM stabilize_messages WHERE id = %s"
END = """
    UPDATE stabilize_stages SET status = 'SUCCEEDED', outputs = '{"value": ""}', sources = '{"value": ["s"]}',
        tasks = '[{"id": "t", "name": "bench", "type": "bench", "status": "SUCCEEDED", "attempts": 1}]',
        end_time = now() WHERE id = %s
"""
BEGIN = """
    UPDATE stabilize_stages SET status = 'RUNNING', open_upstreams = 0, start_time = now(),
        sources = '{"value": ["s"]}',
        tasks = '[{"id": "t", "name": "bench", "type": "bench", "status": "RUNNING", "attempts": 0}]' WHERE id = %s
"""
SEND = """
    INSERT INTO stabilize_messages (id, type, version, workflow_id, stage_id, task_id, generation, payload, exclusive,
        queue, label, created_at, due_at, send_at, sends, claims, attempts)
    VALUES (%s, 'RunTask', 1, %s, %s, %s, 0, '{"task_type": "bench"}', false, 'bare', 'bench / chain', now(), now(),
        now() + interval '10 s', 0, 0, 0)
"""
ONE_CHANGE = "(%s, %s, %s, NULL, 0, 1, 'stage', 'RUNNING', 'SUCCEEDED', 'bare', now())"
HISTORY = f"""
    INSERT INTO stabilize_history (id, workflow_id, stage_id, task_id, generation, step, event, from_status, to_status,
        worker, at) VALUES {", ".join([ONE_CHANGE] * 4)}
"""


def row_id(run: str, kind: str, number: int) -> str:
    """An id of the length that ids have."""
    return f"{run:0>12}{kind}{number:013d}"


@cache
def session(database: str) -> psycopg.Connection[tuple[object, ...]]:
    """This process's session."""
    return psycopg.connect(database)


def make_app(broker: str, database: str) -> Celery:
    """The app, for a worker or for the client."""
    made = Celery("bench_bare", broker=broker, set_as_current=False)
    made.conf.update(worker_prefetch_multiplier=4, task_default_queue="bare", task_ignore_result=True)

    @made.task(name="bench.hop")
    def hop(run: str, workflow_id: str, number: int, last: int) -> None:
        connection = session(database)
        message, stage = row_id(run, "m", number), row_id(run, "s", number)
        connection.execute("SET LOCAL synchronous_commit TO off")
        connection.execute(CLAIM, (message,))
        connection.commit()
        connection.execute(DELETE, (message,))
        connection.execute(END, (stage,))
        changes = [row_id(run, "abcd"[change], number) for change in range(4)]
        connection.execute(HISTORY, [value for each in changes for value in (each, workflow_id, stage)])
        if number < last:
            following = row_id(run, "s", number + 1)
            connection.execute(BEGIN, (following,))
            connection.execute(SEND, (row_id(run, "m", number + 1), workflow_id, following, following))
        else:
            connection.execute(
                "UPDATE stabilize_workflows SET status = 'SUCCEEDED', end_time = now() WHERE id = %s",
                (workflow_id,),
            )
        connection.commit()
        if number < last:
            hop.apply_async((run, workflow_id, number + 1, last))

    return made


if BROKER in os.environ:
    app = make_app(os.environ[BROKER], os.environ[DATABASE])
