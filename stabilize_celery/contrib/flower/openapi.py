"""The OpenAPI description of the HTTP API, made from its routes and the forms of their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from stabilize_celery import __version__
from stabilize_celery.contrib.flower.api import ID, TEXT, Route
from stabilize_celery.models.json import Form, Id

_REF = "#/components/schemas/{model}"
_TOKEN = [
    {"name": "X-XSRFToken", "in": "header", "required": True, "schema": TEXT},
    {"name": "_xsrf", "in": "cookie", "required": True, "schema": TEXT},
]


class Error(Form):
    """The answer to a request that is refused or fails."""

    error: str


class Accepted(Form):
    """The answer to a control: its handler will carry it out."""

    accepted: str
    workflow_id: Id


class LetterAccepted(Form):
    """The answer to an action on a dead letter."""

    accepted: str
    letter_id: Id
    done: str | None


def describe(routes: Sequence[Route], base: str = "") -> dict[str, Any]:
    """The OpenAPI 3.1 description.

    Args:
        routes: the addresses.
        base: what Flower puts before its addresses (``--url_prefix``).
    """
    forms = {id(form): form for form in (Error, *(route.answer for route in routes))}
    inputs: Any = [(key, "serialization", TypeAdapter(form)) for key, form in forms.items()]
    answers, defined = TypeAdapter.json_schemas(inputs, ref_template=_REF)
    schemas = {key: schema for (key, _mode), schema in answers.items()}
    paths: dict[str, Any] = {}
    for route in routes:
        address = paths.setdefault("/api/workflows" + route.path, {})
        address[route.method.lower()] = _operation(route, schemas[id(route.answer)], schemas[id(Error)])
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
            "schemas": defined["$defs"],
        },
    }


def _operation(route: Route, answer: Any, problem: Any) -> dict[str, Any]:
    parameters = [{"name": name, "in": "path", "required": True, "schema": ID} for name in route.ids]
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in route.query.items()
    ]
    described: dict[str, Any] = {
        "summary": route.summary,
        "parameters": parameters,
        "responses": {"default": _response("What is wrong", problem)},
    }
    if route.method == "GET":
        described["responses"]["200"] = _response(route.summary, answer)
        return described
    parameters += _TOKEN
    described["responses"]["202"] = _response("The engine has taken it on", answer)
    body = {
        "type": "object",
        "properties": dict(route.body),
        "required": list(route.required),
        "additionalProperties": False,
    }
    content = {"application/json": {"schema": body}}
    described["requestBody"] = {"required": bool(route.required), "content": content}
    return described


def _response(about: str, schema: Any) -> dict[str, Any]:
    return {"description": about, "content": {"application/json": {"schema": schema}}}
