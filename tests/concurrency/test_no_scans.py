"""No statement that a running engine executes reads a whole table: the plans for a database that is full.

Every statement is collected while a broad set of workflows runs; then the tables are filled with the rows of fifty
thousand other workflows, and PostgreSQL is asked how it would execute each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from stabilize_celery import Stabilize
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.persistence import reports
from stabilize_celery.persistence import reports as pages_stage
from stabilize_celery.persistence.leases import count_sent, put_off
from stabilize_celery.persistence.store import newest_ids
from tests.concurrency.stage_hands import Scene, scene_on
from tests.concurrency.workflows import SCENARIOS
from tests.inspection import slot_uses
from tests.services import plain_address
from tests.watch import watching

ROWS = 50_000
#: Statements that may read a whole table, by how they begin, each with its reason.
MAY_SCAN: dict[str, str] = {
    "SELECT %(param_1)s::VARCHAR AS status, count(*) AS n FROM (SELECT stabilize_workflows.id": (
        "stops at 10,000 rows of each status, which a scan finds soonest where all are of one application"
    ),
}
#: One row for each configuration with a limit.
SMALL = {"stabilize_slots"}


class Statements:
    """What an engine executes, each text with the parameters it came with first."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    @contextmanager
    def of(self, engine: Stabilize) -> Iterator[None]:
        with watching(engine.store.database.engine, self._note):
            yield

    def _note(self, _connection: Any, text: str, parameters: list[Any]) -> None:
        if text.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE", "INSERT", "WITH")):
            self.seen.setdefault(text, parameters[0])


def look_at_everything(scene: Scene) -> None:
    """What people, pages and relays ask besides."""
    engine, store = scene.engine, scene.engine.store
    run = engine.find(limit=1)[0]
    for wanted in (
        {},
        {"application": "conformance"},
        {"application": "conformance", "name": "scenario"},
        {"status": S.RUNNING},
        {"application": "conformance", "status": S.SUCCEEDED},
        {"before": run.id},
        {"application": "conformance", "before": run.id},
        {"since": store.now()},
    ):
        engine.find(limit=20, **wanted)
    run.workflow()
    run.history()
    store.exists(run.id)
    store.retrieve_stage(run.workflow().stages[0].id)
    newest_ids(store, 10)
    store.due(50)
    store.take_due(50, lambda row: 60.0)
    store.next_due()
    count_sent(store, "stabilize.tasks", 1000)
    put_off(store, "stabilize.tasks", 60.0)
    put_off(store, "celery", 60.0, handed_over=True)
    store.take_back(["x"])
    store.send_soon(["x"], 1.0)
    store.heartbeat({"x": 1}, 30.0)
    store.record_failure("x", {}, 1.0)
    store.put_back("x", 1.0)
    slot_uses(store)
    store.outputs_by_ref(run.id, ["a", "b"])
    store.instances(run.workflow().stages[0].id)
    for search in (reports.Filter(), reports.Filter("conformance"), reports.Filter(status=S.RUNNING)):
        reports.page_of_workflows(store, search, None, 20)
        reports.page_of_workflows(store, search, run.id, 20)
        reports.count_by_status(store, search)
    reports.known_applications(store)
    for letter in [*engine.dead_letters(limit=20), {"id": "x"}]:
        engine.dead_letters(limit=20, before=letter["id"])
    reports.waiting_configurations(store, 20)
    reports.graph_of(store, run.id)
    reports.page_of_history(store, run.id, stage_id=None, after=None, limit=20)
    pages_stage.detail_of_stage(store, run.id, run.workflow().stages[0].id)


def fill(server: psycopg.Connection[Any]) -> None:
    """Copies of what is there, under other ids, until the tables are as full as after years."""
    for table, renamed in _RENAMED.items():
        columns = [row[0] for row in server.execute(_COLUMNS, (f"stabilize_{table}",))]
        names = ", ".join(f'"{column}"' for column in columns)
        values = ", ".join(renamed.get(column, f'"{column}"') for column in columns)
        server.execute(
            f"INSERT INTO stabilize_{table} ({names}) SELECT {values} "
            f"FROM stabilize_{table} AS t, generate_series(1, %(copies)s / (SELECT count(*) FROM stabilize_{table})) n",
            {"copies": ROWS},
        )
    server.execute("VACUUM ANALYZE")


