"""Faults of the engine that only interleaved transactions can show, to be put back on purpose.

Each was there once, or is the least that could go wrong where a lock is taken.  ``FAULTS`` maps a name to what puts it back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, true

from stabilize_celery.delivery import dispatcher
from stabilize_celery.persistence import queries, retention, transactions
from stabilize_celery.persistence.message_queries import Queries, gate_key
from stabilize_celery.persistence.tables import messages
from stabilize_celery.persistence.unit_of_work import UnitOfWork
from tests.interleaving.world import World

Fault = Callable[[pytest.MonkeyPatch, World], None]
FAULTS: dict[str, Fault] = {}


def fault(function: Fault) -> Fault:
    FAULTS[function.__name__] = function
    return function


#: Statements are known by their identity, so those made here live as long as the process.
_kept: list[Any] = []


def _without_lock(patch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        statement = getattr(queries, name)._clone()
        statement._for_update_arg = None
        _kept.append(statement)
        patch.setattr(queries, name, statement)


def _replace_queries(patch: pytest.MonkeyPatch, world: World) -> None:
    for engine in world.engines:
        made = Queries(True)
        _kept.append(made)
        patch.setattr(engine.store, "queries", made)


@fault
def premature_success(patch: pytest.MonkeyPatch, world: World) -> None:
    """The only branches there are, by a header read before the rows they are counted in."""
    release = UnitOfWork.release_branches

    def unlocked(self: UnitOfWork, workflow: Any, count: int) -> int:
        ended = count - self._branches.get(workflow.id, 0)
        if workflow.id not in self._locked_workflows and ended == workflow.live_branches:
            self._branches.pop(workflow.id, None)
            self._locked_workflows.add(workflow.id)
            self.change(workflow, live_branches=0)
            return 0
        return release(self, workflow, count)

    patch.setattr(UnitOfWork, "release_branches", unlocked)


@fault
def downstream_lock_left_out(patch: pytest.MonkeyPatch, world: World) -> None:
    _without_lock(patch, "lock_downstream")


@fault
def stage_lock_left_out(patch: pytest.MonkeyPatch, world: World) -> None:
    _without_lock(patch, "lock_stage")


@fault
def workflow_lock_left_out(patch: pytest.MonkeyPatch, world: World) -> None:
    _without_lock(patch, "lock_workflow")


@fault
def slots_lock_left_out(patch: pytest.MonkeyPatch, world: World) -> None:
    _without_lock(patch, "lock_slots")


@fault
def exclusive_gate_taken_shared(patch: pytest.MonkeyPatch, world: World) -> None:
    def shared(self: Queries) -> list[Any]:
        key = gate_key(func.coalesce(messages.c.workflow_id, messages.c.id))
        return [func.pg_advisory_xact_lock_shared(key).is_not(None)]

    patch.setattr(Queries, "_gate", shared)
    _replace_queries(patch, world)


@fault
def no_repeat_on_deadlock(patch: pytest.MonkeyPatch, world: World) -> None:
    patch.setattr(dispatcher, "is_retryable", lambda error: False)


@fault
def dedup_key_without_its_lock(patch: pytest.MonkeyPatch, world: World) -> None:
    patch.setattr(transactions, "_lock_keys", lambda connection, workflows: None)


@fault
def published_before_the_callers_commit(patch: pytest.MonkeyPatch, world: World) -> None:
    patch.setattr(transactions._SqlAlchemyTransaction, "after_commit", lambda self, call: call())


@fault
def second_look_of_prune_left_out(patch: pytest.MonkeyPatch, world: World) -> None:
    is_old, looks = retention._is_old, itertools.count()

    def first_only(*arguments: Any) -> Any:
        return is_old(*arguments) if next(looks) % 2 == 0 else true()

    delete = retention.delete_old

    def delete_old(*arguments: Any) -> Any:
        nonlocal looks
        looks = itertools.count()
        return delete(*arguments)

    patch.setattr(retention, "_is_old", first_only)
    patch.setattr(retention, "delete_old", delete_old)


@fault
def wide_units_complete_in_place(patch: pytest.MonkeyPatch, world: World) -> None:
    patch.setattr(UnitOfWork, "_wide", property(lambda self: False, lambda self, value: None), raising=False)
