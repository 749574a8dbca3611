"""The stored form of messages: every type comes back as it was, and junk is refused by name."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabilize_celery.errors import InvalidMessageError, UnknownMessageError
from stabilize_celery.messages import (
    ENVELOPE_FIELDS,
    MESSAGE_TYPES,
    CompleteTask,
    ContinueParentStage,
    Message,
    ResumeWorkflow,
    RunHook,
    RunTask,
    SignalStage,
    StageLevel,
    StartStage,
    StartWorkflow,
    TaskLevel,
    WorkflowLevel,
    decode,
    payload_of,
)
from stabilize_celery.models.stage import Phase
from stabilize_celery.models.status import WorkflowStatus as S

#: A value other than the default for every field, by its annotation.
SAMPLES = {
    "str": "text",
    "str | None": "text",
    "int": 7,
    "int | None": 7,
    "float": 0.5,
    "float | None": 0.5,
    "bool": True,
    "list[list[Any]]": [["stage", 1]],
    "dict[str, Any]": {"a": [1, {"b": None}]},
    "WorkflowStatus": S.FAILED_CONTINUE,
    "WorkflowStatus | None": S.STOPPED,
    "Phase": Phase.BEFORE,
}


def envelope_of(message: Message) -> dict[str, Any]:
    return {name: getattr(message, name, None) for name in ENVELOPE_FIELDS}


def through_the_database(message: Message) -> Message:
    payload = json.loads(json.dumps(payload_of(message)))
    return decode(message.type, envelope_of(message), payload)


def full(cls: type[Message]) -> Message:
    return cls(**{f.name: SAMPLES[str(f.type)] for f in fields(cls)})


def smallest(cls: type[Message]) -> Message:
    required = [f for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    return cls(**{f.name: SAMPLES[str(f.type)] for f in required})


@pytest.mark.parametrize("cls", MESSAGE_TYPES.values(), ids=list(MESSAGE_TYPES))
@pytest.mark.parametrize("make", [full, smallest])
def test_every_message_comes_back_as_it_was(cls: type[Message], make: Any) -> None:
    message = make(cls)

    assert through_the_database(message) == message


def test_the_types_are_those_of_the_contract() -> None:
    contract = {
        "StartWorkflow",
        "StartStage",
        "SkipStage",
        "StartTask",
        "RunTask",
        "CompleteTask",
        "CompleteStage",
        "ContinueParentStage",
        "CompleteWorkflow",
        "CancelWorkflow",
        "CancelStage",
        "RestartStage",
        "JumpToStage",
        "SignalStage",
        "StartWaitingWorkflows",
        "InvalidWorkflowId",
        "InvalidStageId",
        "InvalidTaskId",
        "InvalidTaskType",
    }

    assert contract <= set(MESSAGE_TYPES)
    assert not {Message, WorkflowLevel, StageLevel, TaskLevel} & set(MESSAGE_TYPES.values())


def test_only_messages_that_run_user_code_are_marked_so() -> None:
    assert {cls for cls in MESSAGE_TYPES.values() if cls.runs_user_code} == {RunTask, RunHook}


def test_a_type_of_a_newer_release_is_left_to_it() -> None:
    with pytest.raises(UnknownMessageError, match="'StartOrbit' is unknown"):
        decode("StartOrbit", {"workflow_id": "w"}, {})


def test_a_newer_version_of_a_known_type_is_left_to_a_newer_release() -> None:
    with pytest.raises(UnknownMessageError, match=r"version 2.*upgrade the worker"):
        decode("StartWorkflow", {"workflow_id": "w"}, {}, version=2)


@pytest.mark.parametrize(
    ("cls", "envelope", "payload", "names"),
    [
        pytest.param(StartStage, {"workflow_id": "w"}, {}, "stage_id", id="missing-field"),
        pytest.param(StartWorkflow, {"workflow_id": "w"}, {"colour": "red"}, "colour", id="unexpected-field"),
        pytest.param(
            StartStage,
            {"workflow_id": "w", "stage_id": "s", "generation": "1"},
            {},
            "generation must be int",
            id="text-for-a-number",
        ),
        pytest.param(
            StartStage,
            {"workflow_id": "w", "stage_id": "s", "generation": True},
            {},
            "generation must be int",
            id="truth-for-a-number",
        ),
        pytest.param(StartWorkflow, {"workflow_id": 5}, {}, "workflow_id must be str", id="number-for-text"),
        pytest.param(
            ResumeWorkflow,
            {"workflow_id": "w"},
            {"admitted": 1},
            "admitted must be bool",
            id="number-for-truth",
        ),
        pytest.param(
            CompleteTask,
            {"workflow_id": "w", "stage_id": "s", "task_id": "t"},
            {"status": "FINE"},
            "status cannot be 'FINE'",
            id="unknown-status",
        ),
        pytest.param(
            ContinueParentStage,
            {"workflow_id": "w", "stage_id": "s"},
            {"phase": "DURING"},
            "phase cannot be 'DURING'",
            id="unknown-phase",
        ),
        pytest.param(
            SignalStage,
            {"workflow_id": "w", "stage_id": "s"},
            {"signal_data": [1]},
            "signal_data must be dict",
            id="list-for-mapping",
        ),
        pytest.param(StartWorkflow, {"workflow_id": "w"}, [1], "", id="payload-is-a-list"),
        pytest.param(StartWorkflow, {"workflow_id": "w"}, None, "", id="payload-is-null"),
        pytest.param(StartWorkflow, {"workflow_id": "w"}, "text", "", id="payload-is-text"),
    ],
)
def test_junk_is_refused_by_name(
    cls: type[Message], envelope: dict[str, Any], payload: Any, names: str
) -> None:
    with pytest.raises(InvalidMessageError) as refused:
        decode(cls.__name__, envelope, payload)

    assert cls.__name__ in str(refused.value)
    assert names in str(refused.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = sorted({f.name for cls in MESSAGE_TYPES.values() for f in fields(cls)})


@given(
    st.sampled_from([*MESSAGE_TYPES, "Other"]),
    st.dictionaries(st.sampled_from(ENVELOPE_FIELDS), JSON),
    st.dictionaries(st.sampled_from(FIELDS), JSON) | JSON,
)
def test_whatever_is_in_a_row_it_is_a_message_or_one_of_two_errors(
    name: str, envelope: dict[str, Any], payload: Any
) -> None:
    try:
        message = decode(name, envelope, payload)
    except (InvalidMessageError, UnknownMessageError):
        return
    assert through_the_database(message) == message
