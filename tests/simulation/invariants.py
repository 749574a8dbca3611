"""What must hold whatever happens.

Some of it is seen at once, by :class:`~tests.simulation.watch.Watch`; the rest is looked at
here, when nothing is left to do.  :data:`INVARIANTS` names all of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stabilize_celery.dag.branches import recount
from stabilize_celery.handlers.pause_workflow import PAUSED_WITH
from stabilize_celery.models.stage import Phase, StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.status import can_transition
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence.store import WorkflowStore
from tests.inspection import all_dead_letters, all_messages, slot_uses
from tests.simulation.watch import Watch

#: Every invariant, with what it means.
INVARIANTS: dict[str, str] = {
    "no_handler_fails": "no handler of the engine raises",
    "nothing_goes_on_for_ever": "every history comes to a point where nothing is left to do",
    "each_message_is_handled_once": "a message is handled by one transaction, however often it is delivered",
    "nothing_is_published_before_its_commit": "what is published is in the database already",
    "stale_messages_change_nothing": "a message about an earlier pass of a stage does not change a later one",
    "one_worker_at_a_time_has_a_task": "nobody is given a task before the lease of another worker is over",
    "results_of_lost_leases_are_refused": "only the worker that was given a task last reports its result",
    "slots_are_never_over_granted": "a limit of concurrent executions is kept at any time",
    "history_replays_to_the_state": "every status is in the history, and follows from the one before",
    "no_message_is_left_without_a_reason": "where nothing is left to do no message is left either",
    "every_workflow_ends_or_waits_for_a_named_reason": "an end, a signal, a pause, or a slot that somebody else has",
    "joins_fire_once_per_generation": "a stage starts once per pass, after everything it requires",
    "finished_tasks_were_run": "a task succeeds only if its code was called in that pass",
    "branch_counts_are_exact": "what is counted while things happen is what a count of the stages gives",
    "failures_are_dealt_with_once": "a restart takes back what the failure did, and no earlier failure ends it at once",
    "synthetic_stages_are_planned_once": "a stage has the synthetic stages its builder planned, once each",
}
#: What has a status: stage, task, and generation; none of them for the workflow.
_Subject = tuple[str | None, str | None, int]
_FAILED = re.compile("stage (.+) failed")
_ACTIVE = (S.RUNNING, S.SUSPENDED, S.PAUSED)


@dataclass
class Evidence:
    """The database where nothing is left to do, and what was seen on the way there."""

    store: WorkflowStore
    watch: Watch
    workflow_ids: list[str]

    @cached_property
    def workflows(self) -> list[Workflow]:
        """All of them."""
        return [self.store.retrieve(workflow_id) for workflow_id in self.workflow_ids]

    @cached_property
    def by_id(self) -> dict[str, Workflow]:
        """All of them, by id."""
        return {workflow.id: workflow for workflow in self.workflows}

    @cached_property
    def histories(self) -> dict[str, list[dict[str, Any]]]:
        """What is written of each, in order."""
        return {workflow_id: self.store.history(workflow_id) for workflow_id in self.workflow_ids}


def history_replays_to_the_state(evidence: Evidence) -> Iterator[str]:
    """Every transition is legal and begins where the one before ended; the last one gave the status in the row."""
    for workflow in evidence.workflows:
        known: dict[_Subject, S] = {}
        for event in evidence.histories[workflow.id]:
            if event["to_status"] is None:
                continue
            subject = _subject(event)
            before = known.get(subject, S.NOT_STARTED)
            if event["from_status"] is not before:
                yield f"{workflow.name}: {_told(event)}, but it was {before}"
            elif event["event"] not in ("reset", "revive") and not can_transition(before, event["to_status"]):
                yield f"{workflow.name}: {_told(event)}, which is not allowed"
            known[subject] = event["to_status"]
        told: dict[_Subject, tuple[str, S]] = {(None, None, 0): ("the workflow", workflow.status)}
        for stage in workflow.stages:
            told[stage.id, None, 0] = (f"stage {stage.name}", stage.status)
            for task in stage.tasks:
                told[stage.id, task.id, stage.generation] = (f"task {task.name} of {stage.name}", task.status)
        for subject, (name, status) in told.items():
            if known.get(subject, S.NOT_STARTED) is not status:
                yield f"{workflow.name}: {name} is {status}, its history ends with {known.get(subject)}"


def _subject(event: dict[str, Any]) -> _Subject:
    if event["event"] == "task":
        return event["stage_id"], event["task_id"], event["generation"]
    return event["stage_id"], None, 0


def _told(event: dict[str, Any]) -> str:
    return f"{event['event']} {event['stage_id'] or ''} went {event['from_status']} -> {event['to_status']}"


def no_message_is_left_without_a_reason(evidence: Evidence) -> Iterator[str]:
    """Nothing is left to do, so no row is left of any message, and none is a dead letter."""
    for row in all_messages(evidence.store):
        yield f"{row['type']} of {row['label']} is left"
    for row in all_dead_letters(evidence.store):
        yield f"{row['type']} of {row['label']} is a dead letter: {row['error']['details']['error']}"


def every_workflow_ends_or_waits_for_a_named_reason(evidence: Evidence) -> Iterator[str]:
    """A workflow that has not ended waits for something a person can see."""
    for workflow in evidence.workflows:
        active = [stage for stage in workflow.stages if stage.status in _ACTIVE]
        told = f"{workflow.name} is {workflow.status}, {_stages_told(workflow)}"
        if workflow.status.is_complete:
            if active or workflow.end_time is None:
                yield f"left behind: {told}"
        elif workflow.status is S.BUFFERED:
            uses = {use.config_id: use for use in slot_uses(evidence.store)}
            use = uses.get(workflow.pipeline_config_id or "")
            if use is None or use.limit is None or use.taken < use.limit:
                yield f"it waits though a slot is free: {told}"
        elif workflow.status is S.RUNNING:
            if not any(stage.status is S.SUSPENDED for stage in active):
                yield f"nothing drives it: {told}"
        elif workflow.status is not S.PAUSED:
            yield f"nothing drives it: {told}"
        yield from (f"{problem}: {told}" for problem in _why_alone(workflow, evidence))
        for stage in active if not workflow.status.is_complete else ():
            yield from (f"{problem}: {told}" for problem in _why_stuck(stage, workflow, evidence))


def _why_alone(workflow: Workflow, evidence: Evidence) -> Iterator[str]:
    if workflow.status is S.PAUSED and _is_left_paused(workflow, evidence):
        yield "the workflow it was paused with goes on"
    if workflow.status is S.SUCCEEDED and _is_unheard(workflow, evidence):
        yield "it was repaired, and the stage that it failed is still failed"
    if not workflow.status.is_complete and _is_orphan(workflow, evidence):
        yield "nobody waits for it any more"


def _is_unheard(workflow: Workflow, evidence: Evidence) -> bool:
    parent = workflow.parent
    outer = None if parent is None else evidence.by_id.get(parent.workflow_id)
    if parent is None or outer is None or outer.is_canceled:
        return False
    stage = next((stage for stage in outer.stages if stage.id == parent.stage_id), None)
    return (
        stage is not None
        and stage.status in (S.TERMINAL, S.STOPPED)
        and stage.context.get("sub_workflow_id") == workflow.id
        and not stage.is_synthetic
    )


def _is_left_paused(workflow: Workflow, evidence: Evidence) -> bool:
    outer = None if workflow.parent is None else evidence.by_id.get(workflow.parent.workflow_id)
    pauses = [
        e["reason"]
        for e in evidence.histories[workflow.id]
        if e["to_status"] is S.PAUSED and not e["stage_id"]
    ]
    return outer is not None and outer.status is S.RUNNING and pauses[-1].startswith(PAUSED_WITH)


def _is_orphan(workflow: Workflow, evidence: Evidence) -> bool:
    """Whether it was started by a stage that has ended or begun anew since, and was not restarted after that."""
    parent = workflow.parent
    outer = None if parent is None else evidence.by_id.get(parent.workflow_id)
    revived = any(event["event"] == "revive" for event in evidence.histories[workflow.id])
    if parent is None or outer is None or revived:
        return False
    stage = next((stage for stage in outer.stages if stage.id == parent.stage_id), None)
    return stage is None or stage.generation != parent.generation or stage.status.is_complete


def _why_stuck(stage: StageExecution, workflow: Workflow, evidence: Evidence) -> Iterator[str]:
    limits = [stage.deadline, *(task.waits_until for task in stage.tasks if task.status is S.SUSPENDED)]
    if workflow.status is S.RUNNING and any(limits) and Phase.ON_FAILURE.value not in stage.planned:
        yield f"nothing keeps the time limit of stage {stage.name}"
    if stage.status is S.SUSPENDED:
        inner = evidence.by_id.get(stage.own_context.get("_sub_workflow_id", ""))
        if inner is not None and inner.status.is_complete:
            yield f"stage {stage.name} waits for {inner.name}, which is {inner.status}"
        if not any(task.status is S.SUSPENDED for task in stage.tasks):
            yield f"stage {stage.name} waits for a signal, none of its tasks does"
    elif stage.status is S.PAUSED:
        if workflow.status not in (S.PAUSED, S.BUFFERED):
            yield f"nothing resumes stage {stage.name}"
    elif not any(child.status in _ACTIVE for child in stage.synthetic_stages()):
        yield f"nothing drives stage {stage.name}"


def _stages_told(workflow: Workflow) -> str:
    return ", ".join(f"{stage.name} {stage.status}" for stage in workflow.stages)


def joins_fire_once_per_generation(evidence: Evidence) -> Iterator[str]:
    """A stage starts at most once per pass, and not before everything it requires lets it."""
    for workflow in evidence.workflows:
        stages = {stage.id: stage for stage in workflow.stages}
        ids = {stage.ref_id: stage.id for stage in workflow.top_level_stages()}
        known: dict[str, S] = {}
        starts: Counter[tuple[str, int]] = Counter()
        for event in evidence.histories[workflow.id]:
            stage_id = event["stage_id"]
            if event["to_status"] is None or stage_id is None or event["task_id"] is not None:
                continue
            known[stage_id] = event["to_status"]
            stage = stages.get(stage_id)
            if stage is None or (event["from_status"], event["to_status"]) != (S.NOT_STARTED, S.RUNNING):
                continue
            pass_ = stage_id, event["generation"]
            starts[pass_] += 1
            if starts[pass_] > 1:
                yield f"{workflow.name}: stage {stage.name} started twice in its generation {pass_[1]}"
            if stage.is_synthetic or pass_ in evidence.watch.released:
                continue
            early = [
                f"{ref} {known.get(ids[ref], S.NOT_STARTED)}"
                for ref in sorted(stage.requisite_stage_ref_ids)
                if not known.get(ids[ref], S.NOT_STARTED).is_continuable
            ]
            if early:
                yield f"{workflow.name}: stage {stage.name} started before {', '.join(early)}"


def finished_tasks_were_run(evidence: Evidence) -> Iterator[str]:
    """A task that succeeded, or jumped, was called in that pass; it came to one end."""
    for workflow in evidence.workflows:
        ends: Counter[tuple[str, int]] = Counter()
        for event in evidence.histories[workflow.id]:
            if event["event"] != "task" or event["to_status"] is None:
                continue
            key = event["task_id"], event["generation"]
            told = f"{workflow.name}: a task of stage {event['stage_id']} (pass {key[1]})"
            returned = event["from_status"] is S.RUNNING and event["to_status"] in (S.SUCCEEDED, S.REDIRECT)
            if returned and not evidence.watch.executions[key]:
                yield f"{told} is {event['to_status']}, but its code was never called"
            if event["to_status"].is_complete:
                ends[key] += 1
                if ends[key] > 1:
                    yield f"{told} ended twice"


def branch_counts_are_exact(evidence: Evidence) -> Iterator[str]:
    """The counters by which joins fire and workflows end are what a count from scratch gives."""
    for workflow in evidence.workflows:
        top = workflow.top_level_stages()
        failed = any(stage.ends_workflow for stage in top)
        if workflow.status.is_complete or workflow.start_time is None or failed:
            # Nothing counts any more: it ends as soon as it may.
            continue
        count = recount(top)
        if workflow.status is S.RUNNING and workflow.live_branches != count.live:
            yield f"{workflow.name} counts {workflow.live_branches} branches, there are {count.live}"
        if workflow.status is S.RUNNING and count.ready:
            yield f"{workflow.name}: {', '.join(s.name for s in count.ready)} could start and did not"
        for stage in top:
            if stage.id in count.arrivals and not stage.released:
                counted, right = (stage.open_upstreams, stage.blocked), count.arrivals[stage.id]
                if counted != right:
                    yield f"{workflow.name}: stage {stage.name} counts {counted}, it should be {right}"


def failures_are_dealt_with_once(evidence: Evidence) -> Iterator[str]:
    """A failure before the last restart cancels nothing; what a failure canceled runs again with what failed."""
    for workflow in evidence.workflows:
        if not workflow.is_canceled:
            yield from _repairs_of(workflow, evidence.histories[workflow.id])


def _repairs_of(workflow: Workflow, history: list[dict[str, Any]]) -> Iterator[str]:
    refs = {stage.id: stage.ref_id for stage in workflow.top_level_stages()}
    fresh: set[str] = set()
    canceled: dict[str, str] = {}
    owed: set[str] = set()
    for event in history:
        ref, reason = refs.get(event["stage_id"] or ""), event["reason"] or ""
        if ref is None or event["event"] not in ("stage", "reset"):
            continue
        if event["event"] == "reset" and reason.startswith("restart from"):
            fresh.clear()
            owed |= {other for other, failed in canceled.items() if failed == ref}
        if event["event"] == "reset":
            canceled.pop(ref, None)
            owed.discard(ref)
        elif event["to_status"] is S.TERMINAL:
            fresh.add(ref)
        elif (by := _FAILED.fullmatch(reason)) and event["actor"] == "system":
            canceled[ref] = by[1]
            if by[1] not in fresh:
                yield f"{workflow.name}: {ref} was canceled by the failure of {by[1]}, an earlier one"
    if owed:
        yield f"{workflow.name}: {', '.join(sorted(owed))} stayed CANCELED when what failed was restarted"
    if workflow.status is S.TERMINAL and not fresh and recount(workflow.top_level_stages()).live:
        yield f"{workflow.name} is TERMINAL by an earlier failure, and its branches had not ended"


def synthetic_stages_are_planned_once(evidence: Evidence) -> Iterator[str]:
    """A stage has as many synthetic stages of each phase as were planned."""
    for workflow in evidence.workflows:
        for stage in workflow.stages:
            found = Counter(child.phase.value for child in stage.synthetic_stages() if child.phase)
            planned = {phase: number for phase, number in stage.planned.items() if number}
            if dict(found) != planned:
                yield f"{workflow.name}: stage {stage.name} has {dict(found)}, planned are {planned}"


#: In the order in which they are told: what explains the others comes first.
AT_REST: tuple[Callable[[Evidence], Iterator[str]], ...] = (
    history_replays_to_the_state,
    no_message_is_left_without_a_reason,
    joins_fire_once_per_generation,
    finished_tasks_were_run,
    branch_counts_are_exact,
    failures_are_dealt_with_once,
    synthetic_stages_are_planned_once,
    every_workflow_ends_or_waits_for_a_named_reason,
)


def check_at_rest(evidence: Evidence) -> None:
    """Note every violation where nothing is left to do."""
    for invariant in AT_REST:
        for told in invariant(evidence):
            evidence.watch.violate(invariant.__name__, told)
