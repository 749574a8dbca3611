"""The description of the HTTP interface, in OpenAPI's words."""

from __future__ import annotations

from typing import Any

from stabilize_celery import __version__
from stabilize_celery.contrib.flower.actions import _TYPES, ACTIONS, LETTER_ACTIONS
from stabilize_celery.contrib.flower.data import DataHandler
from stabilize_celery.models.status import WorkflowStatus

_ID = {"type": "string", "pattern": "^[0-9A-Z]{26}$"}
_TIME = {"type": ["string", "null"], "format": "date-time"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_STATUS = {"type": "string", "enum": [status.name for status in WorkflowStatus]}
_ANY_OBJECT = {"type": "object", "additionalProperties": True}
_JSON_TYPES = {str: {"type": "string"}, bool: {"type": "boolean"}, dict: _ANY_OBJECT}


class DescriptionHandler(DataHandler):
    """Answers with the description."""

    def read(self) -> Any:
        return description(self.reverse_url("workflows").removesuffix("/workflows"))


def description(base: str = "") -> dict[str, Any]:
    """The OpenAPI 3.1 description.

    Args:
        base: what Flower puts before its addresses (``--url_prefix``).
    """
    one, history = "/api/workflows/{workflow_id}", "/api/workflows/{workflow_id}/history"
    paths: dict[str, Any] = {
        "/api/workflows": _reads(
            "Workflows, newest first", "WorkflowPage", *_FILTER, _query("before", _ID), _LIMIT
        ),
        "/api/workflows/counts": _reads("How many there are in each status", "Counts", *_FILTER),
        "/api/workflows/waiting": _reads("Configurations with a limit", "Configurations", _LIMIT),
        "/api/workflows/dead-letters": _reads(
            "Messages that were given up", "DeadLetterPage", _query("before", _ID), _LIMIT
        ),
        one: _reads(
            "One workflow with its stages and edges; `since` takes the `mark` of an earlier answer and asks for "
            "what has changed",
            "Graph",
            _WORKFLOW,
            _query("since", {"type": "string"}),
        ),
        history: _reads(
            "Every transition, in order",
            "HistoryPage",
            _WORKFLOW,
            _query("stage", _ID),
            _query("after", _ID),
            _LIMIT,
        ),
        one + "/stages/{stage_id}": _reads(
            "One stage: its context, what it sees and where that comes from, outputs, errors",
            "StageDetail",
            _WORKFLOW,
            {"name": "stage_id", "in": "path", "required": True, "schema": _ID},
        ),
    }
    paths |= {f"{one}/{name}": _acts(name) for name in ACTIONS}
    letter = "/api/workflows/dead-letters/{letter_id}"
    paths |= {
        f"{letter}/{name}": _posts(LETTER_ACTIONS[name][0], "LetterAccepted", _LETTER)
        for name in LETTER_ACTIONS
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Workflows of stabilize_celery",
            "version": __version__,
            "description": (
                "Behind Flower's authentication. A POST must carry the token of Flower's `_xsrf` cookie as the "
                "header `X-XSRFToken`; a program sends any value as both."
            ),
        },
        "servers": [{"url": base or "/"}],
        "security": [{"basic": []}, {"cookie": []}, {}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": "user"},
            },
            "schemas": _SCHEMAS,
        },
    }


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


_WORKFLOW = {"name": "workflow_id", "in": "path", "required": True, "schema": _ID}
_LETTER = {"name": "letter_id", "in": "path", "required": True, "schema": _ID}
_LIMIT = _query("limit", {"type": "integer", "minimum": 1})
_FILTER = (
    _query("application", {"type": "string"}),
    _query("name", {"type": "string"}),
    _query("status", _STATUS),
    _query("search", {"type": "string", "description": "part of a name, beginning or end of an id"}),
)


def _answer(about: str, schema: str) -> dict[str, Any]:
    return {
        "description": about,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }


def _reads(about: str, schema: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "get": {
            "summary": about,
            "parameters": list(parameters),
            "responses": {"200": _answer(about, schema), "default": _answer("What is wrong", "Error")},
        }
    }


def _acts(name: str) -> dict[str, Any]:
    action = ACTIONS[name]
    fields = (*action.required, *action.optional)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {field: _JSON_TYPES[_TYPES[field][0]] for field in fields},
        "required": list(action.required),
        "additionalProperties": False,
    }
    return _posts(action.about, "Accepted", _WORKFLOW, schema)


def _posts(
    about: str, accepted: str, subject: dict[str, Any], schema: dict[str, Any] | None = None
) -> dict[str, Any]:
    body = schema or {"type": "object", "additionalProperties": False}
    return {
        "post": {
            "summary": about,
            "parameters": [
                subject,
                {"name": "X-XSRFToken", "in": "header", "required": True, "schema": {"type": "string"}},
                {"name": "_xsrf", "in": "cookie", "required": True, "schema": {"type": "string"}},
            ],
            "requestBody": {
                "required": bool(body.get("required")),
                "content": {"application/json": {"schema": body}},
            },
            "responses": {
                "202": _answer("The engine has taken it on", accepted),
                "default": _answer("What is wrong", "Error"),
            },
        }
    }


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list_of(schema: Any) -> dict[str, Any]:
    return {"type": "array", "items": schema}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_ID_OR_NULL = {"type": ["string", "null"]}
