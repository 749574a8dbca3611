"""What can be done to a workflow: one address per action, answered as soon as the engine has taken it on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import tornado.web

from stabilize_celery.contrib.flower.data import DataHandler
from stabilize_celery.engine import Stabilize
from stabilize_celery.persistence import reports

_TYPES: Mapping[str, tuple[type, str]] = {
    "stage_id": (str, "text"),
    "reason": (str, "text"),
    "force": (bool, "true or false"),
    "name": (str, "text"),
    "data": (dict, "an object"),
}


@dataclass(frozen=True)
class Asked:
    """Who asks for what, about which workflow."""

    workflow_id: str
    #: The stage it is about, as the engine's controls name it; empty where it is about the whole workflow.
    ref_id: str
    user: str
    body: Mapping[str, Any]

    @property
    def reason(self) -> str:
        """Why, if they say so."""
        return str(self.body.get("reason", ""))


@dataclass(frozen=True)
class Action:
    """One thing that can be done.

    Attributes:
        about: a sentence for people who read the description of the interface.
        do: does it.
        required: what must be in the body.
        optional: what may be.
    """

    about: str
    do: Callable[[Stabilize, Asked], None]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


ACTIONS: Mapping[str, Action] = {
    "cancel": Action(
        "Cancel everything that has not ended.",
        lambda engine, asked: engine.cancel(
            asked.workflow_id, user=asked.user, reason=asked.reason, force=asked.body.get("force", False)
        ),
        optional=("reason", "force"),
    ),
    "pause": Action(
        "Start nothing more until it is resumed.",
        lambda engine, asked: engine.pause(asked.workflow_id, user=asked.user),
    ),
    "resume": Action(
        "Go on after a pause.",
        lambda engine, asked: engine.resume(asked.workflow_id, user=asked.user),
    ),
    "restart": Action(
        "Run a stage that has ended again, and everything downstream of it.",
        lambda engine, asked: engine.restart_stage(asked.workflow_id, asked.ref_id, user=asked.user),
        required=("stage_id",),
    ),
    "skip": Action(
        "End a stage as SKIPPED; what comes after it goes on.",
        lambda engine, asked: engine.skip_stage(
            asked.workflow_id, asked.ref_id, user=asked.user, reason=asked.reason
        ),
        required=("stage_id",),
        optional=("reason",),
    ),
    "cancel-stage": Action(
        "Cancel one stage; its branch ends with it.",
        lambda engine, asked: engine.cancel_stage(
            asked.workflow_id, asked.ref_id, user=asked.user, reason=asked.reason
        ),
        required=("stage_id",),
        optional=("reason",),
    ),
    "signal": Action(
        "Wake the task of a stage that waits for a signal; kept if it does not wait yet.",
        lambda engine, asked: engine.signal(
            asked.workflow_id, asked.ref_id, asked.body["name"], asked.body.get("data"), user=asked.user
        ),
        required=("stage_id", "name"),
        optional=("data",),
    ),
    "approve": Action(
        "Let an approval stage succeed.",
        lambda engine, asked: engine.approve(
            asked.workflow_id, asked.ref_id, user=asked.user, data=asked.body.get("data")
        ),
        required=("stage_id",),
        optional=("data",),
    ),
    "reject": Action(
        "Let an approval stage fail.",
        lambda engine, asked: engine.reject(
            asked.workflow_id, asked.ref_id, user=asked.user, data=asked.body.get("data")
        ),
        required=("stage_id",),
        optional=("data",),
    ),
}


#: What can be done to a dead letter.
LETTER_ACTIONS: Mapping[str, tuple[str, Callable[[Stabilize, str, str], object]]] = {
    "retry": (
        "Try a message that was given up again; its workflow is revived if it had failed because of it.",
        lambda engine, letter_id, user: engine.retry_dead_letter(letter_id, user=user),
    ),
    "drop": (
        "Forget a message that was given up; its workflow stays as it is.",
        lambda engine, letter_id, user: engine.drop_dead_letter(letter_id, user=user),
    ),
}


class ActingHandler(DataHandler):
    """Answers to POST only, and only where this Flower may act."""

    @tornado.web.authenticated
    async def post(self, *parts: str) -> None:
        """Do it.

        Raises:
            HTTPError: 400 for a body of the wrong form, 403 where nothing may be done.
        """
        why_not = self.why_not_act()
        if why_not:
            self.refuse(HTTPStatus.FORBIDDEN, why_not)
        user, body = self.actor, self.body()
        await self.answer(lambda: self.act(user, body, *parts), HTTPStatus.ACCEPTED)

    def act(self, user: str, body: Mapping[str, Any], *parts: str) -> Any:
        """Do it, in a thread of its own."""
        raise NotImplementedError

    def body(self) -> dict[str, Any]:
        """The body, a JSON object; nothing is an empty one.

        Raises:
            HTTPError: 400.
        """
        try:
            body = json.loads(self.request.body or b"{}")
        except (ValueError, RecursionError):
            self.refuse(HTTPStatus.BAD_REQUEST, "the body must be JSON")
        if not isinstance(body, dict):
            self.refuse(HTTPStatus.BAD_REQUEST, "the body must be a JSON object")
        return body

    def check_body(
        self, body: Mapping[str, Any], required: tuple[str, ...], optional: tuple[str, ...]
    ) -> None:
        """Refuse a body that misses something, or has something of the wrong type or of no meaning.

        Raises:
            HTTPError: 400.
        """
        missing = [name for name in required if not body.get(name)]
        if missing:
            self.refuse(HTTPStatus.BAD_REQUEST, f"the body must have {' and '.join(missing)}")
        unknown = [name for name in body if name not in (*required, *optional)]
        if unknown:
            self.refuse(HTTPStatus.BAD_REQUEST, f"the body must not have {', '.join(unknown)[:200]}")
        for name, value in body.items():
            kind, called = _TYPES[name]
            if not isinstance(value, kind):
                self.refuse(HTTPStatus.BAD_REQUEST, f"{name} must be {called}")


class ActionHandler(ActingHandler):
    """Does one of :data:`ACTIONS` to a workflow."""

    def act(self, user: str, body: Mapping[str, Any], *parts: str) -> Any:
        workflow_id, name = parts
        action = ACTIONS[name]
        self.check_body(body, action.required, action.optional)
        ref_id = ""
        if "stage_id" in body:
            ref_id = reports.ref_id_of(self.engine.store, workflow_id, body["stage_id"])
        action.do(self.engine, Asked(workflow_id, ref_id, user, body))
        return {"accepted": name, "workflow_id": workflow_id}


class LetterHandler(ActingHandler):
    """Does one of :data:`LETTER_ACTIONS` to a dead letter."""

    def act(self, user: str, body: Mapping[str, Any], *parts: str) -> Any:
        letter_id, name = parts
        self.check_body(body, (), ())
        done = LETTER_ACTIONS[name][1](self.engine, letter_id, user)
        return {"accepted": name, "letter_id": letter_id, "done": done if isinstance(done, str) else None}
