"""The form of workflow files as JSON Schema, for editors and other programs.

``python -m stabilize_celery.files.json_schema`` writes the published copy anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from stabilize_celery.files.schema import SPELLINGS, WorkflowForm

PUBLISHED = Path(__file__).with_name("workflow.schema.json")
#: A date and a time with an offset, as ISO 8601 writes them; the loader knows the calendar as well.
_TIME = r"^[0-9]{4}.{3,6}[^0-9][0-9]{2}.*(Z|[+-][0-9]{2}(:?[0-9]{2}(:?[0-9]{2}(\.[0-9]+)?)?)?)$"


def workflow_schema() -> dict[str, Any]:
    """The JSON Schema of a workflow file.

    What it accepts is of the right form; whether the graph makes sense only the loader knows.
    """
    schema = WorkflowForm.model_json_schema(by_alias=True, mode="validation")
    forms = schema.pop("$defs")
    for form in (schema, *forms.values()):
        _adapt(form)
    for form in forms.values():
        form.pop("title", None)
    schema["title"] = "Workflow of stabilize_celery"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "$defs": forms}


def published_text() -> str:
    """What the file holds that is shipped with the package."""
    return json.dumps(workflow_schema(), indent=2, ensure_ascii=False) + "\n"


def _adapt(form: dict[str, Any]) -> None:
    """Say of a form what its models do before they look at a value."""
    properties: dict[str, Any] = form["properties"]
    description = str(form.get("description", ""))
    form["description"] = " ".join(description.replace("``", "`").split())
    for name, said in properties.items():
        said.pop("title", None)
        if name == "requires":
            _also_text(said, {"type": "array", "items": said.pop("items")})
        elif name == "tasks":
            tasks = said["anyOf"][0]
            tasks["items"] = {"anyOf": [{"type": "string", "minLength": 1}, tasks["items"]]}
        elif name == "start_time_expiry":
            said["anyOf"] = [{"type": "string", "pattern": _TIME}, {"type": "null"}]
    required = [form.pop("required", [])]
    for name in list(properties):
        spellings = (name, *SPELLINGS.get(name, ()))
        if len(spellings) == 1 or (name == "type" and "ref" in properties):
            continue
        for other in spellings[1:]:
            properties[other] = {**properties[name], "description": f"Another spelling of {name}."}
        _at_most_one(form, spellings, name in required[0])
        required[0] = [each for each in required[0] if each != name]
    if required[0]:
        form["required"] = required[0]


def _also_text(said: dict[str, Any], listed: dict[str, Any]) -> None:
    said.pop("type")
    said["anyOf"] = [{"type": "string"}, listed]


def _at_most_one(form: dict[str, Any], spellings: Sequence[str], needed: bool) -> None:
    conditions: list[Any] = form.setdefault("allOf", [])
    if needed:
        conditions.append({"oneOf": [{"required": [name]} for name in spellings]})
        return
    pairs = [{"required": list(pair)} for pair in combinations(spellings, 2)]
    conditions.append({"not": {"anyOf": pairs}})


if __name__ == "__main__":
    PUBLISHED.write_text(published_text(), encoding="utf-8")