_COLUMNS = "SELECT column_name FROM information_schema.columns WHERE table_name = %s"


def _other(column: str) -> str:
    """Another id of the same length, the same one for the same row wherever it is named."""
    return f"left(md5({column} || n), 26)"


_RENAMED: dict[str, dict[str, str]] = {
    "workflows": {
        "id": _other("id"),
        "dedup_key": "NULL",
        "parent_workflow_id": _other("parent_workflow_id"),
        "pipeline_config_id": "pipeline_config_id || n",
    },
    "stages": {
        "id": _other("id"),
        "workflow_id": _other("workflow_id"),
        "parent_stage_id": _other("parent_stage_id"),
    },
    "edges": {column: _other(column) for column in ("upstream_id", "downstream_id", "workflow_id")},
    "messages": {
        "id": _other("id"),
        "workflow_id": _other("workflow_id"),
        "stage_id": _other("stage_id"),
        "send_at": "send_at + n * interval '1 second'",
    },
    "history": {
        "id": _other("id"),
        "workflow_id": _other("workflow_id"),
        "stage_id": _other("stage_id"),
    },
    "dead_letters": {"id": _other("id")},
    "signals": {
        "id": _other("id"),
        "workflow_id": _other("workflow_id"),
        "stage_id": _other("stage_id"),
    },
}


def scans(plan: Any) -> Iterator[str]:
    """The tables that a plan reads whole."""
    if plan["Node Type"] == "Seq Scan" and plan["Relation Name"].startswith("stabilize_"):
        yield plan["Relation Name"]
    for part in plan.get("Plans", ()):
        yield from scans(part)


@pytest.fixture(scope="module")
def full(postgres_service: Any, postgres_template: str, tmp_path_factory: Any) -> Iterator[Any]:
    """A connection to a full database, and the statements that were executed in it."""
    url = postgres_service.create_database("explained", template=postgres_template)
    statements = Statements()
    with scene_on(url, str(tmp_path_factory.mktemp("explain") / "log")) as scene:
        with statements.of(scene.engine):
            for run in SCENARIOS.values():
                run(scene)
            look_at_everything(scene)
        # Some of every kind are left over, for the copies.
        waits = {"do": [{"return": "suspend", "timeout": 3600}]}
        from tests.conformance.harness import flow
        from tests.conformance.harness import stage as a_stage

        left = scene.start(flow(a_stage("a", "script", context=waits), a_stage("b"), a_stage("c")), "RunTask")
        left.signal("b", "kept")
        scene.proceed("RunTask")
    address = plain_address(url)
    with psycopg.connect(address, autocommit=True) as server:
        server.execute("SET session_replication_role = replica")
        server.execute(
            "INSERT INTO stabilize_dead_letters (id, type, label, row, error, attempts, died_at) "
            "VALUES ('x', 'StartStage', '', '{}', '{}', 1, now())"
        )
        fill(server)
        yield server, statements
    postgres_service.drop_database("explained")


def test_no_statement_reads_a_whole_table(full: Any) -> None:
    server, statements = full
    assert len(statements.seen) > 40, "hardly any statement was seen"
    found = []
    for text, parameters in statements.seen.items():
        if any(" ".join(text.split()).startswith(known) for known in MAY_SCAN):
            continue
        (plan,) = server.execute(f"EXPLAIN (FORMAT JSON) {text}", parameters).fetchone()
        plan = plan if isinstance(plan, list) else json.loads(plan)
        whole = [table for table in scans(plan[0]["Plan"]) if table not in SMALL]
        if whole:
            found.append(f"{', '.join(whole)}: {' '.join(text.split())}\n   with {parameters}")
    assert not found, "\n".join(found)


def test_the_database_is_full(full: Any) -> None:
    """Else a scan would be the cheapest plan, and the test above would prove nothing."""
    server, _ = full
    for table in _RENAMED:
        (count,) = server.execute(f"SELECT count(*) FROM stabilize_{table}").fetchone()
        assert count >= ROWS / 2, f"{table} has {count} rows"
