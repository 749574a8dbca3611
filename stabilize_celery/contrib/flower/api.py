"""How an address of the HTTP API is declared, and the handler that answers for all of them.

A :class:`Route` says what an address takes and what it answers; requests are checked against it, answers are made by it,
and :func:`describe` describes it in OpenAPI's words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any

import tornado.web
from pydantic import TypeAdapter
from tornado.ioloop import IOLoop

from stabilize_celery import __version__
from stabilize_celery.contrib.flower.views import GuardedHandler
from stabilize_celery.engine import Stabilize, engine_of
from stabilize_celery.errors import (
    ConfigurationError,
    DeadLetterError,
    InvalidWorkflowError,
    StabilizeError,
    StageNotFoundError,
    StoreError,
    WorkflowNotFoundError,
    WorkflowStateError,
)
from stabilize_celery.models.json import ID_PATTERN, STATUSES, Form, to_json
from stabilize_celery.redaction import redact

Schema = Mapping[str, Any]
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object", "additionalProperties": True}
ID: Schema = {"type": "string", "pattern": ID_PATTERN}
STATUS: Schema = {"type": "string", "enum": STATUSES}
#: The types of a body, in Python and in errors.
_TYPES = {"string": (str, "text"), "boolean": (bool, "true or false"), "object": (dict, "an object")}
#: What an error of the engine means to the client; the first that fits counts.
_MEANINGS: tuple[tuple[type[StabilizeError], HTTPStatus], ...] = (
    (WorkflowNotFoundError, HTTPStatus.NOT_FOUND),
    (StageNotFoundError, HTTPStatus.NOT_FOUND),
    (WorkflowStateError, HTTPStatus.CONFLICT),
    (DeadLetterError, HTTPStatus.CONFLICT),
    (InvalidWorkflowError, HTTPStatus.BAD_REQUEST),
    (StoreError, HTTPStatus.SERVICE_UNAVAILABLE),
    (ConfigurationError, HTTPStatus.SERVICE_UNAVAILABLE),
    (StabilizeError, HTTPStatus.INTERNAL_SERVER_ERROR),
)


def limit(default: int, most: int) -> Schema:
    """The parameter that says how long a page is."""
    return {"type": "integer", "minimum": 1, "maximum": most, "default": default}


@dataclass(frozen=True)
class Request:
    """What is asked, checked against the route."""

    engine: Stabilize
    #: Who asks.
    user: str
    #: The ids in the path.
    ids: Mapping[str, str]
    #: Parameters of the address; ``None`` for those that are not given and have no default.
    query: Mapping[str, Any]
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Route:
    """An address under ``/api/workflows`` for programs, and under ``/workflows/data`` for the page.

    Attributes:
        method: GET or POST.
        path: with the names of ids in braces.
        summary: a sentence for people who read the description of the API.
        answer: the JSON form of the answer.
        call: does it, in a thread; returns what the answer is made of.
        query: the parameters of the address, with their schemas.
        body: the keys of a POST's body, with their schemas.
        required: keys that the body must have.
    """

    method: str
    path: str
    summary: str
    answer: Any
    call: Callable[[Request], Any]
    query: Mapping[str, Schema] = field(default_factory=dict)
    body: Mapping[str, Schema] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    @property
    def ids(self) -> list[str]:
        """The names of the ids in the path."""
        return re.findall(r"\{(\w+)\}", self.path)

    @property
    def pattern(self) -> str:
        """The path as a regular expression."""
        return re.sub(r"\{\w+\}", "([0-9A-Z]{26})", self.path)


class Refused(tornado.web.HTTPError):
    """A request that is answered with an error.

    Args:
        status: of the answer.
        message: for the client.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(status, "%s", message)
        self.message = message


_bad = partial(Refused, HTTPStatus.BAD_REQUEST)


