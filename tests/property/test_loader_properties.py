"""What a workflow file says survives being written and read."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stabilize_celery.errors import WorkflowFileError
from stabilize_celery.files import load_workflow, workflow_to_dict
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.workflow import Trigger, Workflow

# Names go into text columns and YAML has no escapes for some characters; values may be anything JSON holds.
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
REFS = WORDS.filter(str.strip)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["no", "1e5", "2024-01-01", "12:30", "0x1", "~", "<<", "=", "*a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CONTEXTS = st.dictionaries(
    WORDS.filter(lambda key: key not in ("stageEnabled", "_max_jumps")), VALUES, max_size=3
)
TIMES = st.none() | st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]))
TASKS = st.none() | st.lists(st.tuples(WORDS, WORDS), max_size=3)


@st.composite
def workflows(draw) -> Workflow:
    refs = draw(st.lists(REFS, unique=True, min_size=1, max_size=5))
    stages = []
    for index, ref in enumerate(refs):
        kind, name, tasks = draw(WORDS), draw(WORDS | st.just(ref)), draw(TASKS)
        stages.append(
            StageExecution(
                ref_id=ref,
                type=kind,
                name=name,
                context=draw(CONTEXTS),
                requisite_stage_ref_ids=draw(st.sets(st.sampled_from(refs[:index]))) if index else set(),
                tasks=[TaskExecution.create(n, k) for n, k in ([(name, kind)] if tasks is None else tasks)],
                output_reducers=draw(st.dictionaries(WORDS, st.sampled_from(["sum", "last"]), max_size=2)),
                start_time_expiry=draw(TIMES),
            )
        )
    config = {
        "id": draw(WORDS),
        "limitConcurrent": draw(st.booleans()),
        "maxConcurrentExecutions": draw(st.integers(0, 5)),
        "keepWaitingPipelines": draw(st.booleans()),
    }
    return Workflow.create(
        draw(WORDS),
        draw(WORDS),
        stages,
        trigger=Trigger(
            draw(WORDS), draw(WORDS), draw(CONTEXTS), draw(st.lists(CONTEXTS, max_size=2)), draw(CONTEXTS)
        ),
        context=draw(CONTEXTS),
        config=draw(st.none() | st.just(config)),
        start_time_expiry=draw(TIMES),
    )


def definition(workflow: Workflow) -> dict[str, Any]:
    """What makes two workflows the same to their users."""
    return {
        "workflow": (
            workflow.application,
            workflow.name,
            workflow.context,
            workflow.trigger,
            workflow.start_time_expiry,
            workflow.pipeline_config_id,
            workflow.limit,
            workflow.max_concurrent_executions,
            workflow.keep_waiting_pipelines,
        ),
        "stages": [
            (
                stage.ref_id,
                stage.type,
                stage.name,
                stage.context,
                stage.requisite_stage_ref_ids,
                [(t.name, t.implementing_class, t.stage_start, t.stage_end) for t in stage.tasks],
                stage.output_reducers,
                stage.start_time_expiry,
                stage.rank,
            )
            for stage in workflow.stages
        ],
    }


def written_and_read(name: str, text: str) -> Workflow:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(text.encode())
        return load_workflow(path)


@settings(deadline=None)
@given(workflows(), st.booleans())
def test_a_definition_survives_json(workflow: Workflow, ascii_only: bool) -> None:
    text = json.dumps(workflow_to_dict(workflow), ensure_ascii=ascii_only)
    with contextlib.suppress(UnicodeEncodeError):  # half of a surrogate pair only exists escaped
        again = written_and_read("flow.json", text)
        assert definition(again) == definition(workflow)
        assert workflow_to_dict(again) == workflow_to_dict(workflow)


@settings(deadline=None)
@given(workflows(), st.booleans())
def test_a_definition_survives_yaml(workflow: Workflow, flow_style: bool) -> None:
    text = yaml.safe_dump(workflow_to_dict(workflow), default_flow_style=flow_style, sort_keys=False)
    again = written_and_read("flow.yaml", text)
    assert definition(again) == definition(workflow)


@settings(deadline=None)
@given(
    st.binary(max_size=60)
    | st.text("ab01:-[]{}*&!|>'\"# \n,?<=.~\\u\t", max_size=60).map(str.encode)
    | VALUES.map(lambda value: json.dumps({"stages": value}).encode()),
    st.sampled_from(["flow.yaml", "flow.json"]),
)
def test_whatever_a_file_holds_there_is_one_kind_of_error(content: bytes, name: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        with contextlib.suppress(WorkflowFileError):
            load_workflow(path)
