"""Each invariant catches an engine that is broken on purpose; the same seeds hold where it is not (test_histories.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import bindparam, delete, select, update

from stabilize_celery.delivery.dispatcher import Dispatcher
from stabilize_celery.handlers import (
    branches,
    complete_stage,
    planning,
    restart_stage,
    start_stage,
    start_workflow,
)
from stabilize_celery.handlers.complete_stage import CompleteStageHandler
from stabilize_celery.handlers.complete_workflow import CompleteWorkflowHandler
from stabilize_celery.messages import StageLevel
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import messages
from stabilize_celery.persistence.unit_of_work import UnitOfWork
from stabilize_celery.tasks.outcome import Outcome, Verdict
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.worker import attempt
from tests.simulation.generate import random_plan
from tests.simulation.invariants import INVARIANTS
from tests.simulation.scenario import RandomWorkflows, engine_for
from tests.simulation.seeds import CI_SEEDS

#: A broken engine is found out before so many histories have been played.
MOST = 300
assert MOST <= CI_SEEDS

Break = Callable[[pytest.MonkeyPatch], None]
#: Each with the invariants of which it may break either one first.
BROKEN: list[tuple[tuple[str, ...], Break]] = []


def breaks(*invariants: str) -> Callable[[Break], Break]:
    def register(function: Break) -> Break:
        BROKEN.append((invariants, function))
        return function

    return register


def replace_query(patch: pytest.MonkeyPatch, name: str, statement: object) -> None:
    for inline in (False, True):
        patch.setattr(engine_for(inline).store.queries, name, statement)


# ---------------------------------------------------------------------- messages


@breaks("stale_messages_change_nothing")
def the_generation_is_not_checked(patch):
    handle_in, judge = Dispatcher._handle_in, attempt.judge

    def unchecked(self, unit, message):
        if isinstance(message, StageLevel) and (stage := unit.stage(message.stage_id)) is not None:
            message = replace(message, generation=stage.generation)
        handle_in(self, unit, message)

    def unjudged(message, stage, *args):
        return judge(
            message if stage is None else replace(message, generation=stage.generation), stage, *args
        )

    patch.setattr(Dispatcher, "_handle_in", unchecked)
    patch.setattr(attempt, "judge", unjudged)


@breaks("each_message_is_handled_once")
def taking_a_message_does_not_delete_it(patch):
    there = select(*messages.c).where(
        messages.c.id == bindparam("message_id"), messages.c.due_at <= bindparam("now")
    )
    replace_query(patch, "take", there)


@breaks("nothing_is_published_before_its_commit")
def messages_are_published_before_the_commit(patch):
    handle_in = Dispatcher._handle_in

    def early(self, unit, message):
        handle_in(self, unit, message)
        if not unit.follow_ons:
            self.publisher.publish(unit.outgoing)

    patch.setattr(Dispatcher, "_handle_in", early)


@breaks("every_workflow_ends_or_waits_for_a_named_reason")
def messages_are_published_but_not_written(patch):
    flush = UnitOfWork.flush

    def forgetful(self):
        self._new_messages = [row for row in self._new_messages if row["type"] != "RunTask"]
        flush(self)

    patch.setattr(UnitOfWork, "flush", forgetful)


@breaks("no_message_is_left_without_a_reason")
def nobody_sends_what_was_lost(patch):
    patch.setattr(WorkflowStore, "take_due", lambda self, limit, next_send: [])
    patch.setattr(WorkflowStore, "next_due", lambda self: None)


@breaks("nothing_goes_on_for_ever")
def a_message_sends_itself(patch):
    handle = CompleteWorkflowHandler.handle

    def again(self, message, unit):
        handle(self, message, unit)
        unit.send(message, delay=0.1)

    patch.setattr(CompleteWorkflowHandler, "handle", again)


@breaks("no_handler_fails")
def a_handler_raises(patch):
    handle = CompleteStageHandler.handle

    def fragile(self, message, unit):
        stage = unit.stage(message.stage_id)
        if stage is not None and stage.status is S.SUSPENDED:
            raise RuntimeError("did not expect that")
        handle(self, message, unit)
        if stage is not None and len(stage.tasks) == 2:
            raise RuntimeError("cannot count to two")

    patch.setattr(CompleteStageHandler, "handle", fragile)


# ---------------------------------------------------------------------- leases


@breaks("results_of_lost_leases_are_refused")
def the_fencing_token_is_ignored(patch):
    anybody = delete(messages).where(messages.c.id == bindparam("message_id")).returning(*messages.c)
    replace_query(patch, "settle", anybody)


@breaks("one_worker_at_a_time_has_a_task")
def a_claim_starts_no_lease(patch):
    free_for_all = (
        update(messages)
        .where(messages.c.id == bindparam("message_id"), messages.c.due_at <= bindparam("now"))
        .values(
            lease_owner=bindparam("owner"),
            claims=messages.c.claims + 1,
            attempts=messages.c.attempts + 1,
            send_at=bindparam("lease_end"),
        )
        .returning(*messages.c)
    )
    replace_query(patch, "claim", free_for_all)


@breaks("finished_tasks_were_run")
def a_task_succeeds_without_being_called(patch):
    outcome = Outcome(Verdict.RETURNED, TaskResult.success())
    patch.setattr(attempt.RunningAttempt, "_call", lambda self: outcome)


# ---------------------------------------------------------------------- joins and branches


@breaks("joins_fire_once_per_generation")
def a_join_fires_for_the_first_that_arrives(patch):
    def early(unit, stage):
        waiting = [following for following in unit.downstream(stage) if branches.waits(following)]
        for following in waiting:
            unit.change(following, open_upstreams=0)
        branches.start_all(unit, waiting)
        branches._account(unit, stage.execution, len(waiting) - 1)

    patch.setattr(branches, "_pass_on", early)


@breaks("branch_counts_are_exact", "joins_fire_once_per_generation")
def two_branches_count_down_from_the_same_number(patch):
    read: dict[str, int] = {}

    def without_a_lock(unit, stage):
        seen = read.setdefault(stage.id, stage.open_upstreams)
        unit.change(stage, open_upstreams=seen - 1)
        return stage.open_upstreams == 0

    patch.setattr(branches, "_arrive", without_a_lock)


@breaks("branch_counts_are_exact")
def a_branch_is_counted_twice(patch):
    account = branches._account

    def generous(unit, workflow, balance):
        account(unit, workflow, balance + 1 if balance > 0 else balance)

    patch.setattr(branches, "_account", generous)


@breaks("synthetic_stages_are_planned_once")
def synthetic_stages_are_planned_twice(patch):
    begin = planning.begin_phase

    def again(unit, stage, phase):
        begun = begin(unit, stage, phase)
        if begun:
            planned = stage.planned
            begin(unit, stage, phase)
            unit.change(stage, planned=planned)
        return begun

    for module in (planning, start_stage, complete_stage):
        patch.setattr(module, "begin_phase", again)


# ---------------------------------------------------------------------- repairs


@breaks("failures_are_dealt_with_once")
def an_earlier_failure_counts_again(patch):
    patch.setattr(restart_stage, "accept_failures", lambda unit, workflow: None)


@breaks("failures_are_dealt_with_once")
def what_a_failure_canceled_stays_canceled(patch):
    patch.setattr(restart_stage, "CANCELED_BY", "nothing")


# ---------------------------------------------------------------------- limits and history


@breaks("slots_are_never_over_granted")
def slots_are_given_without_looking(patch):
    def admit(unit, workflow, slots):
        slots.observe(workflow)
        unit.hold_slot(workflow, True)
        return True

    patch.setattr(start_workflow, "admit", admit)


@breaks("slots_are_never_over_granted")
def an_execution_runs_without_a_slot(patch):
    patch.setattr(start_workflow, "admit", lambda unit, workflow, slots: slots.observe(workflow) or True)


@breaks("history_replays_to_the_state")
def a_status_is_not_in_the_history(patch):
    record = UnitOfWork.record

    def forgetful(self, event, *args, **options):
        if options.get("new") is not S.SKIPPED:
            record(self, event, *args, **options)

    patch.setattr(UnitOfWork, "record", forgetful)


# ---------------------------------------------------------------------- the test


@pytest.mark.parametrize(("invariants", "broken"), BROKEN, ids=[broken.__name__ for _, broken in BROKEN])
def test_a_broken_engine_is_found_out(invariants, broken, monkeypatch):
    broken(monkeypatch)
    scenario = RandomWorkflows()
    for seed in range(MOST):
        played = scenario.play(random_plan(seed))
        if played.violations:
            break
    assert played.broken in invariants, played.violations or f"{MOST} histories hold"


def test_every_invariant_has_caught_one():
    assert {invariants[0] for invariants, _ in BROKEN} == INVARIANTS.keys()
