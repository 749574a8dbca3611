"""Every message the engine sends itself, typed, with its stored form.

The levels follow Spinnaker Orca: a message concerns a workflow, one of its stages, or one task of a stage.  Stage and
task messages carry the stage's generation; one of another generation is stale and dropped (promise P5).  What travels
through the broker is not this, only the id of the row that holds it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar, NamedTuple, get_type_hints

from stabilize_celery.errors import InvalidMessageError, UnknownMessageError
from stabilize_celery.models.stage import Phase
from stabilize_celery.models.status import WorkflowStatus

#: An entrypoint, the Celery task that carries a message, is named by this and the message's type.
TASK_PREFIX = "stabilize."


class Gate(Enum):
    """How a message shares its workflow with other messages while it is handled."""

    #: Ordinary progress: any number at once.
    SHARED = "shared"
    #: Rewires the workflow: alone.
    EXCLUSIVE = "exclusive"


@dataclass(frozen=True, kw_only=True)
class Message:
    """What all messages have in common."""

    #: Version of the stored form; a worker puts back what is newer than it knows.
    version: ClassVar[int] = 1
    gate: ClassVar[Gate] = Gate.SHARED
    #: User code runs in the middle of it, under a lease.
    runs_user_code: ClassVar[bool] = False
    #: Never handled in the transaction that sends it, so that no transaction grows without bounds.
    stands_alone: ClassVar[bool] = False

    @property
    def type(self) -> str:
        """The name of the message type."""
        return type(self).__name__

    @property
    def exclusive(self) -> bool:
        """Whether it must have its workflow for itself."""
        return self.gate is Gate.EXCLUSIVE


@dataclass(frozen=True, kw_only=True)
class WorkflowLevel(Message):
    """A message about a workflow."""

    workflow_id: str


@dataclass(frozen=True, kw_only=True)
class StageLevel(WorkflowLevel):
    """A message about a stage of a workflow."""

    stage_id: str
    generation: int = 0


@dataclass(frozen=True, kw_only=True)
class TaskLevel(StageLevel):
    """A message about a task of a stage."""

    task_id: str


# ---------------------------------------------------------------------- progress


@dataclass(frozen=True, kw_only=True)
class StartWorkflow(WorkflowLevel):
    """Start an execution, or let it wait for a slot."""

    gate: ClassVar[Gate] = Gate.EXCLUSIVE
    #: The configuration whose limit it must pass, locked before the workflow.
    pipeline_config_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class StartStage(StageLevel):
    """Start a stage that is ready: plan its synthetic stages, then its first step."""


@dataclass(frozen=True, kw_only=True)
class StartStages(WorkflowLevel):
    """Start the many stages of a fan-out, one batch per transaction."""

    stands_alone: ClassVar[bool] = True
    #: [stage id, generation] of each.
    stages: list[list[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        each: Any
        for each in self.stages:
            if not (
                isinstance(each, list | tuple)
                and len(each) == 2
                and isinstance(each[0], str)
                and type(each[1]) is int
            ):
                raise InvalidMessageError(
                    f"message StartStages: {each!r:.100} is not an id and a generation of a stage"
                )


@dataclass(frozen=True, kw_only=True)
class SkipStage(StageLevel):
    """End a stage as SKIPPED: one that has not started, or, when a person (``user``) wants it, any that has not ended."""

    reason: str = ""
    user: str | None = None

    @property
    def exclusive(self) -> bool:
        return self.user is not None


@dataclass(frozen=True, kw_only=True)
class StartTask(TaskLevel):
    """Start a task: send it to the workers."""


@dataclass(frozen=True, kw_only=True)
class RunTask(TaskLevel):
    """Call a task's code, under a lease."""

    runs_user_code: ClassVar[bool] = True
    task_type: str = ""


@dataclass(frozen=True, kw_only=True)
class CompleteTask(TaskLevel):
    """End a task, and go on to the next one or to the end of the stage."""

    status: WorkflowStatus = WorkflowStatus.SUCCEEDED
    #: The failure before the stage's failure policy was applied.
    failed_as: WorkflowStatus | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class CompleteStage(StageLevel):
    """See whether a stage has ended, and start what comes next if it has."""


