"""The JSON Schema says of files what the loader says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from stabilize_celery.cli import main
from stabilize_celery.files import load_workflow, workflow_schema

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = Draft202012Validator(workflow_schema())


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(workflow_schema())


def test_the_command_prints_it() -> None:
    result = CliRunner().invoke(main, ["schema"])
    assert (result.exit_code, json.loads(result.stdout)) == (0, workflow_schema())


def test_a_file_may_name_its_schema(tmp_path: Path) -> None:
    said = {"$schema": "./workflow.schema.json", "stages": [{"ref": "a", "type": "noop"}]}
    (tmp_path / "flow.json").write_text(json.dumps(said))
    assert load_workflow(tmp_path / "flow.json").stages[0].ref_id == "a"
    assert SCHEMA.is_valid(said)


@pytest.mark.parametrize(
    ("stage", "valid"),
    [
        ({"ref": "a", "type": "x"}, True),
        ({"refId": "a", "type": "x", "requires": "b"}, True),
        ({"ref": "a", "type": "x", "requisite_stage_ref_ids": ["b"], "tasks": ["x", {"type": "y"}]}, True),
        ({"ref": "a", "type": "x", "startTimeExpiry": "2030-01-31T12:00:00Z"}, True),
        ({"ref": "a", "refId": "a", "type": "x"}, False),
        ({"ref": "a", "implementingClass": "x"}, False),
        ({"type": "x"}, False),
        ({"ref": "", "type": "x"}, False),
        ({"ref": "a", "type": "x", "contxt": {}}, False),
        ({"ref": "a", "type": "x", "requires": [1]}, False),
        ({"ref": "a", "type": "x", "tasks": [""]}, False),
        ({"ref": "a", "type": "x", "start_time_expiry": "2030-01-31T12:00:00"}, False),
        ({"ref": "a", "type": "x", "start_time_expiry": "2030-01-31"}, False),
    ],
)
def test_what_it_accepts(stage: dict[str, object], valid: bool) -> None:
    assert SCHEMA.is_valid({"stages": [stage]}) is valid
