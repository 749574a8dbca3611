"""Rows of the messages table that somebody edited: a message, or one of two errors."""

# ruff: noqa: PT017
from __future__ import annotations

from dataclasses import fields
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from stabilize_celery.errors import InvalidMessageError, UnknownMessageError
from stabilize_celery.messages import ENVELOPE_FIELDS, MESSAGE_TYPES, decode, payload_of
from stabilize_celery.persistence.tables import dumps
from tests.fuzz.hostile import JSON, TEXT, cases, nested

FIELDS = sorted({f.name for cls in MESSAGE_TYPES.values() for f in fields(cls)})


@cases(1500)
@given(
    st.sampled_from(list(MESSAGE_TYPES)) | TEXT | JSON,
    st.dictionaries(st.sampled_from(ENVELOPE_FIELDS), JSON)
    | st.just(dict.fromkeys(ENVELOPE_FIELDS, "x") | {"generation": 0}),
    st.dictionaries(st.sampled_from(FIELDS) | TEXT, JSON, max_size=3) | JSON,
    st.integers(-1, 3) | JSON,
)
@example("StartStages", {"workflow_id": "w"}, {"stages": [["only an id"], "text", []]}, 1)
@example("SignalStage", {"workflow_id": "w", "stage_id": "s"}, {"signal_data": nested(199, "dict")}, 1)
@example(["StartStage"], {}, {}, 1)
@example("StartStage", {}, {}, "newest")
def test_whatever_is_in_a_row_there_are_two_kinds_of_error(
    name: Any, envelope: dict[str, Any], payload: Any, version: Any
) -> None:
    try:
        message = decode(name, envelope, payload, version)
    except (InvalidMessageError, UnknownMessageError) as error:
        assert str(error)
        return
    try:
        written = dumps(payload_of(message))
    except (ValueError, TypeError, RecursionError):
        return  # not from a column of JSON
    assert written


@cases(200)
@given(JSON)
def test_the_stages_of_a_fan_out_have_the_form_their_handler_relies_on(stages: Any) -> None:
    try:
        message = decode("StartStages", {"workflow_id": "w"}, {"stages": stages})
    except InvalidMessageError:
        return
    for stage_id, generation in message.stages:  # type: ignore[attr-defined]
        assert isinstance(stage_id, str)
        assert isinstance(generation, int)