@dataclass(frozen=True, kw_only=True)
class ContinueParentStage(StageLevel):
    """The synthetic stages of one phase of this stage have ended: go on with the stage itself."""

    phase: Phase = Phase.AFTER


@dataclass(frozen=True, kw_only=True)
class CompleteWorkflow(WorkflowLevel):
    """See whether a workflow has ended.

    ``halted`` says that a stage ended in a halting status: others may have to be canceled, so no other message may be at
    work.  Without it nothing else is going on, and the message is ordinary progress.
    """

    halted: bool = False

    @property
    def exclusive(self) -> bool:
        return self.halted


# ---------------------------------------------------------------------- control


@dataclass(frozen=True, kw_only=True)
class CancelWorkflow(WorkflowLevel):
    """Cancel everything that has not ended."""

    gate: ClassVar[Gate] = Gate.EXCLUSIVE
    user: str = ""
    reason: str = ""
    #: End the worker's child process instead of asking the task to stop.
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class CancelStage(StageLevel):
    """Cancel a stage and its synthetic stages."""

    gate: ClassVar[Gate] = Gate.EXCLUSIVE
    user: str = ""
    reason: str = ""
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class PauseWorkflow(WorkflowLevel):
    """Start nothing more until it is resumed."""

    version: ClassVar[int] = 2
    gate: ClassVar[Gate] = Gate.EXCLUSIVE
    user: str = ""
    #: ``pause_mark`` of the workflow when this was asked: paused or resumed since, it is stale.  ``None`` if the
    #: workflow around it asks: then how that one stands decides, whichever message comes first.
    mark: str | None = None


@dataclass(frozen=True, kw_only=True)
class ResumeWorkflow(WorkflowLevel):
    """Go on after a pause."""

    version: ClassVar[int] = 2
    gate: ClassVar[Gate] = Gate.EXCLUSIVE
    user: str = ""
    pipeline_config_id: str | None = None
    #: It waited for a slot, and has been given one.
    admitted: bool = False
    #: As in :class:`PauseWorkflow`.
    mark: str | None = None


@dataclass(frozen=True, kw_only=True)
class RestartStage(StageLevel):
    """Run a stage again, and everything downstream of it."""

    version: ClassVar[int] = 2
    gate: ClassVar[Gate] = Gate.EXCLUSIVE
    user: str = ""
    pipeline_config_id: str | None = None
    #: The sub-workflow that failed it was repaired since: the stage takes its result instead of starting another.
    sub_workflow_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class JumpToStage(TaskLevel):
    """Continue at another stage: reset it and what lies downstream."""

    gate: ClassVar[Gate] = Gate.EXCLUSIVE
    target_ref_id: str = ""
    jump_context: dict[str, Any] = field(default_factory=dict)
    jump_outputs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SignalStage(StageLevel):
    """Wake a suspended task, or (persistent) the next one that suspends."""

    signal_name: str = ""
    signal_data: dict[str, Any] = field(default_factory=dict)
    persistent: bool = False
    user: str = ""


@dataclass(frozen=True, kw_only=True)
class ExpireSuspension(TaskLevel):
    """A suspended task got no signal in time."""

    #: Which suspension of the task is meant, so that a later one is left alone.
    suspension: int = 0


@dataclass(frozen=True, kw_only=True)
class ExpireStage(StageLevel):
    """A stage may take no longer; one is sent for each start of a stage with a limit, and again after a pause."""

    gate: ClassVar[Gate] = Gate.EXCLUSIVE


@dataclass(frozen=True, kw_only=True)
class StartWaitingWorkflows(Message):
    """Slots of a configuration may be free: start waiting executions."""

    pipeline_config_id: str