_NUMBER_OR_NULL = {"type": ["integer", "null"]}
_COUNT = {"type": "integer", "minimum": 0}
_FLAG = {"type": "boolean"}
_TEXT = {"type": "string"}
_OBJECT_OR_NULL = {"type": ["object", "null"]}

_SCHEMAS: dict[str, Any] = {
    "Error": _object(error=_TEXT),
    "Accepted": _object(accepted=_TEXT, workflow_id=_ID),
    "LetterAccepted": _object(accepted=_TEXT, letter_id=_ID, done=_TEXT_OR_NULL),
    "Workflow": _object(
        id=_ID,
        application=_TEXT,
        name=_TEXT,
        status=_STATUS,
        complete=_FLAG,
        created_at=_TIME,
        start_time=_TIME,
        end_time=_TIME,
        now=_TIME,
        pipeline_config_id=_TEXT_OR_NULL,
        canceled_by=_TEXT_OR_NULL,
        cancellation_reason=_TEXT_OR_NULL,
        is_canceled=_FLAG,
        paused_by=_TEXT_OR_NULL,
        started_by=_TEXT_OR_NULL,
        parent_workflow_id=_ID_OR_NULL,
    ),
    "WorkflowPage": _object(workflows=_list_of(_ref("Workflow")), next=_ID_OR_NULL),
    "Counts": _object(
        counts={"type": "object", "additionalProperties": _COUNT},
        more=_list_of(_STATUS),
        applications=_list_of(_TEXT),
    ),
    "Configurations": _object(
        configurations=_list_of(
            _object(
                pipeline_config_id=_TEXT,
                max_concurrent=_NUMBER_OR_NULL,
                keep_waiting=_FLAG,
                taken=_COUNT,
                waiting=_COUNT,
                oldest_waiting=_ID_OR_NULL,
            )
        )
    ),
    "DeadLetterPage": _object(
        dead_letters=_list_of(
            _object(
                id=_ID,
                type=_TEXT,
                label=_TEXT,
                workflow_id=_ID_OR_NULL,
                stage_id=_ID_OR_NULL,
                attempts=_COUNT,
                died_at=_TIME,
                error=_OBJECT_OR_NULL,
            )
        ),
        next=_ID_OR_NULL,
    ),
    "Stage": _object(
        id=_ID,
        ref_id=_TEXT,
        name=_TEXT,
        type=_TEXT,
        status=_STATUS,
        complete=_FLAG,
        parent_id=_ID_OR_NULL,
        phase={"type": ["string", "null"], "enum": ["before", "after", "on_failure", None]},
        generation=_COUNT,
        start_time=_TIME,
        end_time=_TIME,
        attempts=_COUNT,
        error=_TEXT_OR_NULL,
    ),
    "Graph": {
        **_object(mark=_TEXT, changed=_FLAG),
        "properties": {
            "mark": _TEXT,
            "changed": _FLAG,
            "workflow": {"allOf": [_ref("Workflow"), _object(context=_ANY_OBJECT, trigger=_ANY_OBJECT)]},
            "stages": _list_of(_ref("Stage")),
            "edges": _list_of({"type": "array", "items": _ID, "minItems": 2, "maxItems": 2}),
            "synthetic_ids": _list_of(_ID),
            "jumps": _list_of(_ANY_OBJECT),
        },
    },
    "StageDetail": {
        "allOf": [
            _ref("Stage"),
            _object(
                own_context=_ANY_OBJECT,
                sees=_ANY_OBJECT,
                origins={
                    "type": "object",
                    "additionalProperties": _object(
                        kind={"type": "string", "enum": ["own", "parent", "output", "combined"]},
                        stage_id=_ID,
                        stage=_TEXT_OR_NULL,
                    ),
                },
                problem=_TEXT_OR_NULL,
                outputs=_ANY_OBJECT,
                tasks=_list_of(_ANY_OBJECT),
                errors=_list_of(_ANY_OBJECT),
                waits_for=_list_of(_ANY_OBJECT),
                signals=_list_of(_ANY_OBJECT),
            ),
        ]
    },
    "HistoryPage": _object(
        history=_list_of(
            _object(
                id=_ID,
                at=_TIME,
                event=_TEXT,
                stage_id=_ID_OR_NULL,
                task_id=_ID_OR_NULL,
                generation=_COUNT,
                reason=_TEXT_OR_NULL,
                actor=_TEXT_OR_NULL,
                worker=_TEXT_OR_NULL,
                details=_OBJECT_OR_NULL,
                **{"from": _TEXT_OR_NULL, "to": _TEXT_OR_NULL},
            )
        ),
        next=_ID_OR_NULL,
    ),
}