class ApiHandler(GuardedHandler):
    """Answers with JSON, errors too: ``{"error": "..."}``.

    Args:
        route: what the address is for.
        for_programs: under ``/api``, which Flower closes unless it has authentication or is set to be open.
    """

    def initialize(self, route: Route, for_programs: bool = False) -> None:
        """What the route says."""
        self.route = route
        self.for_programs = for_programs

    def prepare(self) -> None:
        """Apply Flower's rule for its own API.

        Raises:
            HTTPError: 401.
        """
        if self.for_programs and not self.has_authentication and not self.unauthenticated_api:
            raise Refused(
                HTTPStatus.UNAUTHORIZED,
                "Flower has no authentication: start it with --basic_auth or --auth, or set "
                "FLOWER_UNAUTHENTICATED_API=true where only you can reach it",
            )

    @tornado.web.authenticated
    async def get(self, *ids: str) -> None:
        """Read."""
        if self.route.method != "GET":
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "this address can only be posted to")
        await self._answer(ids, HTTPStatus.OK)

    @tornado.web.authenticated
    async def post(self, *ids: str) -> None:
        """Act, where this Flower may.

        Raises:
            HTTPError: 400 for a body of the wrong form, 403 where nothing may be done.
        """
        if self.route.method != "POST":
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "this address can only be read")
        if why_not := self.why_not_act():
            raise Refused(HTTPStatus.FORBIDDEN, why_not)
        await self._answer(ids, HTTPStatus.ACCEPTED)

    async def _answer(self, ids: Sequence[str], status: HTTPStatus) -> None:
        query = {
            name: _parameter(name, self.get_query_argument(name, None), schema)
            for name, schema in self.route.query.items()
        }
        body = _body(self.request.body, self.route) if self.route.method == "POST" else {}
        user, named = self.actor, dict(zip(self.route.ids, ids, strict=True))

        def work() -> Any:
            engine = engine_of(self.capp)
            found = self.route.call(Request(engine, user, named, query, body))
            hide = partial(redact, keys=engine.settings.redact_keys)
            return to_json(self.route.answer, found, engine.store.now(), hide)

        try:
            made = await IOLoop.current().run_in_executor(None, work)
        except StabilizeError as error:
            meaning = next(status for kind, status in _MEANINGS if isinstance(error, kind))
            raise Refused(meaning, str(error)) from error
        self.set_status(status)
        self.write_json(made)

    def write_error(self, status_code: int, **known: Any) -> None:
        """Say what is wrong, as JSON."""
        error = known.get("exc_info", (None, None))[1]
        message = error.message if isinstance(error, Refused) else getattr(error, "log_message", None)
        if status_code == HTTPStatus.UNAUTHORIZED and self.application.options.basic_auth:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.write_json({"error": message or HTTPStatus(status_code).phrase})
        self.finish()

    def write_json(self, value: Any) -> None:
        """Answer with JSON."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.write(json.dumps(value, separators=(",", ":")))


def _parameter(name: str, text: str | None, schema: Schema) -> Any:
    """A parameter of the address; an empty one counts as none."""
    if not text:
        return schema.get("default")
    if "enum" in schema and text not in schema["enum"]:
        raise _bad(f"there is no {name} {text[:50]!r}; there are {', '.join(schema['enum'])}")
    if schema["type"] != "integer":
        return text
    most = schema["maximum"]
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or not 1 <= int(text) <= most:
        raise _bad(f"{name} must be a number from 1 to {most}, not {text[:50]!r}")
    return int(text)


def _body(data: bytes, route: Route) -> dict[str, Any]:
    """The body, a JSON object of the route's form; no body is an empty one."""
    try:
        body = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        raise _bad("the body must be JSON") from None
    if not isinstance(body, dict):
        raise _bad("the body must be a JSON object")
    if missing := [name for name in route.required if not body.get(name)]:
        raise _bad(f"the body must have {' and '.join(missing)}")
    if unknown := [name for name in body if name not in route.body]:
        raise _bad(f"the body must not have {', '.join(unknown)[:200]}")
    for name, value in body.items():
        kind, text = _TYPES[route.body[name]["type"]]
        if not isinstance(value, kind):
            raise _bad(f"{name} must be {text}")
    return body


# ---------------------------------------------------------------------- the description

_REF = "#/components/schemas/{model}"
_TOKEN = [
    {"name": "X-XSRFToken", "in": "header", "required": True, "schema": TEXT},
    {"name": "_xsrf", "in": "cookie", "required": True, "schema": TEXT},
]


class Error(Form):
    """The answer to a request that is refused or fails."""

    error: str


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
