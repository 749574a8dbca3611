"""Dead letters: what is to be done with them.

When a message is given up its workflow ends TERMINAL with that reason, so that nothing hangs.  Trying it again takes
that back, by the rules of a restart: the workflow is revived, the stages that were canceled for the dead letter start again
in a new generation (their tasks have been told that they were canceled, and cleaned up after themselves), and whatever
is ready starts.  That makes most messages again; only what a person or another workflow had asked for is put back.
"""

from __future__ import annotations

from typing import Any

from stabilize_celery.delivery.dispatcher import Dispatcher, burial_reason
from stabilize_celery.errors import DeadLetterError, StabilizeError
from stabilize_celery.handlers.branches import accept_failures, resume_progress
from stabilize_celery.handlers.slots import admit
from stabilize_celery.handlers.transitions import remove_children, reset_stage, revive_workflow, transition
from stabilize_celery.json_values import is_storable
from stabilize_celery.messages import StartWorkflow
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence import messages
from stabilize_celery.persistence.audit import alone, read_config
from stabilize_celery.persistence.rows import message_of, outgoing
from stabilize_celery.persistence.unit_of_work import UnitOfWork

#: User requests: nothing else makes these messages again.
_WISHES = (
    "CancelWorkflow",
    "PauseWorkflow",
    "ResumeWorkflow",
    "RestartStage",
    "SkipStage",
    "CancelStage",
    "SignalStage",
)


