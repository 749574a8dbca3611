"""Retention: what is old goes, what is alive stays, whatever runs meanwhile."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from stabilize_celery import WorkflowRun
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.errors import RecoveryError
from stabilize_celery.persistence import tables
from tests.conformance.harness import flow, stage
from tests.integration.recovery.conftest import Bench
from tests.integration.recovery.test_dead_letters import bury

DAY = timedelta(days=1)


def finished(bench: Bench, *stages: object, **options: object) -> WorkflowRun:
    run = bench.stabilize.start(flow(*(stages or (stage("a"), stage("b", after=["a"]))), **options))  # type: ignore[arg-type]
    bench.drain()
    assert run.ready()
    return run


def exists(bench: Bench, run: WorkflowRun) -> bool:
    return bench.stabilize.store.exists(run.id)


def rows_left(bench: Bench) -> dict[str, int]:
    with bench.stabilize.store.database.begin() as connection:
        counted = {
            table.name.removeprefix(tables.PREFIX): connection.execute(
                select(func.count()).select_from(table)
            ).scalar_one()
            for table in tables.metadata.sorted_tables
        }
    return {name: number for name, number in counted.items() if number}


def test_what_is_old_enough_goes_with_everything_about_it(bench: Bench) -> None:
    finished(bench)
    bury(bench, "CompleteStage", stage("a"))
    bench.clock.advance(2 * 86400)
    kept = finished(bench)

    done = bench.stabilize.prune(DAY)

    assert done.to_dict() == {
        "workflows": {"SUCCEEDED": 1, "TERMINAL": 1},
        "dead_letters": 1,
        "dry_run": False,
    }
    assert exists(bench, kept)
    bench.clock.advance(2 * 86400)
    assert bench.stabilize.prune(DAY).total == 1
    assert rows_left(bench) == {}


def test_a_dry_run_counts_and_deletes_nothing(bench: Bench) -> None:
    finished(bench)
    bury(bench, "CompleteStage", stage("a"))
    bench.clock.advance(2 * 86400)
    before = rows_left(bench)

    told = bench.stabilize.prune(DAY, dry_run=True)

    assert rows_left(bench) == before
    done = bench.stabilize.prune(DAY)
    assert (told.workflows, told.dead_letters, told.dry_run) == (done.workflows, done.dead_letters, True)


def test_only_what_ended_so(bench: Bench) -> None:
    succeeded, failed = finished(bench), finished(bench, stage("a", "fail"))
    bench.clock.advance(2 * 86400)

    assert bench.stabilize.prune(DAY, statuses=[S.TERMINAL]).total == 1

    assert (exists(bench, succeeded), exists(bench, failed)) == (True, False)


def test_in_batches_with_progress(bench: Bench) -> None:
    for _ in range(5):
        finished(bench, stage("a"))
    bench.clock.advance(2 * 86400)
    told: list[int] = []

    bench.stabilize.prune(DAY, batch=2, on_progress=lambda so_far: told.append(so_far.total))

    assert told == [2, 4, 5]


def test_what_is_alive_stays(bench: Bench) -> None:
    inner = {"application": "conformance", "name": "inner", "stages": [{"ref": "x", "type": "noop"}]}
    waiting = bench.stabilize.start(flow(stage("ask", "approval")))
    outer = bench.stabilize.start(
        flow(stage("a", "sub_workflow", workflow=inner), stage("ask", "approval", ["a"]))
    )
    bench.drain()
    (child,) = bench.stabilize.find(name="inner")
    hooked = bench.stabilize.start(flow(stage("a", "hooked", do=[{"return": "success"}])))
    bench.until_sent("RunHook")
    far = bench.stabilize.store.now() + 1000 * DAY
    bench.execute(
        update(tables.messages).where(tables.messages.c.type == "RunHook").values(due_at=far, send_at=far)
    )
    bench.until(hooked.ready)
    paused = bench.stabilize.start(flow(stage("a")))
    paused.pause()
    bench.stabilize.publisher.ready.clear()
    bench.clock.advance(300 * 86400)

    assert bench.stabilize.prune(DAY).total == 0

    assert all(exists(bench, run) for run in (waiting, outer, child, hooked, paused))
    outer.approve("ask")
    bench.until(outer.ready)
    bench.clock.advance(2 * 86400)
    assert bench.stabilize.prune(DAY).workflows == {S.SUCCEEDED: 2}
    assert not exists(bench, child)


def test_old_letters_about_nothing_go_too(bench: Bench) -> None:
    run, _ = bury(bench, "CompleteStage", stage("a"))
    bench.stabilize.store.delete(run.id)
    assert bench.stabilize.prune(DAY).dead_letters == 0
    bench.clock.advance(2 * 86400)
    assert bench.stabilize.prune(DAY).dead_letters == 1
    assert bench.stabilize.dead_letters() == []


def test_ages_and_statuses_that_make_no_sense(bench: Bench) -> None:
    with pytest.raises(RecoveryError, match="say how old"):
        bench.stabilize.prune()
    with pytest.raises(RecoveryError, match="cannot be negative"):
        bench.stabilize.prune(-DAY)
    with pytest.raises(RecoveryError, match="RUNNING is none of SUCCEEDED, TERMINAL, CANCELED"):
        bench.stabilize.prune(DAY, statuses=[S.RUNNING])
    with pytest.raises(RecoveryError, match="at least one"):
        bench.stabilize.prune(DAY, batch=0)
