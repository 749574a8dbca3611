"""What is noted while a history runs: claims, results, transactions, and everything that must never happen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from stabilize_celery.messages import StageLevel
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.observe import Transition
from stabilize_celery.persistence.leases import Claimed
from stabilize_celery.persistence.rows import Outgoing
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.unit_of_work import UnitOfWork
from stabilize_celery.tasks.run import TaskRun
from tests.inspection import running_without_slot, slot_uses


@dataclass
class Holder:
    """Who has a task: the claim that was granted last, until its result is accepted."""

    token: int
    until: datetime


@dataclass(frozen=True)
class Violation:
    """An invariant did not hold."""

    #: The name of the invariant.
    invariant: str
    told: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.told}"


@dataclass
class Watch:
    """Stands between the engine and its store, changes nothing, and notes what it sees."""

    store: WorkflowStore
    #: Whether slots are looked at after every transaction.
    limited: bool = False
    violations: list[Violation] = field(default_factory=list)
    #: Calls of user code by task id and generation.
    executions: Counter[tuple[str, int]] = field(default_factory=Counter)
    #: Stages that a jump started whatever they required, with their generation.
    released: set[tuple[str, int]] = field(default_factory=set)
    #: What each committed transaction has changed, told as it happens.
    commits: list[tuple[str, Sequence[Transition]]] = field(default_factory=list)
    _holders: dict[str, Holder] = field(default_factory=dict)
    _newest: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _types: dict[str, str] = field(default_factory=dict)
    _handled: set[str] = field(default_factory=set)
    _open: int = 0

    def violate(self, invariant: str, told: str) -> None:
        """Note that an invariant does not hold; the history ends after this step."""
        self.violations.append(Violation(invariant, told))

    # ------------------------------------------------------------------ transactions

    @contextmanager
    def take(self, message_id: str, token: int | None, *args: Any, **options: Any) -> Iterator[Any]:
        """In place of :meth:`MessageStore.take`."""
        self._open += 1
        taken = type(self.store).take(self.store, message_id, token, *args, **options)
        try:
            with taken as unit:
                if unit is not None:
                    self._watch_releases(unit)
                yield unit
        finally:
            self._open -= 1
        if unit is not None:
            self._committed(message_id, token, unit)

    def _watch_releases(self, unit: UnitOfWork) -> None:
        change = unit.change

        def watched(entity: Any, **values: Any) -> None:
            if values.get("released") and entity.status is WorkflowStatus.NOT_STARTED:
                self.released.add((entity.id, entity.generation))
            change(entity, **values)

        vars(unit)["change"] = watched

    def _committed(self, message_id: str, token: int | None, unit: UnitOfWork) -> None:
        message = unit.message
        if token is None:
            if message_id in self._handled:
                self.violate(
                    "each_message_is_handled_once", f"{message.type} {message_id} was handled once more"
                )
            self._handled.add(message_id)
        else:
            self._settled(message_id, token)
        if isinstance(message, StageLevel):
            self._check_generation(message, unit.transitions)
        self.commits.append((message.type, tuple(unit.transitions)))
        if self.limited:
            self.check_slots()

    def _check_generation(self, message: StageLevel, transitions: Sequence[Transition]) -> None:
        """The first thing that a message does to its stage, it does to the pass of the stage that it is about."""
        ours = [t for t in transitions if t.stage_id == message.stage_id and t.event != "refused"]
        if ours and ours[0].generation != message.generation + (ours[0].event == "reset"):
            self.violate(
                "stale_messages_change_nothing",
                f"{message.type} of generation {message.generation} changed stage {ours[0].stage_ref} "
                f"in its generation {ours[0].generation}",
            )

    def check_slots(self) -> None:
        """No configuration has more executions running than it may."""
        for use in slot_uses(self.store):
            if use.limit is not None and use.taken > use.limit:
                self.violate(
                    "slots_are_never_over_granted",
                    f"{use.config_id}: {use.taken} executions hold its {use.limit} slots",
                )
        for name in running_without_slot(self.store):
            self.violate("slots_are_never_over_granted", f"{name} is RUNNING without a slot")

    def published(self, outgoing: list[Outgoing]) -> None:
        """Something is published."""
        if self._open and outgoing:
            self.violate(
                "nothing_is_published_before_its_commit",
                f"{', '.join(message.type for message in outgoing)}: the transaction is not committed yet",
            )

    # ------------------------------------------------------------------ leases

    def claim(self, message_id: str, owner: str, lease: float) -> Claimed | None:
        """In place of :meth:`LeaseStore.claim`."""
        claimed = type(self.store).claim(self.store, message_id, owner, lease)
        if claimed is not None:
            now, row = self.store.now(), claimed.row
            holder = self._holders.get(message_id)
            if holder is not None and now < holder.until:
                left = (holder.until - now).total_seconds()
                self.violate(
                    "one_worker_at_a_time_has_a_task",
                    f"{row['label']} was given to a second worker; the lease of the first lasts {left:g} s more",
                )
            self._holders[message_id] = Holder(row["claims"], now + timedelta(seconds=lease))
            self._newest[message_id] = max(self._newest[message_id], row["claims"])
            self._types[message_id] = row["type"]
        return claimed

    def heartbeat(
        self, leases: Mapping[str, int], lease: float, owner: str | None = None
    ) -> dict[str, str | None]:
        """In place of :meth:`LeaseStore.heartbeat`."""
        held = type(self.store).heartbeat(self.store, leases, lease, owner)
        for message_id in held:
            holder = self._holders.get(message_id)
            if holder is not None and holder.token == leases[message_id]:
                holder.until = self.store.now() + timedelta(seconds=lease)
        return held

    def called(self, message_id: str, run: TaskRun) -> None:
        """User code is called."""
        if self._types.get(message_id) == "RunTask":
            self.executions[run.task_id, run.generation] += 1

    def _settled(self, message_id: str, token: int) -> None:
        newest = self._newest[message_id]
        if token != newest:
            self.violate(
                "results_of_lost_leases_are_refused",
                f"the result of claim {token} of message {message_id} was accepted, though claim {newest} was granted",
            )
        self._holders.pop(message_id, None)

    # ------------------------------------------------------------------ being there

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Be called in place of the store's own methods within the block."""
        names = ("take", "claim", "heartbeat")
        vars(self.store).update({name: getattr(self, name) for name in names})
        try:
            yield
        finally:
            for name in names:
                del vars(self.store)[name]