class DeadLetters:
    """The dead letters of an engine."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._store = dispatcher.store

    def get(self, letter_id: str) -> dict[str, Any]:
        """A dead letter: its message's row, the error with its traceback, when it died.

        Raises:
            DeadLetterError: there is none of that id.
        """
        letter, shown = None, ascii(letter_id)[:100]
        if is_storable(letter_id):
            shown = letter_id[:100]
            with self._store.database.begin() as connection:
                letter = messages.read_letter(connection, letter_id)
        if letter is None:
            raise DeadLetterError(
                f"there is no dead letter {shown} in {self._store.database.name}; "
                "it may have been tried again or dropped"
            )
        return letter

    def drop(self, letter_id: str, user: str) -> None:
        """Forget a dead letter; its workflow stays as it is.

        Raises:
            DeadLetterError: there is none of that id.
        """
        letter = self.get(letter_id)
        if letter["workflow_id"] is None or not self._store.exists(letter["workflow_id"]):
            with self._store.database.begin() as connection:
                messages.delete_letter(connection, letter_id)
            return
        with alone(self._store, letter["workflow_id"], self._dispatcher.surroundings) as unit:
            if messages.delete_letter(unit.connection, letter_id):
                reason = f"dead letter {letter_id} ({letter['type']}) was dropped"
                unit.record("letter", letter["workflow_id"], reason=reason, actor=user or None)

    def retry(self, letter_id: str, user: str) -> str:
        """Try a dead letter again.

        Returns:
            What was done, for people.

        Raises:
            DeadLetterError: there is none of that id, or trying again makes no sense; it is kept.
        """
        letter = self.get(letter_id)
        self._refuse_unreadable(letter)
        if letter["workflow_id"] is None:
            return self._put_back_alone(letter)
        if not self._store.exists(letter["workflow_id"]):
            raise DeadLetterError(
                f"dead letter {letter_id} ({letter['type']}) is about workflow {letter['workflow_id']}, which is not in "
                f"{self._store.database.name} any more; drop the letter"
            )
        with alone(self._store, letter["workflow_id"], self._dispatcher.surroundings) as unit:
            done = _Retry(unit, letter, user).carry_out()
        self._dispatcher.finish(unit)
        return done

    def _refuse_unreadable(self, letter: dict[str, Any]) -> None:
        try:
            message_of(letter["row"])
        except StabilizeError as error:
            raise DeadLetterError(
                f"dead letter {letter['id']} cannot be read and would die again: {error}; drop it, and restart its "
                "workflow from a stage"
            ) from error

    def _put_back_alone(self, letter: dict[str, Any]) -> str:
        with self._store.database.begin() as connection:
            row = None
            if messages.delete_letter(connection, letter["id"]):
                row = messages.put_back(connection, letter, self._store.now())
        if row is not None:
            self._dispatcher.publisher.publish([outgoing(row)])
        return "the message was sent again"


class _Retry:
    """One retry, in a transaction that has the workflow for itself."""

    def __init__(self, unit: UnitOfWork, letter: dict[str, Any], user: str) -> None:
        self._unit = unit
        self._letter = letter
        self._workflow_id: str = letter["workflow_id"]
        self._actor = user or None
        self._reason = f"dead letter {letter['id']} ({letter['type']}) is tried again"

    def carry_out(self) -> str:
        unit, letter = self._unit, self._letter
        if not messages.delete_letter(unit.connection, letter["id"]):
            raise DeadLetterError(f"dead letter {letter['id']} has just been tried again or dropped")
        if letter["type"] == "RunHook":
            # What became of the stage changes nothing for its hooks.
            unit.record("letter", self._workflow_id, reason=self._reason, actor=self._actor)
            return self._put_back(None)
        config_id = read_config(unit.connection, self._workflow_id)
        slots = unit.slots(config_id) if config_id is not None else None
        workflow = unit.whole(self._workflow_id)
        assert workflow is not None
        by_letter, canceled = messages.read_ended_by(
            unit.connection, self._workflow_id, burial_reason(letter["id"])
        )
        if workflow.status is S.TERMINAL and by_letter:
            return self._revive(workflow, canceled, slots)
        if workflow.status.is_complete and letter["type"] != "RestartStage":
            raise DeadLetterError(
                f"workflow {workflow.id} has ended {workflow.status} for another reason, and leaves a "
                f"{letter['type']} nothing to do; restart the workflow from a stage, or drop the letter"
            )
        unit.record("letter", workflow.id, reason=self._reason, actor=self._actor)
        return self._put_back(workflow)

    def _revive(self, workflow: Workflow, canceled: set[str], slots: Any) -> str:
        unit = self._unit
        for stage in _outermost(workflow, canceled):
            remove_children(unit, stage, self._reason, self._actor)
            reset_stage(unit, stage, self._reason, self._actor)
        # As after a restart, stages that had failed before count at the end only.
        accept_failures(unit, workflow)
        revive_workflow(unit, workflow, self._reason, self._actor)
        if workflow.start_time is None:
            if self._letter["type"] != "StartWorkflow":
                self._put_back_wish(workflow)
            unit.send(StartWorkflow(workflow_id=workflow.id, pipeline_config_id=workflow.pipeline_config_id))
            return "its workflow starts"
        if slots is not None and not admit(unit, workflow, slots):
            resume_progress(unit, workflow)
        else:
            transition(unit, workflow, S.RUNNING, self._reason, actor=self._actor)
            resume_progress(unit, workflow)
        self._put_back_wish(workflow)
        return "its workflow goes on"

    def _put_back_wish(self, workflow: Workflow) -> None:
        if self._letter["type"] not in _WISHES or self._letter["type"] == "ResumeWorkflow":
            # A workflow that was to be resumed goes on by being revived.
            return
        if self._stage_of(workflow) is not None or self._letter["stage_id"] is None:
            self._put_back(workflow)

    def _stage_of(self, workflow: Workflow) -> StageExecution | None:
        return next((stage for stage in workflow.stages if stage.id == self._letter["stage_id"]), None)

    def _put_back(self, workflow: Workflow | None) -> str:
        unit, letter = self._unit, self._letter
        changes: dict[str, Any] = {}
        if workflow is not None and letter["type"] in _WISHES and letter["stage_id"] is not None:
            # What was asked of a stage is meant for the stage, whichever generation it is in by now.
            stage = self._stage_of(workflow)
            if stage is None:
                raise DeadLetterError(
                    f"the stage that dead letter {letter['id']} ({letter['type']}) is about does not exist any more; "
                    "drop the letter"
                )
            changes["generation"] = stage.generation
        row = messages.put_back(unit.connection, letter, unit.now, **changes)
        unit.outgoing.append(outgoing(row))
        return "the message was sent again"


def _outermost(workflow: Workflow, stage_ids: set[str]) -> list[StageExecution]:
    """The stages of the workflow itself that some stages are, or are synthetic stages of."""
    found: dict[str, StageExecution] = {}
    for stage in workflow.stages:
        if stage.id in stage_ids:
            outer = stage
            while (parent := outer.parent()) is not None:
                outer = parent
            found[outer.id] = outer
    return list(found.values())
