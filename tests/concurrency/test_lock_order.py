"""Every transaction locks in one order, so that none can wait for one that waits for it (docs: explanation/concurrency)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.concurrency.lock_log import TABLES, LockLog, Transaction, lock_log
from tests.concurrency.stage_hands import Scene
from tests.concurrency.workflows import SCENARIOS


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "no-inline"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_rows_are_locked_in_one_order(scene_with: Callable[..., Scene], name: str, inline: bool) -> None:
    scene = scene_with(inline=inline)
    with lock_log(scene.engine, scene.url) as log:
        SCENARIOS[name](scene)
    problems = [problem for each in log.transactions for problem in _problems(each, log)]
    assert not problems, "\n".join(problems)
    assert sum(len(each.steps) for each in log.transactions) > 3, "hardly any lock was seen"


def _problems(transaction: Transaction, log: LockLog) -> list[str]:
    found = []
    if transaction.late_gate:
        found.append(f"the gate is entered after rows are locked\n{_told(transaction)}")
    highest, stages_so_far = 0, ((-1.0, ""),)
    for number, step in enumerate(transaction.steps):
        if "SKIP LOCKED" in step.statement:
            # It passes by what others have locked, and so never waits.
            continue
        place = TABLES.index(step.table)
        if (
            step.table == "stages"
            and "stabilize_stages.ref_id = " in step.statement
            and not transaction.exclusive
        ):
            # An item of a map that waits for its turn: only transactions that hold its parent's row look at it.
            continue
        if step.table == "stages":
            places = sorted(log.places[row] for row in step.rows if row in log.places)
            if not transaction.exclusive and places:
                if places[0] < stages_so_far:
                    found.append(
                        f"step {number} locks stages that come before locked ones\n{_told(transaction)}"
                    )
                if len(places) > 1 and "ORDER BY" not in step.statement:
                    found.append(f"step {number} locks stages in any order\n{_told(transaction)}")
                stages_so_far = max(stages_so_far, places[-1])
        # With the workflow for itself nobody else locks its stages; what others lock has its order still.
        free = transaction.exclusive and step.table in ("stages", "messages")
        if place < highest and not free:
            found.append(f"step {number} locks {step.table} after {TABLES[highest]}\n{_told(transaction)}")
        highest = highest if free else max(highest, place)
    return found


def _told(transaction: Transaction) -> str:
    lines = [f"  {step.table} {sorted(step.rows)}: {step.statement[:200]!r}" for step in transaction.steps]
    return "\n".join([f"  exclusive={transaction.exclusive}", *lines])
