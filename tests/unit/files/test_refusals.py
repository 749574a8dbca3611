"""What is said about YAML and JSON files that cannot be read."""

from __future__ import annotations

import re

import pytest

from stabilize_celery import files
from stabilize_celery.errors import WorkflowFileError
from stabilize_celery.files import load_workflow


def test_every_problem_of_the_form_is_shown_with_its_place(refusal) -> None:
    message = refusal(
        "limit: 3\n"
        "config: {limitConcurrent: 1}\n"
        "stages:\n"
        "  - ref: build\n"
        "    type: shell\n"
        "    contxt: {}\n"
        "  - refId: 5\n"
        "    type: x\n"
        "    tasks: [{nme: a}]\n"
        "    start_time_expiry: 2030-01-01\n"
    )
    assert sorted(message.splitlines()) == [
        (
            "flow.yaml:10:24: stages[1].start_time_expiry: a time is ISO 8601 text with a timezone, such as "
            "2030-01-31T12:00:00Z, not '2030-01-01'"
        ),
        (
            "flow.yaml:1:1: limit: unknown key; known are application, name, context, config, trigger, "
            "start_time_expiry, stages"
        ),
        "flow.yaml:2:27: config.limitConcurrent: it should be a valid boolean, not 1",
        "flow.yaml:6:5: stages[0].contxt: unknown key, did you mean 'context'?",
        "flow.yaml:7:12: stages[1].refId: it should be a valid string, not 5",
        "flow.yaml:9:13: stages[1].tasks[0].type is missing",
        "flow.yaml:9:14: stages[1].tasks[0].nme: unknown key, did you mean 'name'?",
    ]


def test_a_long_list_of_problems_is_cut(refusal) -> None:
    message = refusal("stages: [" + "{}, " * 20 + "]")
    assert len(message.splitlines()) == 11
    assert message.endswith("... and 30 more")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "flow.yaml: the file is empty"),
        ("# nothing", "flow.yaml: the file is empty"),
        ("[1]", "flow.yaml:1:1: a workflow file is a mapping with the key 'stages'"),
        ("name: x", "flow.yaml:1:1: stages is missing"),
        ("stages: []", "flow.yaml:1:9: no_stages: "),
        ("stages:\n- ref: a\n  type: [\n", "flow.yaml:4:1: not YAML: "),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "flow.yaml:4:3: the key 'c' occurs twice"),
        ("a:\n  200: x", "flow.yaml:2:3: a: the key 200 is of type int; keys are text, give '200'"),
        ("a: {? [x] : 1}", "flow.yaml:1:7: not YAML: while constructing a mapping found unhashable key"),
        ("a: .nan", "flow.yaml:1:4: a: nan cannot be stored as JSON; give None"),
        (
            "a: !!python/name:os.system x",
            "flow.yaml:1:4: not YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/",
        ),
        ("a: !!set {x}", "flow.yaml:1:4: a: a value of type set cannot be stored as JSON"),
        (
            "a: !!int x",
            "flow.yaml: a value does not fit its tag: invalid literal for int() with base 10: 'x'",
        ),
        ("a: !!bool x", "flow.yaml: a value does not fit its tag: 'x'"),
        ("a: &a [*a]", "flow.yaml:1:4: a[0]: it contains itself"),
        ("a: {<<: 5}", "flow.yaml:1:9: not YAML: while constructing a mapping expected a mapping"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a", "flow.yaml:4:3: the key '<<' occurs twice"),
        ("a: 1\n---\nb: 1", "flow.yaml:2:1: not YAML: expected a single document"),
        ("a: *b", "flow.yaml:1:4: not YAML: found undefined alias"),
        ("a: \0", "flow.yaml: not YAML: "),
        # PyYAML may stop before us, in words and at a place of its own.
        ("[" * 100_000, "flow.yaml:1:"),
        ("- " * 100_000, "flow.yaml:1:301: nested deeper than 150 levels"),
        (b"\xff\xfe\x00", "flow.yaml: it is not text in UTF-8 (byte 0)"),
    ],
    ids=range(23),
)
def test_yaml_that_is_refused(refusal, text, message) -> None:
    assert refusal(text).startswith(message)


