from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from stabilize_celery import StageExecution, Workflow
from stabilize_celery.canvas.references import UnresolvedReferenceError, literal, resolve, stored
from stabilize_celery.errors import InvalidWorkflowError

OUTPUTS = {"charge": {"charge_id": "ch_1", "amount": 7, "lines": [1, 2]}, "pay-in": {"ok": True}}


def total(stage: StageExecution) -> int:
    return int(stage.context["amount"]) * 2


class Holder:
    @staticmethod
    def inside(stage: StageExecution) -> str:
        return stage.ref_id


def resolved(value: Any, **context: Any) -> Any:
    stage = StageExecution(ref_id="ship", context={"args": ["x"], **context})
    return resolve(
        stored(value, "args"),
        stage,
        lambda refs: {r: OUTPUTS[r] for r in refs if r in OUTPUTS},
        "stage ship: args",
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{{ charge.amount }}", 7),
        (" {{charge.lines}} ", [1, 2]),
        ("{{ charge['lines'][1] }}", 2),
        ("{{ charge }}", OUTPUTS["charge"]),
        ("{{ amount }}", 5),
        ("{{ stages['pay-in'].ok }}", True),
        ("{{ 'a' if amount > 3 else 'b' }}", "a"),
        ("for {{ charge.charge_id }}: {{ charge.lines }}, {{ amount }}", "for ch_1: [1, 2], 5"),
        ("{{ charge.amount }}{{ amount }}", "75"),
        ({"a": ["{{ charge.amount }}", {"b": "{{amount}}"}]}, {"a": [7, {"b": 5}]}),
        (("{{ amount }}", 1), [5, 1]),
        (literal("{{ amount }}"), "{{ amount }}"),
        ("plain } { text", "plain } { text"),
        (None, None),
        (total, 10),
        ([Holder.inside], ["ship"]),
    ],
)
def test_what_is_put_in(value: Any, expected: Any) -> None:
    assert resolved(value, amount=5) == expected


def test_what_was_put_in_is_not_looked_into() -> None:
    assert resolved("{{ text }}", text="{{ charge.amount }}") == "{{ charge.amount }}"
    assert resolved("see {{ text }}", text="{{ charge.amount }}") == "see {{ charge.amount }}"


def test_a_stages_keys_come_before_a_key_of_its_name() -> None:
    assert resolved("{{ charge.amount }}", charge={"amount": 1}) == 7
    assert resolved("{{ charge }}", charge="seen") == "seen"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{{ chrage.amount }}", r"stage ship: args: there is no 'chrage'"),
        (
            "{{ charge.amuont }}",
            r"stage ship: args: there is no 'amuont' in stage charge.*did you mean 'amount'",
        ),
        (["a", {"b": "{{ gone }}"}], r"stage ship: args\[1\]\['b'\]: there is no 'gone'"),
        ("{{ args }}", "there is no 'args'"),
        ("{{ amount.x }}", "has the type int"),
    ],
)
def test_unknown_names(value: Any, message: str) -> None:
    with pytest.raises(UnresolvedReferenceError, match=message):
        resolved(value, amount=5)


def test_functions_must_be_importable() -> None:
    def nested(stage: StageExecution) -> None: ...

    for function in (nested, lambda stage: 1):
        with pytest.raises(InvalidWorkflowError, match=r"args\[0\].*cannot be imported by a worker"):
            stored([function], "args")


def test_templates_are_read_when_the_stage_is_made() -> None:
    with pytest.raises(InvalidWorkflowError, match="is not allowed"):
        stored(["{{ open('x') }}"], "args")


APP = Celery("references", set_as_current=False)


@APP.task(name="ref.send")
def send(*args: Any, **kwargs: Any) -> None: ...


def stage(ref: str, *args: Any, after: tuple[str, ...] = (), **context: Any) -> StageExecution:
    return StageExecution.celery(ref, send.s(*args), requires=after, context=context)


def test_only_stages_before_it_can_be_referred_to() -> None:
    with pytest.raises(
        InvalidWorkflowError, match="stage b refers to stage a, which is not before it; add 'a'"
    ):
        Workflow.create("x", "y", [stage("a"), stage("b", "{{ a.result }}")])
    chain = [stage("a"), stage("b", after=("a",)), stage("c", "{{ a.result }}", after=("b",))]
    assert Workflow.create("x", "y", chain)
    own = [stage("a"), stage("b", "{{ a.b }}", a={"b": 1})]
    assert Workflow.create("x", "y", own)


def test_what_a_signature_becomes() -> None:
    sig = send.s(1, to="kim").set(queue="mail", priority=5, expires=60, task_id="gone")
    made = StageExecution.celery("send", sig, context={"failPipeline": False})
    assert made.context == {
        "task": "ref.send",
        "args": [1],
        "kwargs": {"to": "kim"},
        "queue": "mail",
        "priority": 5,
        "expires": 60,
        "failPipeline": False,
    }
    assert [task.implementing_class for task in made.tasks] == ["celery"]


@pytest.mark.parametrize(
    ("sig", "message"),
    [
        (send.s(1) | send.s(2), "a chain is more than one task.*from_canvas"),
        ("ref.send", "a Celery signature is wanted"),
        (send.s().set(exchnage="x"), "cannot have the option exchnage"),
    ],
)
def test_what_is_no_stage(sig: Any, message: str) -> None:
    with pytest.raises(InvalidWorkflowError, match=message):
        StageExecution.celery("a", sig)
