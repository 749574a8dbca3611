"""What errors say, and what decides whether a task is tried again."""

from __future__ import annotations

import errno
import socket
from datetime import timedelta
from typing import Any
from urllib.error import HTTPError, URLError

import pytest

from stabilize_celery import PermanentError, TaskResult, TransientError, WorkflowStatus
from stabilize_celery.clock import MAX_SECONDS, check_seconds
from stabilize_celery.errors import (
    MAX_STORED_ERROR_BYTES,
    StabilizeError,
    TaskError,
    describe_error,
    error_text,
    is_transient,
    named_text,
    transient_marks,
)

ODD = [
    pytest.param(float("inf"), ValueError, id="inf"),
    pytest.param(float("-inf"), ValueError, id="minus-inf"),
    pytest.param(float("nan"), ValueError, id="nan"),
    pytest.param(1e12, ValueError, id="thousands-of-years"),
    pytest.param(10**400, ValueError, id="many-digits"),
    pytest.param(-5, ValueError, id="negative"),
    pytest.param("30", TypeError, id="text"),
    pytest.param(timedelta(seconds=30), TypeError, id="timedelta"),
    pytest.param(True, TypeError, id="bool"),
    pytest.param([1], TypeError, id="list"),
]


class SilentError(PermanentError):
    def __init__(self) -> None:
        """Without that of the base class, as happens."""


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not today")

    __repr__ = __str__

    @property
    def cause(self) -> BaseException:
        raise RuntimeError("nor this")

    @property
    def error_code(self) -> str:
        raise RuntimeError("nor that")


class TimeoutConnectionRetryError(Exception):
    """Its name says nothing."""


class NotFoundValidationError(ConnectionError):
    """Nor does this one's."""


def caused(error: BaseException, cause: BaseException | None) -> BaseException:
    error.__cause__ = cause
    return error


# ------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError(), "ValueError"),
        (AssertionError(), "AssertionError"),
        (PermanentError(""), "PermanentError"),
        (SilentError(), "SilentError"),
        (StabilizeError(), "StabilizeError"),
        (TaskError(task_name="t"), "TaskError"),
        (PermanentError("no", code=7), "no (code=7)"),
        (PermanentError("no", cause=KeyError("b")), "no caused by: 'b'"),
        (
            PermanentError("no", cause=PermanentError("so", cause=ValueError("x"))),
            "no caused by: so caused by: x",
        ),
        (MuteError(), "MuteError (its text cannot be read: __str__ raised RuntimeError)"),
        (ValueError("a\x00b\ud800"), "a\N{REPLACEMENT CHARACTER}b?"),
        (
            ExceptionGroup("two", [ValueError("x"), KeyError("y")]),
            "two (2 sub-exceptions): ValueError: x; KeyError: 'y'",
        ),
    ],
)
def test_what_an_error_says(error: BaseException, text: str) -> None:
    assert error_text(error) == text
    assert describe_error(error)["details"]["error"] == text


def test_a_group_of_many_says_what_the_first_say() -> None:
    group = ExceptionGroup("many", [ValueError(str(n)) for n in range(50)])

    assert error_text(group).endswith("ValueError: 4; and 45 more")


def test_the_name_of_the_class_comes_first() -> None:
    assert named_text(KeyError("b")) == "KeyError: 'b'"
    assert named_text(ValueError()) == "ValueError"
    assert named_text(MuteError()).startswith("MuteError (")


def test_a_long_text_is_cut() -> None:
    described = describe_error(ValueError("deadlock " + "\N{EURO SIGN}" * 3_000_000))["details"]

    assert described["error"].startswith("deadlock")
    assert described["error"].endswith("[TRUNCATED]")
    for text in (described["error"], described["traceback"], *described["errors"]):
        assert len(text.encode()) <= MAX_STORED_ERROR_BYTES + 20


def test_what_cannot_be_asked_for_its_cause_is_described_all_the_same() -> None:
    described = describe_error(MuteError())["details"]

    assert described["type"] == "MuteError"
    assert described["error_code"] is None


def test_a_cause_that_is_no_exception_is_left_out() -> None:
    error = ValueError("x")
    error.cause = "a text"  # type: ignore[attr-defined]
    error.error_code = object()  # type: ignore[attr-defined]

    assert describe_error(error)["details"]["errors"] == ["ValueError: x"]


def test_causes_that_lead_in_a_circle_end() -> None:
    first, second = PermanentError("first"), PermanentError("second")
    first.cause, second.cause = second, first
    caused(first, second)
    caused(second, first)

    assert str(first) == "first caused by: second"
    assert describe_error(first)["details"]["errors"] == [
        "PermanentError: first caused by: second",
        "PermanentError: second caused by: first",
    ]


# ---------------------------------------------------------------------------------------------- transient


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (TransientError("x"), True),
        (PermanentError("x"), False),
        (ValueError("x"), False),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (socket.gaierror(), True),
        (OSError(errno.ECONNREFUSED, "x"), True),
        (OSError(errno.ENOENT, "x"), False),
        (URLError("x"), True),
        (HTTPError("u", 404, "x", None, None), False),  # type: ignore[arg-type]
        (HTTPError("u", 503, "x", None, None), True),  # type: ignore[arg-type]
        (HTTPError("u", "odd", "x", None, None), True),  # type: ignore[arg-type]
        (caused(ValueError("x"), TransientError("y")), True),
        (caused(PermanentError("x"), TransientError("y")), False),
        (TimeoutConnectionRetryError(), False),
        (NotFoundValidationError(), True),
        (ExceptionGroup("g", [TransientError("x"), ConnectionError()]), True),
        (ExceptionGroup("g", [TransientError("x"), ValueError()]), False),
    ],
)
def test_what_is_tried_again(error: BaseException, transient: bool) -> None:
    assert is_transient(error) is transient


def test_marks_are_found_in_causes_and_groups() -> None:
    marks = [TransientError(str(n)) for n in range(3)]
    group = caused(ExceptionGroup("g", marks[:2]), marks[2])

    assert list(transient_marks(caused(ValueError(), group))) == marks


# ------------------------------------------------------------------------------------ delays and timeouts


@pytest.mark.parametrize(("value", "error"), ODD)
def test_a_delay_that_is_none_is_refused_where_it_is_given(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="retry_after of TransientError is a number of seconds"):
        TransientError("busy", retry_after=value)
    with pytest.raises(error, match=r"retry_after of TaskResult\.running is a number of seconds"):
        TaskResult.running(retry_after=value)
    with pytest.raises(error, match=r"timeout of TaskResult\.suspend is a number of seconds"):
        TaskResult.suspend(timeout=value)
    with pytest.raises(error):
        check_seconds(value, "it")


@pytest.mark.parametrize("value", [None, 0, 0.5, 3600, MAX_SECONDS])
def test_a_delay_that_is_one(value: float | None) -> None:
    check_seconds(value, "it")
    assert TransientError("busy", retry_after=value).retry_after == value
    assert TaskResult.running(retry_after=value).retry_after == value


@pytest.mark.parametrize(
    "parts",
    [
        {"status": "SUCCEEDED"},
        {"status": WorkflowStatus.SUCCEEDED, "context": None},
        {"status": WorkflowStatus.SUCCEEDED, "outputs": [1]},
    ],
)
def test_a_result_of_other_parts_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="TaskResult"):
        TaskResult(**parts)


def test_a_result_of_an_exception_holds_its_text() -> None:
    assert TaskResult.terminal(KeyError("b")).context == {"error": "'b'"}
    assert TaskResult.failed_continue(ValueError()).context == {"error": "ValueError"}