def test_what_the_workflow_is_refused_for_is_shown_at_its_place(refusal) -> None:
    stages = "stages:\n  - {ref: a, type: x}\n  - {ref: ab, type: x, %s}\n"
    assert refusal(stages % "requires: [a, c]").startswith("flow.yaml:3:5: unknown_ref: stage ab requires c")
    assert refusal(stages % "requisiteStageRefIds: ab").startswith("flow.yaml:3:5: self_edge: stage ab")
    assert refusal("stages:\n- {ref: a, type: x}\n- refId: a\n  type: x").startswith(
        "flow.yaml:3:3: duplicate_ref: a occurs more than once"
    )
    assert refusal(stages % "output_reducers: {k: summ}").startswith(
        "flow.yaml:3:5: stage ab: output_reducers"
    )
    condition = "context: {stageEnabled: {type: expression, expression: f()}}"
    assert refusal(stages % condition).startswith(
        "flow.yaml:3:5: stage ab: stageEnabled: not a condition, line 1, column 1"
    )
    circle = (
        "stages:\n - {ref: a, type: x}\n - {ref: b, type: x, requires: c}\n - {ref: c, type: x, requires: b}"
    )
    assert refusal(circle).startswith("flow.yaml:3:4: stages wait for each other in a circle: b -> c -> b")
    assert refusal("context: {_max_jumps: -1}\nstages: [{ref: a, type: x}]").startswith(
        "flow.yaml:1:10: workflow flow"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "flow.json:1:1: Expecting value"),
        ('\t{"stages": 5}', "flow.json:1:13: stages: it should be a valid list"),
        ('{"stages":\n [1,]}', "flow.json:2:5: "),
        ('{"stages": [\n\t{"ref": "a", "tpye": 1}]}', "flow.json:2:2: stages[0].type is missing"),
        ('{"a": 1,\n"b": {"c": 1, "c": 2}}', "flow.json: the key 'c' occurs twice"),
        ('{"a": NaN}', "flow.json:1:7: a: nan cannot be stored as JSON"),
        ('{"a": 1' + "0" * 5000 + "}", "flow.json: "),
        ("[" * 100_000, "flow.json: it is nested too deeply"),
    ],
    ids=range(8),
)
def test_json_that_is_refused(refusal, text, message) -> None:
    assert refusal(text, "flow.json").startswith(message)


def test_the_place_is_right_beside_escapes_that_yaml_does_not_know(refusal) -> None:
    text = '{"stages": [{"ref": "\\ud83d\\ude00\\/", "type": 5}]}'
    column = text.index("5}") + 1
    assert refusal(text, "flow.json").startswith(f"flow.json:1:{column}: stages[0].type: ")


def test_aliases_of_aliases_do_not_explode(refusal) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for number in range(1, 12):
        lines.append(f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]")
    assert "more than 500,000 values" in refusal("\n".join(lines))
    merges = ["a0: &a0 {x: 1}"]
    for number in range(1, 40):
        merges.append(f"a{number}: &a{number} {{<<: [*a{number - 1}, *a{number - 1}]}}")
    # Some releases of PyYAML merge a key that is there only once, and come to an end themselves.
    assert "values" in refusal("\n".join(merges)) or "unknown key" in refusal("\n".join(merges))


def test_a_large_file_is_refused_unread(refusal, monkeypatch) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 100)
    assert refusal("#" * 101) == "flow.yaml: it is larger than 100 bytes"


def test_what_is_no_file(tmp_path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    for name, message in (
        ("gone.yaml", "there is no such file"),
        ("folder.yaml", "it is not a file"),
        ("gone.py", "there is no such file"),
        ("x" * 300 + ".yaml", "it cannot be read: .*too long|there is no such file"),
        ("nul\0.json", "it cannot be read|there is no such file"),
        ("flow.toml", r"a workflow file ends in \.py, \.yaml, \.yml or \.json"),
        ("flow", r"a workflow file ends in"),
    ):
        with pytest.raises(
            WorkflowFileError, match=re.escape(name.replace("\0", "\ufffd")) + ": (" + message + ")"
        ):
            load_workflow(str(tmp_path / name))
