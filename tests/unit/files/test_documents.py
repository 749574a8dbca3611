"""What YAML and JSON files can say."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from stabilize_celery.files import workflow_to_dict
from stabilize_celery.models.workflow import Trigger

FULL = """\
application: shop
name: order
context: {order: 42, day: 2024-01-31, at: 12:30, ratio: 1.5, no-value: ~}
config: {id: orders, limitConcurrent: true, maxConcurrentExecutions: 2, keepWaitingPipelines: true}
trigger: {type: cron, user: kim, parameters: {dry: false}, artifacts: [{name: a}], payload: {x: [1]}}
start_time_expiry: 2030-01-31T12:00:00Z
stages:
  - ref: build
    type: shell
    context: &defaults {command: make}
  - ref: join
    name: Join
    type: python
    requires: [build, test]
    tasks: [shell, {type: python, name: Python}]
    output_reducers: {total: sum}
    start_time_expiry: "2030-01-31T12:00:00+01:00"
  - refId: test
    type: deploy
    requisiteStageRefIds: [build]
    context: {<<: *defaults, target: test}
    tasks: []
"""


def test_everything_a_file_can_say(load) -> None:
    workflow = load(FULL)
    assert (workflow.application, workflow.name) == ("shop", "order")
    assert workflow.context == {
        "order": 42,
        "day": "2024-01-31",
        "at": "12:30",
        "ratio": 1.5,
        "no-value": None,
    }
    assert workflow.pipeline_config_id == "orders"
    assert workflow.limit == 2
    assert workflow.keep_waiting_pipelines
    assert workflow.trigger == Trigger("cron", "kim", {"dry": False}, [{"name": "a"}], {"x": [1]})
    assert workflow.start_time_expiry == datetime(2030, 1, 31, 12, tzinfo=UTC)
    build, join, test = workflow.stages
    assert (build.ref_id, build.type, build.name, build.requisite_stage_ref_ids) == (
        "build",
        "shell",
        "build",
        set(),
    )
    assert [(t.name, t.implementing_class, t.stage_start, t.stage_end) for t in build.tasks] == [
        ("build", "shell", True, True)
    ]
    assert (join.name, join.requisite_stage_ref_ids) == ("Join", {"build", "test"})
    assert [(t.name, t.implementing_class) for t in join.tasks] == [("shell", "shell"), ("Python", "python")]
    assert join.output_reducers == {"total": "sum"}
    assert join.start_time_expiry == datetime(2030, 1, 31, 11, tzinfo=UTC)
    assert join.rank == [2, 0]
    assert (test.tasks, test.requisite_stage_ref_ids) == ([], {"build"})
    assert test.context == {"command": "make", "target": "test"}


def test_a_file_of_three_lines(load) -> None:
    workflow = load("stages:\n- ref: a\n  type: noop\n", "hello.yml")
    assert (workflow.application, workflow.name, workflow.trigger) == ("default", "hello", Trigger())
    assert workflow.pipeline_config_id is None


def test_many_values_side_by_side_are_not_deep(load) -> None:
    assert len(load("stages: [" + "{ref: a%s, type: x}, " * 200 % tuple(range(200)) + "]").stages) == 200


def test_one_requirement_needs_no_list(load) -> None:
    workflow = load("stages: [{ref: alpha, type: x}, {ref: b, type: x, requires: alpha}]")
    assert workflow.stages[1].requisite_stage_ref_ids == {"alpha"}


def test_json_says_the_same(load) -> None:
    said = workflow_to_dict(load(FULL))
    again = load("\ufeff" + json.dumps(said, indent="\t"), "order.json")
    assert workflow_to_dict(again) == said


def test_json_keeps_its_own_numbers_and_escapes(load) -> None:
    workflow = load(
        r'{"stages": [{"ref": "a", "type": "x", "context": {"n": 1e5, "s": "\ud83d\ude00\/"}}]}', "a.json"
    )
    assert workflow.stages[0].context == {"n": 100000.0, "s": "\N{GRINNING FACE}/"}


def test_explicit_keys_beat_merged_ones_and_the_first_merged_one_wins(load) -> None:
    workflow = load(
        "context:\n  a: &a {x: 1, y: 1}\n  b: &b {x: 2, y: 2, z: 2}\n  c: {<<: [*a, *b], x: 3}\n"
        "stages: [{ref: s, type: t}]"
    )
    assert workflow.context["c"] == {"x": 3, "y": 1, "z": 2}
