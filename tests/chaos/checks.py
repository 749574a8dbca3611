"""What must hold in the database after any crash: every check reads committed rows and returns what it found wrong.

The history is the witness.  It is written in the transaction of the change it tells of, so a change that happened
twice is there twice, and one that is missing happened outside :func:`~stabilize_celery.handlers.transitions.transition`.
Its order in time is not used: two processes' clocks differ by more than two steps of a workflow are apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from stabilize_celery import Stabilize, Workflow
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.models.status import can_transition
from stabilize_celery.persistence import tables

#: Something that has transitions: its kind, and its stage, task and generation where it has them.
Subject = tuple[str, str | None, str | None, int]


@dataclass(frozen=True)
class Finding:
    """Something that must not be: ``doubled`` (it happened twice), ``lost`` (it did not happen) or ``wrong``."""

    kind: str
    workflow_id: str | None
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: workflow {self.workflow_id}: {self.what}"


def check_all(stabilize: Stabilize, workflow_ids: Iterable[str]) -> list[Finding]:
    """Everything that can be told from the database of workflows that have ended."""
    found = list(leftovers(stabilize))
    found += [
        Finding("wrong", each.workflow_id, f"audit: {each.kind}: {each.what}")
        for each in stabilize.audit().problems
    ]
    for workflow_id in workflow_ids:
        workflow = stabilize.store.retrieve(workflow_id)
        found += check_workflow(workflow, stabilize.store.history(workflow_id))
    return found


def check_workflow(workflow: Workflow, history: list[dict[str, Any]]) -> list[Finding]:
    """One workflow that has ended: its history is legal, nothing is there twice, and its rows agree with it."""
    found = []
    ends: dict[Subject, S] = {}
    for subject, steps in by_subject(history).items():
        found += [
            Finding(kind, workflow.id, f"{_name(subject)}: {what}") for kind, what in check_steps(steps)
        ]
        ends[subject] = _end(steps)
    for subject, status in _rows(workflow):
        end = ends.get(subject, S.NOT_STARTED)
        if end is not status:
            found.append(
                Finding("wrong", workflow.id, f"{_name(subject)}: is {status}, its history ends {end}")
            )
    if not workflow.status.is_complete:
        found.append(Finding("lost", workflow.id, f"{workflow.name} is still {workflow.status}"))
    return found


def by_subject(history: list[dict[str, Any]]) -> dict[Subject, list[tuple[S, S]]]:
    """The steps of a workflow, its stages and tasks; each pass (generation) of a stage by itself."""
    steps: dict[Subject, list[tuple[S, S]]] = defaultdict(list)
    for row in history:
        if row["event"] in ("workflow", "stage", "task"):
            subject = (row["event"], row["stage_id"], row["task_id"], row["generation"])
            steps[subject].append((row["from_status"], row["to_status"]))
    return steps


def check_steps(steps: list[tuple[S, S]]) -> Iterator[tuple[str, str]]:
    """The steps are one legal way from NOT_STARTED, each begun and ended once."""
    for old, new in steps:
        if old is new or not can_transition(old, new):
            yield "wrong", f"went from {old} to {new}"
    # One that waited for a slot goes back to where it was, and begins when it has one.
    begun = sum(old is S.NOT_STARTED for old, _ in steps) - sum(new is S.NOT_STARTED for _, new in steps)
    ended = sum(new.is_complete for _, new in steps)
    if begun > 1:
        yield "doubled", f"began {begun} times"
    if ended > 1:
        yield "doubled", f"ended {ended} times"
    balance = Counter(old for old, _ in steps)
    balance.subtract(new for _, new in steps)
    uneven = {str(status): count for status, count in balance.items() if count}
    if begun == 1 and ended <= 1 and sorted(uneven.values()) != [-1, 1]:
        yield "wrong", f"its steps do not join: {uneven}"


def _end(steps: list[tuple[S, S]]) -> S:
    balance = Counter(new for _, new in steps)
    balance.subtract(old for old, _ in steps)
    return max(balance, key=lambda status: balance[status])


def _rows(workflow: Workflow) -> Iterator[tuple[Subject, S]]:
    yield ("workflow", None, None, 0), workflow.status
    for stage in workflow.stages:
        yield ("stage", stage.id, None, stage.generation), stage.status
        for task in stage.tasks:
            yield ("task", stage.id, task.id, stage.generation), task.status


def _name(subject: Subject) -> str:
    kind, stage_id, task_id, generation = subject
    identity = task_id or stage_id or ""
    return f"{kind} {identity} (generation {generation})"


def leftovers(stabilize: Stabilize) -> Iterator[Finding]:
    """Nothing may be left over once every workflow has ended: messages, dead letters, slots."""
    with stabilize.store.database.autocommit() as connection:
        for row in connection.execute(select(tables.messages)).mappings():
            yield Finding("wrong", row["workflow_id"], f"message {row['type']} {row['id']} is left over")
        for row in connection.execute(select(tables.dead_letters)).mappings():
            error = row["error"].get("details", {}).get("error")
            yield Finding("wrong", row["workflow_id"], f"message {row['type']} is a dead letter: {error}")
        for row in connection.execute(
            select(tables.workflows.c.id).where(tables.workflows.c.holds_slot)
        ).mappings():
            yield Finding("wrong", row["id"], "it has ended and holds a slot")
