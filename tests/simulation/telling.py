"""Telling what happens in a world, in the words of the workflows: names, not identifiers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from stabilize_celery.errors import WorkflowNotFoundError
from stabilize_celery.observe import Transition
from stabilize_celery.persistence.rows import Outgoing
from stabilize_celery.persistence.store import WorkflowStore
from tests.simulation.story import Story
from tests.simulation.watch import Watch


class Teller:
    """Writes the story, if there is to be one.

    Args:
        store: where names are looked up.
        watch: whose commits are told.
        story: ``None`` if nobody wants to hear it.
    """

    def __init__(self, store: WorkflowStore, watch: Watch, story: Story | None) -> None:
        self._store = store
        self._watch = watch
        self.story = story
        #: How many processes hang at the moment.
        self.depth = 0
        self._names: dict[str, str] = {}

    def tell(self, text: Callable[[], str]) -> None:
        """Put a line into the story; ``text`` is called only if there is one."""
        if self.story is not None:
            self.story.add(self._store.now(), self.depth, text())

    def commits(self) -> None:
        """Tell what was committed since the last time."""
        if self.story is None:
            self._watch.commits.clear()
            return
        commits, self._watch.commits[:] = list(self._watch.commits), []
        for kind, transitions in commits:
            changes = ", ".join(filter(None, map(self._change, transitions))) or "nothing changed"
            self.note(f"  {kind} is committed: {changes}")

    def note(self, text: str) -> None:
        """Put a line into the story."""
        self.tell(lambda: text)

    def _change(self, transition: Transition) -> str:
        subject = self._stage_name(transition) or transition.workflow_name or "the workflow"
        if transition.event in ("retry", "signal", "skip", "refused", "launch"):
            return f"{subject} {transition.event}"
        if transition.task_id is not None:
            subject += " (task)"
        return f"{subject} -> {transition.new}"

    def _stage_name(self, transition: Transition) -> str:
        stage_id = transition.stage_id
        if stage_id is None:
            return ""
        if stage_id not in self._names:
            name = transition.stage_ref
            with suppress(WorkflowNotFoundError):
                stage = self._store.retrieve_stage(stage_id)
                name = stage.name if stage.is_synthetic else stage.ref_id
            self._names[stage_id] = f"{transition.workflow_name} / {name}"
        return self._names[stage_id]

    @staticmethod
    def named(message: Outgoing) -> str:
        """A message in words."""
        return f"{message.type} of {message.label}" if message.label else message.type
