"""Looking for what nothing drives, in everything there is, and mending it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

from stabilize_celery.delivery.dispatcher import Dispatcher
from stabilize_celery.messages import (
    StartWaitingWorkflows,
)
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.persistence import audit
from stabilize_celery.persistence.audit import Standing, alone, delete_idle, lock_standing
from stabilize_celery.persistence.rows import outgoing, waits_in
from stabilize_celery.recovery.causes import examine
from stabilize_celery.recovery.findings import Audit, Problem, Remedy
from stabilize_celery.recovery.repair import mend

#: Workflows read at once.
BATCH = 200
#: Of other things, most that one audit reports.
MOST = 1000
_ADVICE_LATE = "start a worker, whose relay sends it, or run `rebuild`"


class Auditor:
    """Audits one database.

    Args:
        dispatcher: of the engine.
        has_broker: messages sent from here reach workers.
        overdue: how many seconds after its time a message counts as overdue.
    """

    def __init__(self, dispatcher: Dispatcher, *, has_broker: bool, overdue: float) -> None:
        self._dispatcher = dispatcher
        self._store = dispatcher.store
        self._has_broker = has_broker
        self._overdue = timedelta(seconds=overdue)

    def audit(
        self, workflow_id: str | None = None, on_progress: Callable[[Audit], None] | None = None
    ) -> Audit:
        """Look at one workflow, or at everything."""
        result = Audit()
        batches = self._everything() if workflow_id is None else self._one(workflow_id)
        for batch in batches:
            for standing in batch:
                causes, problems = examine(standing)
                result.causes += causes
                result.problems += problems
            result.workflows += len(batch)
            if on_progress is not None:
                on_progress(result)
        if workflow_id is None:
            result.problems += self._other_things()
        return result

    def _everything(self) -> Iterator[list[Standing]]:
        for status in audit.LIVE:
            after = ""
            while True:
                with audit.one_moment(self._store.database) as connection:
                    batch = audit.read_standing(connection, self._store.now(), status, after, BATCH)
                if batch:
                    yield batch
                    after = batch[-1].workflow.id
                if len(batch) < BATCH:
                    break

    def _one(self, workflow_id: str) -> Iterator[list[Standing]]:
        with audit.one_moment(self._store.database) as connection:
            found = audit.read_one_standing(connection, self._store.now(), workflow_id)
        if found is not None and not found.workflow.status.is_complete:
            yield [found]

    # ------------------------------------------------------------------ what is not about one live workflow

    def _other_things(self) -> list[Problem]:
        now = self._store.now()
        with audit.one_moment(self._store.database) as connection:
            found = [_starving(slots) for slots in audit.read_slots(connection) if _is_starving(slots)]
            found += [
                Problem(
                    "leaked slot",
                    f"it does not run, and holds a slot of {config_id}",
                    workflow_id,
                    remedy=Remedy.RELEASE_SLOT,
                )
                for workflow_id, config_id in audit.read_leaked_slots(connection, MOST)
            ]
            found += [_left_behind(row) for row in audit.read_left_behind(connection, MOST)]
            late = audit.read_late(connection, now - self._overdue, MOST)
            found += [self._late(row) for row in late]
            found += [_idle(row) for row in audit.read_idle(connection, now + self._overdue, MOST)]
        return found

    def _late(self, row: dict[str, Any]) -> Problem:
        leased = row["lease_owner"] is not None and waits_in(row) is None
        told = f"{row['type']} {row['id']}" + (f" of {row['label']}" if row["label"] else "")
        seconds = (self._store.now() - row["send_at"]).total_seconds()
        what = f"its worker {row['lease_owner']} is gone" if leased else "it was not sent"
        return Problem(
            "expired lease" if leased else "overdue message",
            f"{told} was due {seconds:.0f} s ago; {what}: no relay is running, or it cannot keep up",
            row["workflow_id"],
            advice=_ADVICE_LATE,
            remedy=Remedy.SEND_AGAIN if self._has_broker else None,
            message_id=row["id"],
        )

    # ------------------------------------------------------------------ mending

    def repair(self, found: Audit, actor: str) -> Audit:
        """Mend what can be mended of what an audit found.

        Each workflow is looked at again behind its gate, so that what has changed since is left alone.

        Returns:
            The audit, with what was mended marked and without what is not there any more.
        """
        pending = {problem.workflow_id for problem in found.problems if _is_of_a_workflow(problem)}
        problems: list[Problem] = []
        for workflow_id in sorted(filter(None, pending)):
            problems += self._repair_workflow(workflow_id, actor)
        for problem in found.problems:
            if not _is_of_a_workflow(problem):
                done = problem.remedy is not None and self._repair_other(problem)
                problems.append(replace(problem, repaired=done))
        found.problems = problems
        return found

    def _repair_workflow(self, workflow_id: str, actor: str) -> list[Problem]:
        mended: list[Problem] = []
        with alone(self._store, workflow_id, self._dispatcher.surroundings) as unit:
            config_id = audit.read_config(unit.connection, workflow_id)
            if config_id is not None:
                # Before the workflow, as everybody locks them.
                unit.slots(config_id)
            standing = lock_standing(unit, workflow_id)
            if standing is None:
                return mended
            done: set[tuple[Any, ...]] = set()
            for problem in problems_of(standing):
                what = _what_it_does(problem)
                if problem.remedy is not None and what not in done:
                    done.add(what)
                    mend(unit, standing.workflow, problem, actor)
                mended.append(replace(problem, repaired=problem.remedy is not None))
        self._dispatcher.finish(unit)
        return mended

    def _repair_other(self, problem: Problem) -> bool:
        if problem.remedy is Remedy.SEND:
            assert problem.message is not None
            self._dispatcher.send(problem.message)
            return True
        assert problem.message_id is not None
        if problem.remedy is Remedy.DELETE:
            with self._store.database.begin() as connection:
                return delete_idle(connection, problem.message_id)
        row = self._store.message(problem.message_id)
        if row is None:
            return True
        if waits_in(row) is not None:
            self._store.take_back([row["id"]])
        self._dispatcher.publisher.publish([outgoing(row)])
        return True


def problems_of(standing: Standing) -> list[Problem]:
    """Everything that is wrong with one workflow, ended or not."""
    workflow = standing.workflow
    if not workflow.status.is_complete:
        _, found = examine(standing)
    else:
        found = [
            _left_behind(
                {
                    "id": stage.id,
                    "ref_id": stage.ref_id,
                    "name": stage.name,
                    "parent_stage_id": stage.parent_stage_id,
                    "status": stage.status,
                    "workflow_id": workflow.id,
                    "workflow_status": workflow.status,
                }
            )
            for stage in workflow.stages
            if stage.status in (S.RUNNING, S.SUSPENDED, S.PAUSED)
        ]
    if standing.holds_slot and (workflow.status.is_complete or workflow.status is S.PAUSED):
        found.append(
            Problem(
                "leaked slot",
                f"it does not run, and holds a slot of {workflow.pipeline_config_id}",
                workflow.id,
                remedy=Remedy.RELEASE_SLOT,
            )
        )
    return found


def _is_starving(slots: audit.Slots) -> bool:
    return (slots.limit is None or slots.taken < slots.limit) and not slots.is_served


def _starving(slots: audit.Slots) -> Problem:
    limit = "no limit" if slots.limit is None else f"{slots.limit - slots.taken} slots free"
    return Problem(
        "no message",
        f"configuration {slots.config_id}: {slots.waiting} executions wait, with {limit}, and no message lets them in",
        remedy=Remedy.SEND,
        message=StartWaitingWorkflows(pipeline_config_id=slots.config_id),
    )


def _left_behind(row: dict[str, Any]) -> Problem:
    return Problem(
        "left behind",
        f"it is {row['status']}, and its workflow has ended {row['workflow_status']}",
        row["workflow_id"],
        row["ref_id"] if row["parent_stage_id"] is None else row["name"],
        remedy=Remedy.CANCEL,
        stage_id=row["id"],
    )


def _idle(row: dict[str, Any]) -> Problem:
    status = row["workflow_status"]
    why = "its workflow does not exist" if status is None else f"its workflow has ended {status}"
    return Problem(
        "idle message",
        f"{row['type']} {row['id']} is for nothing: {why}",
        row["workflow_id"],
        remedy=Remedy.DELETE,
        message_id=row["id"],
    )


def _is_of_a_workflow(problem: Problem) -> bool:
    return problem.workflow_id is not None and problem.message_id is None


def _what_it_does(problem: Problem) -> tuple[Any, ...]:
    """Problems with the same remedy are mended together."""
    if problem.remedy in (Remedy.RECOUNT, Remedy.WAKE):
        return (problem.remedy,)
    return problem.remedy, problem.stage_id, problem.message and problem.message.type