@dataclass(frozen=True, kw_only=True)
class RunHook(TaskLevel):
    """Call a task's ``on_cancel`` or ``on_cleanup``, under a lease."""

    runs_user_code: ClassVar[bool] = True
    hook: str = "on_cleanup"
    task_type: str = ""
    #: The stage as it was, if a newer generation has started or it is gone.
    stage: dict[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------- markers


@dataclass(frozen=True, kw_only=True)
class InvalidWorkflowId(WorkflowLevel):
    """A message named a workflow that does not exist."""

    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class InvalidStageId(StageLevel):
    """A message named a stage that does not exist, or belongs to another workflow."""

    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class InvalidTaskId(TaskLevel):
    """A message named a task its stage does not have."""

    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class InvalidTaskType(TaskLevel):
    """A message named an unregistered task type."""

    task_type: str = ""


# ---------------------------------------------------------------------- codec

_LEVELS = (Message, WorkflowLevel, StageLevel, TaskLevel)


def _concrete(base: type[Message]) -> list[type[Message]]:
    found = []
    for cls in base.__subclasses__():
        if cls not in _LEVELS:
            found.append(cls)
        found.extend(_concrete(cls))
    return found


#: message type name -> class, for every message there is.
MESSAGE_TYPES: dict[str, type[Message]] = {cls.__name__: cls for cls in _concrete(Message)}
#: Columns of their own in the messages table; everything else is payload.
ENVELOPE_FIELDS = ("workflow_id", "stage_id", "task_id", "generation")
_PAYLOAD_FIELDS: dict[type[Message], tuple[str, ...]] = {
    cls: tuple(f.name for f in fields(cls) if f.name not in ENVELOPE_FIELDS) for cls in MESSAGE_TYPES.values()
}


def payload_of(message: Message) -> dict[str, Any]:
    """The JSON part of a message: everything without a column of its own."""
    payload = {name: getattr(message, name) for name in _PAYLOAD_FIELDS[type(message)]}
    return {key: value.name if isinstance(value, Enum) else value for key, value in payload.items()}


def decode(type_name: Any, envelope: dict[str, Any], payload: Any, version: Any = 1) -> Message:
    """Rebuild a message from its row.

    Raises:
        UnknownMessageError: the type, or its version, is not known to this release.
        InvalidMessageError: a field is missing, unexpected, or of the wrong type.
    """
    cls = MESSAGE_TYPES.get(type_name) if isinstance(type_name, str) else None
    if cls is None:
        raise UnknownMessageError(
            f"message type {type_name!r} is unknown to this worker; a newer one may know it"
        )
    if not isinstance(version, int):
        raise InvalidMessageError(f"message {type_name} has the version {version!r}, which is no number")
    if version > cls.version:
        raise UnknownMessageError(
            f"message {type_name} has version {version}, this worker knows {cls.version}; upgrade the worker"
        )
    if not isinstance(payload, dict):
        raise InvalidMessageError(
            f"message {type_name}: its payload is {type(payload).__name__}, not an object"
        )
    kinds = _FIELDS[cls]
    values = {key: value for key, value in envelope.items() if key in kinds and value is not None}
    unexpected = set(payload) - set(_PAYLOAD_FIELDS[cls])
    if unexpected:
        raise InvalidMessageError(f"message {type_name} has unexpected fields {sorted(map(str, unexpected))}")
    values.update(payload)
    values = {key: _value(type_name, key, kinds[key], value) for key, value in values.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise InvalidMessageError(f"message {type_name} is incomplete: {error}") from error


def _value(type_name: str, key: str, kind: _Kind, value: Any) -> Any:
    if value is None and kind.optional:
        return None
    if kind.enum is not None:
        if isinstance(value, kind.enum):
            return value
        if isinstance(value, str) and value in kind.enum.__members__:
            return kind.enum[value]
        raise InvalidMessageError(f"message {type_name}: {key} cannot be {value!r}")
    expected = kind.json
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise InvalidMessageError(
            f"message {type_name}: {key} must be {expected.__name__}, not {type(value).__name__}"
        )
    return value


class _Kind(NamedTuple):
    """What a field of a message may hold."""

    optional: bool
    enum: type[Enum] | None
    json: type


_JSON_TYPES: dict[str, type] = {"list": list, "dict": dict, "bool": bool, "int": int}


def _kind(hint: Any) -> _Kind:
    text = str(hint)
    enum = next((each for each in (WorkflowStatus, Phase) if each.__name__ in text), None)
    return _Kind("None" in text, enum, next((_JSON_TYPES[kind] for kind in _JSON_TYPES if kind in text), str))


def _kinds(cls: type[Message]) -> dict[str, _Kind]:
    hints = get_type_hints(cls)
    return {f.name: _kind(hints[f.name]) for f in fields(cls)}


#: The fields of every message type.
_FIELDS: dict[type[Message], dict[str, _Kind]] = {cls: _kinds(cls) for cls in MESSAGE_TYPES.values()}
