"""The roles of docs/how-to/least-privilege.md: what each may do is enough, and what it may not do is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import ProgrammingError

from stabilize_celery import WorkflowStatus as S
from stabilize_celery.cli import main
from tests.conformance.harness import flow, stage
from tests.integration.workers.conftest import Deploy

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "least-privilege.md"
ROLES = ("stabilize_worker", "stabilize_reader")


def run_sql(url: str, *statements: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement.replace("%", "%%"))
    engine.dispose()


@pytest.fixture
def urls(postgres_url: str) -> Iterator[dict[str, str]]:
    """The database as each role reaches it."""
    blocks = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    try:
        run_sql(postgres_url, *blocks)
        # What every migration is followed by can be run again.
        run_sql(postgres_url, blocks[1])
        passwords = dict(zip(ROLES, re.findall(r"PASSWORD '(.*)'", blocks[0]), strict=True))
        yield {
            role: make_url(postgres_url)
            .set(username=role, password=password)
            .render_as_string(hide_password=False)
            for role, password in passwords.items()
        }
    finally:
        for role in ROLES:
            run_sql(
                postgres_url,
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'",
                f"DROP OWNED BY {role}",
                f"DROP ROLE {role}",
            )


def test_workers_and_those_who_start_need_no_more_than_rows(deploy: Deploy, urls: dict[str, str]) -> None:
    deployment = deploy(database=urls["stabilize_worker"], heartbeat=0.2)
    engine = deployment.engine
    worker = deployment.worker(pool="prefork", concurrency=2)
    limited = {"limitConcurrent": True, "maxConcurrentExecutions": 1, "keepWaitingPipelines": True}

    waiting = engine.start(flow(stage("a", "script", do=[{"return": "suspend"}, {"return": "success"}])))
    results = [
        engine.run(
            flow(
                stage("a"),
                stage("b", plan={"before": [{"name": "x"}]}, after=["a"]),
                stage("c", after=["a", "b"]),
            )
        ),
        engine.run(flow(stage("a", "script", do=[{"raise": "TransientError"}, {"return": "success"}]))),
        *[
            engine.wait_final(run)
            for run in [engine.start(flow(stage("a"), config=limited, name="limited")) for _ in range(3)]
        ],
    ]
    failed = engine.run(flow(stage("a", "fail")))
    failed.run.restart_stage("a")
    again = engine.settle(failed.run)
    engine.wait_status(waiting, "a", "SUSPENDED")
    waiting.pause()
    engine.wait_until(lambda: waiting.status is S.PAUSED, 30, waiting)
    waiting.resume()
    waiting.signal("a", "go")
    canceled = engine.start(flow(stage("a", "script", do=[{"return": "suspend"}])), dedup_key="once")
    canceled.cancel()

    assert [result.status for result in results] == [S.SUCCEEDED] * 5
    assert again.status is S.TERMINAL
    assert again.executions("a") == 2
    assert engine.wait_final(waiting).status is S.SUCCEEDED
    assert engine.wait_final(canceled).status is S.CANCELED
    assert "permission denied" not in worker.output


FORBIDDEN = [
    "CREATE TABLE public.more (id integer)",
    "ALTER TABLE stabilize_workflows ADD COLUMN more integer",
    "DROP TABLE stabilize_history",
    "TRUNCATE stabilize_messages",
    "DROP INDEX ix_stabilize_messages_send_at",
    "CREATE FUNCTION public.f() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "UPDATE stabilize_schema_version SET version_num = '9999'",
    "DELETE FROM stabilize_schema_version",
]
WRITES = [
    "DELETE FROM stabilize_messages",
    "UPDATE stabilize_workflows SET name = 'x'",
    "INSERT INTO stabilize_slots VALUES ('x', 1, true, NULL)",
    "SELECT * FROM stabilize_workflows FOR UPDATE",
]


def test_nobody_but_the_owner_changes_the_tables(urls: dict[str, str]) -> None:
    for role, forbidden in (("stabilize_worker", FORBIDDEN), ("stabilize_reader", FORBIDDEN + WRITES)):
        engine = create_engine(urls[role])
        for statement in forbidden:
            with (
                pytest.raises(ProgrammingError, match=r"permission denied|must be owner"),
                engine.begin() as connection,
            ):
                connection.execute(text(statement))
        engine.dispose()


def test_a_reader_sees_workflows_and_starts_and_changes_none(deploy: Deploy, urls: dict[str, str]) -> None:
    deployment = deploy(database=urls["stabilize_worker"])
    run = deployment.engine.start(flow(stage("a")))

    def ask(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["--database-url", urls["stabilize_reader"], *arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.output

    for arguments in (
        ["list"],
        ["show", run.id, "--history", "--outputs"],
        ["graph", run.id],
        ["migrate", "--check"],
    ):
        code, output = ask(*arguments)
        assert (code, output) == (0, output)
    code, output = ask("cancel", run.id)
    assert code == 1
    assert "permission denied" in output
    assert run.status is S.NOT_STARTED
