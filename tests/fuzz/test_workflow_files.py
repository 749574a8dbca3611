"""Workflow files from strangers: a workflow that can be stored and read back, or one kind of error, soon."""

# ruff: noqa: PT017, E501, UP031
from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stabilize_celery import Stabilize
from stabilize_celery.errors import WorkflowFileError
from stabilize_celery.files import load_workflow, workflow_from_dict, workflow_to_dict
from tests.fuzz.hostile import JSON, TEXT, cases, nested

Read = Callable[[str, bytes], None]


@pytest.fixture(scope="module")
def engine() -> Iterator[Stabilize]:
    with Stabilize.embedded(check_types=False) as made:
        yield made


@pytest.fixture(scope="module")
def read(engine: Stabilize, tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Load a file; what loads must be storable, and come back as it was."""
    folder = tmp_path_factory.mktemp("files")

    def load(name: str, content: bytes) -> None:
        path = folder / name
        path.write_bytes(content)
        try:
            workflow = load_workflow(path)
        except WorkflowFileError as error:
            str(error).encode()
            assert str(error).startswith(str(path))
            return
        run = engine.start(workflow)
        assert workflow_to_dict(run.workflow()) == workflow_to_dict(workflow)
        engine.store.delete(run.id)

    return load


SOUP = st.lists(
    st.sampled_from(
        [
            "stages:", "- ref: a", "  type: noop", "\n", "  ", "\t", "- ", ": ", "{", "}", "[", "]", ",", "&a ", "*a", "!!python/",
            "!!binary ", "!!set ", "!!timestamp ", "!x ", "<<: ", "? ", "| ", "> ", "--- ", "...", "%YAML 1.1", "#", "'", '"', "0o7",
            "1:30", ".inf", ".nan", "~", "\x85", "\u2028", "stages: [{ref: a, type: noop}]", "context: ", "requires: ",
        ]
    )
    | TEXT,
    max_size=12,
)  # fmt: skip


@cases(1200)
@given(
    st.binary(max_size=80) | SOUP.map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass")),
    st.booleans(),
)
def test_any_bytes(read: Read, content: bytes, as_json: bool) -> None:
    read("flow.json" if as_json else "flow.yaml", content)


KEYS = st.sampled_from(
    ["ref", "type", "name", "requires", "context", "tasks", "output_reducers", "start_time_expiry", "stages", "trigger", "config",
     "application", "limitConcurrent", "maxConcurrentExecutions", "keepWaitingPipelines", "id", "parameters", "user"]
)  # fmt: skip
STAGE = st.fixed_dictionaries(
    {"ref": st.sampled_from("abc") | TEXT, "type": st.just("noop") | TEXT},
    optional={
        "name": TEXT,
        "requires": st.lists(st.sampled_from("abc") | TEXT, max_size=2) | JSON,
        "context": st.dictionaries(
            TEXT | st.sampled_from(["stageEnabled", "_max_jumps", "timeout"]), JSON, max_size=3
        )
        | JSON,
        "tasks": st.lists(TEXT | st.dictionaries(KEYS, JSON, max_size=2), max_size=2),
        "output_reducers": st.dictionaries(TEXT, st.sampled_from(["sum", "last"]) | TEXT, max_size=2),
        "start_time_expiry": TEXT | JSON,
    },
)
FORM = st.fixed_dictionaries(
    {
        "stages": st.lists(STAGE, max_size=3, unique_by=lambda stage: stage["ref"])
        | st.lists(STAGE, max_size=3)
        | JSON
    },
    optional={
        "application": TEXT,
        "name": TEXT,
        "context": st.dictionaries(TEXT | st.just("_max_jumps"), JSON, max_size=3),
        "config": st.dictionaries(KEYS, JSON, max_size=3) | JSON,
        "trigger": st.dictionaries(KEYS, JSON, max_size=3) | JSON,
        "start_time_expiry": TEXT | JSON,
    },
)
DOCUMENT = FORM | st.dictionaries(KEYS | TEXT, JSON, max_size=4)


@cases(1500)
@pytest.mark.slow
@given(DOCUMENT, st.booleans())
def test_any_data_as_json(read: Read, data: Any, ascii_only: bool) -> None:
    try:
        text = json.dumps(data, ensure_ascii=ascii_only)
    except ValueError:
        return  # an integer with more digits than Python writes
    read("flow.json", text.encode("utf-8", "surrogatepass"))


@cases(400)
@given(DOCUMENT)
def test_any_data_as_yaml(read: Read, data: Any) -> None:
    try:
        text = yaml.dump(data, Dumper=yaml.CSafeDumper)
    except (ValueError, yaml.YAMLError):
        return
    read("flow.yaml", text.encode("utf-8", "surrogatepass"))


@cases(700)
@given(FORM | JSON)
def test_any_data_of_a_program(engine: Stabilize, data: Any) -> None:
    if not isinstance(data, dict):
        data = {"stages": data}
    try:
        workflow = workflow_from_dict(data)
    except WorkflowFileError as error:
        assert str(error)
        return
    run = engine.start(workflow)
    assert workflow_to_dict(run.workflow()) == workflow_to_dict(workflow)
    engine.store.delete(run.id)


@pytest.mark.parametrize(
    "value",
    [10**5000, [10**5000], nested(5000), {"ref": 10**5000}],
    ids=["number", "list", "deep", "mapping"],
)
def test_values_that_cannot_be_shown_are_refused_all_the_same(value: Any) -> None:
    for data in (
        {"stages": value},
        {"stages": [value]},
        {"stages": [{"ref": "a", "type": "noop", "context": {"a": value}}]},
    ):
        with pytest.raises(WorkflowFileError, match="workflow: "):
            workflow_from_dict(data)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k0: 1}\n" + "".join(
    f"b{n}: &b{n} {{<<: [*a, {'*b%d' % (n - 1) if n else '*a'}], k{n}: 1}}\n" for n in range(400)
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        pytest.param("a.yaml", BOMB + "stages: *i", "counted with what aliases repeat", id="billion-laughs"),
        pytest.param("a.yaml", MERGES + "stages: []", "", id="merges-of-merges"),
        pytest.param("a.yaml", "stages: &a [*a]", "contains itself|not YAML", id="contains-itself"),
        pytest.param("a.yaml", "stages: !!python/object/apply:os._exit [3]", "tag", id="python-call"),
        pytest.param("a.yaml", "stages: !!python/name:os.system", "tag", id="python-name"),
        pytest.param("a.yaml", "!!python/object/new:os.system ['true']", "tag", id="python-new"),
        pytest.param("a.yaml", "stages: " + "[" * 100_000, "deep", id="deep-yaml"),
        pytest.param("a.json", '{"stages": ' + "[" * 100_000, "deep", id="deep-json"),
        pytest.param("a.json", '{"stages": ' + '{"a":' * 3000 + "1" + "}" * 3001, "", id="deep-mappings"),
        pytest.param("a.json", '{"stages": [], "stages": []}', "occurs twice", id="duplicate-key"),
        pytest.param("a.yaml", "stages: []\nstages: []", "occurs twice", id="duplicate-yaml-key"),
        pytest.param("a.json", '{"stages": NaN}', "nan cannot be stored as JSON", id="nan"),
        pytest.param("a.json", '{"stages": 1e999}', "", id="infinite"),
        pytest.param("a.json", '{"stages": ' + "9" * 100_000 + "}", "", id="huge-number"),
        pytest.param("a.yaml", "stages: " + "9" * 100_000, "", id="huge-yaml-number"),
        pytest.param("a.yaml", "stages: 0x" + "f" * 1_000_000, "", id="huge-hex-number"),
        pytest.param("a.yaml", "stages: " + "1" * 200_000 + "." , "", id="huge-float"),
        pytest.param("a.yaml", "a: " + "- " * 100_000, "", id="deep-dashes"),
        pytest.param("a.yaml", "? " * 20_000, "", id="deep-keys"),
        pytest.param("a.yaml", "{" * 200 + "}" * 200, "", id="mappings-as-keys"),
        pytest.param("a.yaml", "x" * 6_000_000, "larger than", id="too-large"),
        pytest.param("a.json", json.dumps({"stages": [{"ref": "a", "type": "noop", "requires": ["b"] * 50_000}]}), "", id="many-requires"),
        pytest.param("a.json", json.dumps({"a" * n: 1 for n in range(1, 2000)}), "stages is missing", id="many-unknown-keys"),
        pytest.param("a.yaml", "stages:\n" + "- {ref: a, type: noop}\n" * 20_000, "duplicate_ref", id="many-duplicates"),
    ],
)  # fmt: skip
def test_bombs_are_defused(tmp_path: Path, name: str, content: str, reason: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(WorkflowFileError, match=reason or name) as refused:
        load_workflow(path)
    assert len(str(refused.value)) < 20_000
