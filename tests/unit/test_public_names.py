"""The names people import are fixed: taking one away, or adding one, is a decision that shows here."""

from __future__ import annotations

import inspect
from dataclasses import fields
from types import ModuleType

import pytest

import stabilize_celery
from stabilize_celery import Stabilize, errors, messages, testing
from stabilize_celery.run import WorkflowRun

PACKAGE = [
    "ApprovalTask",
    "CancelStageHandler",
    "Clock",
    "CompleteStageHandler",
    "CompleteTaskHandler",
    "CompleteWorkflowHandler",
    "ConfigurationError",
    "ContinueParentStageHandler",
    "DockerTask",
    "FakeClock",
    "HTTPTask",
    "JumpToStageHandler",
    "Orchestrator",
    "PermanentError",
    "PostgresQueue",
    "PostgresWorkflowStore",
    "PythonTask",
    "Queue",
    "QueueProcessor",
    "RecoveryError",
    "RetryableTask",
    "RunTaskHandler",
    "ShellTask",
    "SignalStageHandler",
    "SkipStageHandler",
    "SkippableTask",
    "SqliteQueue",
    "SqliteWorkflowStore",
    "Stabilize",
    "StabilizeError",
    "StageContext",
    "StageDefinitionBuilder",
    "StageDefinitionBuilderFactory",
    "StageExecution",
    "StartStageHandler",
    "StartTaskHandler",
    "StartWaitingWorkflowsHandler",
    "StartWorkflowHandler",
    "SubWorkflowTask",
    "SyntheticStageOwner",
    "Task",
    "TaskError",
    "TaskExecution",
    "TaskRegistry",
    "TaskResult",
    "TransientError",
    "TransientVerificationError",
    "Trigger",
    "VerificationError",
    "Workflow",
    "WorkflowCanceledError",
    "WorkflowFailedError",
    "WorkflowNotFoundError",
    "WorkflowRun",
    "WorkflowStateError",
    "WorkflowStatus",
    "WorkflowStore",
    "WorkflowTimeoutError",
    "current_run",
    "is_transient",
    "register_builder",
]
ERRORS = [
    "CircularDependencyError",
    "CommitUnknownError",
    "ConcurrencyError",
    "ConfigurationError",
    "DeadLetterError",
    "ExpressionError",
    "InvalidMessageError",
    "InvalidOutputError",
    "InvalidStageGraphError",
    "InvalidStateTransitionError",
    "InvalidWorkflowError",
    "PermanentError",
    "QueueError",
    "RecoveryError",
    "RepeatTransactionError",
    "SchemaVersionError",
    "StabilizeBaseException",
    "StabilizeError",
    "StageError",
    "StageNotFoundError",
    "StoreError",
    "TaskError",
    "TaskNotFoundError",
    "TaskTimeoutError",
    "TransientError",
    "TransientVerificationError",
    "UnknownMessageError",
    "UnknownReducerError",
    "VerificationError",
    "WorkflowCanceledError",
    "WorkflowError",
    "WorkflowFailedError",
    "WorkflowFileError",
    "WorkflowNotFoundError",
    "WorkflowStateError",
    "WorkflowTimeoutError",
    "causes_of",
    "describe_error",
    "described_text",
    "described_traceback",
    "error_text",
    "is_transient",
    "named_text",
    "storable_text",
    "transient_marks",
    "truncate_error",
]
#: Names of Celery tasks (``stabilize.<name>``), and stored in databases.
MESSAGES = [
    "CancelStage",
    "CancelWorkflow",
    "CompleteStage",
    "CompleteTask",
    "CompleteWorkflow",
    "ContinueParentStage",
    "ExpireStage",
    "ExpireSuspension",
    "InvalidStageId",
    "InvalidTaskId",
    "InvalidTaskType",
    "InvalidWorkflowId",
    "JumpToStage",
    "PauseWorkflow",
    "RestartStage",
    "ResumeWorkflow",
    "RunHook",
    "RunTask",
    "SignalStage",
    "SkipStage",
    "StartStage",
    "StartStages",
    "StartTask",
    "StartWaitingWorkflows",
    "StartWorkflow",
]
RUN = [
    "approve",
    "cancel",
    "cancel_stage",
    "get",
    "history",
    "pause",
    "ready",
    "reject",
    "restart_stage",
    "resume",
    "signal",
    "skip_stage",
    "status",
    "successful",
    "wait",
    "workflow",
]

TESTING = [
    "LostWorker",
    "StabilizeForTests",
    "Stub",
    "StubCall",
    "assert_failed",
    "assert_order",
    "assert_stage",
    "assert_status",
    "assert_succeeded",
    "draw",
]
#: What the engine of a test has besides.
KIT = ["advance", "drain", "like", "lose_worker", "run_stage", "stub"]
STUB_CALL = ["args", "at", "attempt", "context", "idempotency_key", "kwargs", "own_context", "stage"]


def defined_in(module: ModuleType) -> list[str]:
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    )


def test_names_of_the_package():
    assert sorted(stabilize_celery.__all__) == PACKAGE


def test_the_package_has_no_other_names_than_it_says():
    assert set(dir(stabilize_celery)) == {*stabilize_celery.__all__, "__version__"}
    for name in stabilize_celery.__all__:
        assert getattr(stabilize_celery, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Stabilise'"):
        stabilize_celery.Stabilise  # noqa: B018


def test_names_of_the_errors():
    assert defined_in(errors) == ERRORS


def test_names_of_the_messages():
    assert sorted(messages.MESSAGE_TYPES) == MESSAGES


def test_names_of_a_run():
    assert [name for name in dir(WorkflowRun) if not name.startswith("_")] == RUN


def test_names_for_tests():
    assert sorted(testing.__all__) == dir(testing) == TESTING
    for name in testing.__all__:
        assert getattr(testing, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'assert_well'"):
        testing.assert_well  # noqa: B018


def test_names_of_the_engine_of_a_test():
    own = set(dir(testing.StabilizeForTests)) - set(dir(Stabilize))
    assert sorted(name for name in own if not name.startswith("_")) == KIT
    assert sorted(field.name for field in fields(testing.StubCall)) == STUB_CALL
