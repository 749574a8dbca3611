"""The JSON Schema of workflow files accepts the form that the loader accepts, and no other."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from stabilize_celery.file_form import WorkflowForm
from stabilize_celery.files import workflow_schema, workflow_to_dict
from tests.property.test_loader_properties import workflows

SCHEMA = Draft202012Validator(workflow_schema())


def loader_accepts(data: Any) -> bool:
    try:
        WorkflowForm.model_validate(data)
    except ValidationError:
        return False
    return True


KEYS = [
    "ref",
    "refId",
    "ref_id",
    "type",
    "implementingClass",
    "implementing_class",
    "name",
    "requires",
    "requisiteStageRefIds",
    "context",
    "tasks",
    "output_reducers",
    "outputReducers",
    "start_time_expiry",
    "startTimeExpiry",
    "application",
    "config",
    "limits",
    "trigger",
    "stages",
    "id",
    "pipeline_config_id",
    "limitConcurrent",
    "limit_concurrent",
    "maxConcurrentExecutions",
    "keepWaitingPipelines",
    "$schema",
    "user",
    "parameters",
    "artifacts",
    "payload",
    "other",
]
TIMES = [
    "2030-01-31T12:00:00Z",
    "2030-01-31 12:00:00.5+05:30",
    "20300131T120000-0500",
    "2030-W05-4T12+01",
    "2030-01-31T12:00:00",
    "2030-01-31",
    "soon",
]
# Whole floats are left out: to JSON Schema 1.0 is an integer.
SCALARS = (
    st.none() | st.booleans() | st.integers(-2, 9) | st.just(0.5) | st.sampled_from(["", "a", "b", *TIMES])
)
# Keys that mostly fit where they stand, so that a good part of what is made is nearly right.
STAGE = st.fixed_dictionaries(
    {"type": st.just("x") | SCALARS},
    optional={
        key: SCALARS
        | st.lists(SCALARS, max_size=2)
        | st.dictionaries(st.sampled_from("ab"), SCALARS, max_size=2)
        for key in KEYS[:16]
        if key != "type"
    },
) | st.fixed_dictionaries(
    {"ref": st.just("a"), "type": st.just("x")},
    optional={
        "requires": st.just("b") | st.lists(st.sampled_from("ab") | SCALARS, max_size=2),
        "start_time_expiry": st.sampled_from(TIMES),
        "tasks": st.lists(
            st.just("x")
            | st.fixed_dictionaries(
                {},
                optional={"type": st.just("x") | SCALARS, "implementingClass": st.just("x"), "name": SCALARS},
            ),
            max_size=2,
        ),
    },
)
CONFIG = st.none() | st.dictionaries(st.sampled_from(KEYS[18:26]), SCALARS, max_size=3)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=10,
)
FILES = st.fixed_dictionaries(
    {"stages": st.lists(STAGE, max_size=3)},
    optional={
        "config": CONFIG,
        "limits": CONFIG,
        "context": ANYTHING,
        "name": SCALARS,
        "$schema": SCALARS,
        "trigger": st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=2),
    },
)


@settings(deadline=None, max_examples=300)
@given(FILES | st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=4))
def test_both_accept_the_same(data: dict[str, Any]) -> None:
    said = [error.message for error in SCHEMA.iter_errors(data)]
    assert (not said) == loader_accepts(data), said


@settings(deadline=None, max_examples=30)
@given(workflows())
def test_whatever_is_written_fits_the_schema(workflow: Any) -> None:
    SCHEMA.validate(workflow_to_dict(workflow))
