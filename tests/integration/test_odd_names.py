"""Names, keys and ids of unusual length or characters: SQLite and PostgreSQL take the same, and refuse the rest by name."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stabilize_celery import Stabilize, StageExecution, TaskExecution, Workflow, WorkflowRun
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.errors import DeadLetterError, InvalidWorkflowError, WorkflowNotFoundError
from stabilize_celery.models.validation import MOST_BYTES
from tests.conformance.harness import stage

_random = random.Random(1)
#: PostgreSQL compresses what repeats itself, so these do not.
ODD = [chr(_random.randrange(0x4E00, 0x9FA5)) for _ in range(9000)]
NUL, HALF = "a\0b", "a\ud800b"


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Iterator[Stabilize]:
    url = "sqlite://" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    with Stabilize.embedded(url, concurrency=1) as made:
        yield made


def text_of(size: int) -> str:
    """So many bytes."""
    return "".join(ODD)[: size // 3] + "x" * (size % 3)


def made(**parts: Any) -> Workflow:
    """A workflow of which some parts are others."""
    config = parts.pop("config", None)
    dedup_key, ids = parts.pop("dedup_key", None), parts.pop("ids", (None, None, None))
    ref = parts.pop("ref_id", "s")
    one = stage(ref, "noop")
    given = {"application": "tests", "name": "odd", **parts}
    workflow = Workflow.create(given["application"], given["name"], [one], config=config)
    workflow.dedup_key = dedup_key
    for each, own in zip((workflow, one, one.tasks[0]), ids, strict=True):
        each.id = own if own is not None else each.id
    return workflow


def ended(engine: Stabilize, run: WorkflowRun) -> S:
    engine.processor.drain(timeout=20, until=run.ready)
    assert run.history()
    return run.status


PARTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "application": lambda text: {"application": text},
    "name": lambda text: {"name": text},
    "dedup_key": lambda text: {"dedup_key": text, "application": text_of(MOST_BYTES["application"])},
    "pipeline_config_id": lambda text: {"config": {"id": text, "limitConcurrent": True}},
    "ref_id": lambda text: {"ref_id": text},
}


@pytest.mark.parametrize("part", PARTS)
def test_as_long_as_a_key_may_be(engine: Stabilize, part: str) -> None:
    longest = text_of(MOST_BYTES[part])
    assert ended(engine, engine.start(made(**PARTS[part](longest)))) is S.SUCCEEDED
    for wrong in (longest + "x", NUL, HALF):
        with pytest.raises(InvalidWorkflowError, match=part):
            engine.start(made(**PARTS[part](wrong)))
    assert len(engine.find()) == 1


def test_the_longest_application_and_name_make_a_config_id(engine: Stabilize) -> None:
    longest = {part: text_of(MOST_BYTES[part]) for part in ("application", "name")}
    workflow = made(**longest, config={"limitConcurrent": True})
    assert ended(engine, engine.start(workflow)) is S.SUCCEEDED


@pytest.mark.parametrize("which", range(3), ids=["workflow", "stage", "task"])
def test_ids(engine: Stabilize, which: int) -> None:
    def ids(text: str) -> tuple[str | None, ...]:
        return tuple(text if n == which else None for n in range(3))

    for right in ("order-1", ODD[0] * 26, "x"):
        assert ended(engine, engine.start(made(ids=ids(right)))) is S.SUCCEEDED
    for wrong in ("", "x" * 27, "6f0a3a1c-7f8e-4f0e-9d9a-0123456789ab", NUL, HALF, 7):
        with pytest.raises(InvalidWorkflowError, match="id"):
            engine.start(made(ids=ids(wrong)))  # type: ignore[arg-type]


def test_an_empty_dedup_key(engine: Stabilize) -> None:
    for start in (
        lambda: engine.start(made(), dedup_key=""),
        lambda: engine.start(made(dedup_key="")),
        lambda: engine.run(made(), dedup_key=""),
    ):
        with pytest.raises(InvalidWorkflowError, match="dedup_key is empty"):
            start()
    assert engine.find() == []


def test_what_is_no_key_may_be_long(engine: Stabilize) -> None:
    text = "".join(ODD)
    long = StageExecution(ref_id="s", type="noop", name=text, tasks=[TaskExecution.create(text, "noop")])
    run = engine.start(Workflow.create("tests", "odd", [long, StageExecution.single("ask", "approval")]))
    run.signal("ask", text, {"k": text})
    run.approve("ask", user=text)
    assert ended(engine, run) is S.SUCCEEDED
    other = engine.start(Workflow.create("tests", "odd", [StageExecution.single("ask", "approval")]))
    other.cancel(reason=text, user=text)
    assert ended(engine, other) is S.CANCELED


@pytest.mark.parametrize("text", [NUL, HALF, "", "".join(ODD)], ids=["NUL", "half", "empty", "long"])
def test_looking_for_what_cannot_be(engine: Stabilize, text: str) -> None:
    engine.start(made())
    with pytest.raises(WorkflowNotFoundError):
        engine.get(text)
    with pytest.raises(WorkflowNotFoundError):
        engine.audit(text)
    assert engine.find(application=text) == engine.find(name=text) == []
    assert engine.dead_letters(workflow_id=text) == engine.dead_letters(type=text) == []
    for ask in (engine.dead_letter, engine.retry_dead_letter, engine.drop_dead_letter):
        with pytest.raises(DeadLetterError, match="there is no dead letter"):
            ask(text)
    run = engine.find()[0]
    for control in (
        lambda: run.cancel(reason=text, user=NUL),
        lambda: run.signal("s", HALF),
        lambda: run.pause(user=HALF),
    ):
        with pytest.raises(InvalidWorkflowError, match="cannot be stored"):
            control()
