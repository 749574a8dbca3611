"""Small workflows, brought to a moment at which several things can happen, and those that make them happen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from stabilize_celery import StageExecution, Workflow, WorkflowRun
from stabilize_celery.errors import StageNotFoundError, WorkflowNotFoundError, WorkflowStateError
from stabilize_celery.models.stage import StageExecution as Stage
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.persistence import tables
from tests.interleaving.scheduler import this_participant
from tests.interleaving.world import Action, World

#: What a control may answer where something else came first.
_REFUSALS = (WorkflowStateError, WorkflowNotFoundError, StageNotFoundError)
CONFIG = "limited"


@dataclass
class Situation:
    """A moment: the state of the database, and who acts from here on."""

    name: str
    inline: bool
    state: tuple[Any, ...]
    known: frozenset[str]
    participants: list[tuple[str, Action]]
    told: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([f"{self.name}, inline={self.inline}", *self.told])


# ------------------------------------------------------------------------------------------------ workflows


def stage(ref: str, do: str | None = "ok", after: str = "", **context: Any) -> Stage:
    """A stage that requires the stages whose names are the letters of ``after``; without ``do`` it has no task."""
    made = StageExecution.create("planned", ref, ref, {"do": do, **context} if do else context, set(after))
    made.tasks = [TaskExecution.create("t", "scripted")] if do else []
    return made


STOPS = {"do": "fail", "failPipeline": False}
GOES_ON = {"do": "fail", "continuePipelineOnFailure": True}


def random_stages(random: Random) -> list[Stage]:
    """Two to six stages with joins, failure policies, synthetic stages, jumps and suspensions."""
    refs = "abcdef"[: random.choice((2, 3, 4, 4, 5, 6))]
    stages = []
    for number, ref in enumerate(refs):
        before = refs[:number]
        requires = random.sample(before, random.choice((0, 1, 1, 2, 2, 3)) % (len(before) + 1))
        stages.append(stage(ref, after="".join(requires)) if number else stage(ref))
        made = stages[-1]
        kind = random.random()
        if kind < 0.25:
            made.context.update(STOPS)
        elif kind < 0.3:
            made.context.update(GOES_ON)
        elif kind < 0.34:
            made.context["do"] = "fail"
        elif kind < 0.38:
            made.context["do"] = "suspend"
        elif kind < 0.44 and number:
            made.context["do"] = f"jump:{random.choice(refs)}"
        elif kind < 0.48:
            made.context["do"] = "transient"
        elif kind < 0.58:
            made.tasks = []
        elif kind < 0.62:
            made.context["stageEnabled"] = False
        if random.random() < 0.2:
            made.context["plan"] = _random_children(random)
    return stages


def _random_children(random: Random) -> dict[str, Any]:
    def child() -> dict[str, Any]:
        do = random.choice(("ok", "ok", "ok", "fail", "transient"))
        chosen = {"do": do, "chained": random.random() < 0.3}
        return {**chosen, **random.choice(({}, {}, {"failPipeline": False}))}

    phases = random.sample(("before", "after", "on_failure"), random.choice((1, 1, 2)))
    return {phase: [child() for _ in range(random.choice((1, 2, 2, 3)))] for phase in phases}


def limited(name: str, limit: int, keep: bool, stages: list[Stage]) -> Workflow:
    """An execution of a configuration with a limit."""
    config = {
        "id": CONFIG,
        "limitConcurrent": True,
        "maxConcurrentExecutions": limit,
        "keepWaitingPipelines": keep,
    }
    return Workflow.create("tests", name, stages, config=config)


# ------------------------------------------------------------------------------------------------ who acts


def handle(row: Any) -> tuple[str, Action]:
    """A worker gets a message."""
    what = row["label"].partition(" / ")[2] or row["label"]
    return f"{row['type']} {what}", lambda world: world.process(row) and None


def _deliver(world: World) -> None:
    """Handle what this participant has published, as if it were a worker as well."""
    participant = this_participant()
    assert participant is not None
    for message_id, message_type in participant.published:
        world.engine.dispatcher.process(message_id, message_type)
    participant.published = []


def control(verb: str, workflow_id: str, ref: str | None = None) -> tuple[str, Action]:
    """A person interferes; the message is handled at once."""

    def act(world: World) -> Any:
        arguments = [*([ref] if ref else []), *(["go"] if verb == "signal" else [])]
        try:
            getattr(WorkflowRun(world.engine, workflow_id), verb)(*arguments)
        except _REFUSALS:
            return "refused"
        _deliver(world)
        return "accepted"

    return f"{verb} {ref or ''}".strip(), act


def start(name: str, key: str | None, *, joins: bool) -> tuple[str, Action]:
    """A start, in a transaction of its own or in the caller's."""

    def act(world: World) -> Any:
        workflow = Workflow.create("tests", name, [stage("a"), stage("b", after="a")])
        if joins:
            with world.theirs.begin() as connection:
                connection.exec_driver_sql("SELECT 'of the caller'")
                run = world.engine.start(workflow, connection=connection, dedup_key=key)
                connection.exec_driver_sql("SELECT 'of the caller as well'")
        else:
            run = world.engine.start(workflow, dedup_key=key)
        _deliver(world)
        return "started" if run.id == workflow.id else "found"

    return f"{'joined ' if joins else ''}start {name}", act


def start_limited() -> tuple[str, Action]:
    """One more execution of the configuration with a limit of one."""

    def act(world: World) -> None:
        world.engine.start(limited("w9", 1, True, [stage("a")]))
        _deliver(world)

    return "start limited", act


def prune() -> tuple[str, Action]:
    """Deletes all that has ended."""
    return "prune", lambda world: world.engine.prune(timedelta(), batch=10) and None


def relay() -> tuple[str, Action]:
    """A pass of the relay; what it sends is handled at once."""

    def act(world: World) -> None:
        for row in world.engine.store.take_due(10, lambda _: 3600.0):
            world.process(row)

    return "relay", act


def operator(stage_ids: list[str]) -> tuple[str, Action]:
    """A transaction that knows nothing of our order of locks."""

    def act(world: World) -> None:
        stages = tables.stages
        with suppress(OperationalError), world.theirs.begin() as connection:
            for stage_id in stage_ids:
                connection.execute(select(stages.c.id).where(stages.c.id == stage_id).with_for_update())

    return "operator", act


# ------------------------------------------------------------------------------------------------ moments


def moment(
    world: World,
    name: str,
    inline: bool,
    workflows: list[Workflow],
    act: Callable[[World, list[dict[str, Any]]], list[tuple[str, Action]]],
    *,
    steps: int = 0,
    withhold: tuple[str, ...] = (),
    random: Random | None = None,
) -> Situation:
    """Start workflows, let them come to a moment, and ask who acts there.

    Args:
        world: the database, empty: ids of workflows made before it was cleared come again.
        name: what it is called.
        inline: whether the engine continues in place.
        workflows: are started in this order.
        act: given the messages that could be handled, says who acts.
        steps: at most so many messages are handled first.
        withhold: not those; names of types, or ``"RunTask ref"``.
        random: chooses which.
    """
    world.turn_to(inline)
    world.recorder.published.clear()
    for workflow in workflows:
        world.engine.start(workflow)
    for _ in range(steps):
        rows = [row for row in world.waiting() if not _is(row, withhold)]
        if not rows:
            break
        world.process(random.choice(rows) if random else rows[0])
    world.clock.advance(1)
    rows = world.waiting()
    participants = act(world, rows)
    state, known = world.dump(), frozenset(row["id"] for row in world.waiting())
    told = [f"{w.name}: " + ", ".join(_told(each) for each in w.stages) for w in workflows]
    return Situation(name, inline, state, known, participants, [*told, *(each for each, _ in participants)])


def _told(each: Stage) -> str:
    requires = "".join(sorted(each.requisite_stage_ref_ids))
    return f"{each.ref_id}({requires}) {each.context}{'' if each.tasks else ' no task'}"


def _is(row: dict[str, Any], kinds: tuple[str, ...]) -> bool:
    # The ref of the stage, or the name of the workflow.
    ref = row["label"].partition(" / ")[2] or row["label"]
    return row["type"] in kinds or f"{row['type']} {ref}" in kinds


def random_situation(world: World, seed: int, inline: bool | None = None) -> Situation | None:
    """The situation of a seed; ``None`` if fewer than two can act there."""
    world.clear()
    random = Random(seed)
    chosen = random.random() < 0.6
    inline = chosen if inline is None else inline
    theme = random.choices(list(THEMES), list(THEMES.values()))[0]
    return theme(world, random, inline, f"{theme.__name__.strip('_')} {seed}")


def _some(random: Random, rows: list[dict[str, Any]], most: int) -> list[tuple[str, Action]]:
    """Some of the messages at hand are handled, now and then one of them twice."""
    chosen = random.sample(rows, min(len(rows), most))
    if chosen and random.random() < 0.1:
        chosen.append(chosen[0])
    return [handle(row) for row in chosen]


def _enough(situation: Situation) -> Situation | None:
    return situation if len(situation.participants) > 1 else None


def _progress(world: World, random: Random, inline: bool, name: str) -> Situation | None:
    """Work of one workflow ends at the same time."""
    steps = random.choice((1, 1, 2, 3, 4, 6)) if inline else random.randrange(1, 20)
    return _enough(
        moment(
            world, name, inline, [Workflow.create("tests", "w", random_stages(random))],
            lambda _, rows: _some(random, rows, random.choice((2, 2, 3))), steps=steps, random=random,
        )
    )  # fmt: skip


def _controls(world: World, random: Random, inline: bool, name: str) -> Situation | None:
    """People interfere while it works."""
    workflow = Workflow.create("tests", "w", random_stages(random))
    refs = [each.ref_id for each in workflow.stages]

    def interferes() -> tuple[str, Action]:
        verb = random.choice(
            (
                "cancel",
                "pause",
                "resume",
                "restart_stage",
                "restart_stage",
                "skip_stage",
                "cancel_stage",
                "signal",
            )
        )
        one = verb in ("cancel", "pause", "resume")
        return control(verb, workflow.id, None if one else random.choice(refs))

    def act(world: World, rows: list[dict[str, Any]]) -> list[tuple[str, Action]]:
        if random.random() < 0.3:
            with suppress(*_REFUSALS):
                run = WorkflowRun(world.engine, workflow.id)
                getattr(run, random.choice(("pause", "cancel")))()
                rows = world.waiting()
        acting = [interferes() for _ in range(random.choice((1, 1, 2)))]
        return [*_some(random, rows, random.choice((1, 1, 2))), *acting]

    steps = random.randrange(1, 8) if inline else random.randrange(1, 30)
    return _enough(moment(world, name, inline, [workflow], act, steps=steps, random=random))


def _limits(world: World, random: Random, inline: bool, name: str) -> Situation | None:
    """Executions of a configuration with a limit come, wait, and go."""
    limit, keep = random.choice((1, 1, 2)), random.random() < 0.6
    many = [limited(f"w{n}", limit, keep, [stage("a")]) for n in range(random.choice((2, 3, 3, 4)))]

    def act(_: World, rows: list[dict[str, Any]]) -> list[tuple[str, Action]]:
        acting = _some(random, rows, random.choice((1, 2, 2, 3)))
        if random.random() < 0.6:
            one = random.choice(many).id
            acting.append(
                control(
                    *random.choice(
                        (("cancel", one), ("pause", one), ("resume", one), ("restart_stage", one, "a"))
                    )
                )
            )
        return acting

    return _enough(
        moment(world, name, inline, many, act, steps=random.choice((0, 0, 1, 2, 3, 4, 5)), random=random)
    )


def _starts(world: World, random: Random, inline: bool, name: str) -> Situation | None:
    """The same start twice, of which one counts."""

    def act(_: World, rows: list[dict[str, Any]]) -> list[tuple[str, Action]]:
        many = [
            start(f"s{n}", random.choice(("key", "key", None)), joins=random.random() < 0.5)
            for n in range(random.choice((2, 2, 3)))
        ]
        return [*many, *random.choice(([], [], [prune()], [relay()]))]

    return moment(world, name, inline, [], act)


def _retention(world: World, random: Random, inline: bool, name: str) -> Situation | None:
    """What has ended is deleted while somebody still wants something of it."""
    workflow = Workflow.create("tests", "w", [stage("a"), stage("b", after="a")])

    def act(_: World, rows: list[dict[str, Any]]) -> list[tuple[str, Action]]:
        verb = random.choice(("restart_stage", "restart_stage", "restart_stage", "cancel"))
        wanted = control(verb, workflow.id, *(["a"] if verb == "restart_stage" else []))
        return [prune(), wanted, *random.choice(([], [], [relay()], [prune()]))]

    return moment(world, name, inline, [workflow], act, steps=random.choice((100, 100, 100, 3)))


def _relayed(world: World, random: Random, inline: bool, name: str) -> Situation | None:
    """The relay sends again what is at work."""

    def act(world: World, rows: list[dict[str, Any]]) -> list[tuple[str, Action]]:
        world.server.execute("UPDATE stabilize_messages SET send_at = due_at")
        return [relay(), *_some(random, rows, 2), *random.choice(([], [relay()]))]

    workflow = Workflow.create("tests", "w", random_stages(random))
    return _enough(moment(world, name, inline, [workflow], act, steps=random.randrange(6), random=random))


def _strangers(world: World, random: Random, inline: bool, name: str) -> Situation | None:
    """Somebody locks rows in another order than ours."""
    workflow = Workflow.create("tests", "w", random_stages(random))

    def act(_: World, rows: list[dict[str, Any]]) -> list[tuple[str, Action]]:
        stage_ids = [each.id for each in reversed(workflow.stages)]
        others = random.choice(([], [prune()], [control("cancel", workflow.id)]))
        return [operator(stage_ids), *_some(random, rows, random.choice((1, 2))), *others]

    steps = random.choice((1, 1, 2, 3)) if inline else random.randrange(1, 12)
    return _enough(moment(world, name, inline, [workflow], act, steps=steps, random=random))


Theme = Callable[[World, Random, bool, str], Situation | None]
#: Each with how often it is chosen.
THEMES: dict[Theme, int] = {
    _progress: 40,
    _controls: 22,
    _limits: 14,
    _starts: 6,
    _retention: 6,
    _relayed: 5,
    _strangers: 7,
}


# --------------------------------------------------------------------- two participants, looked at systematically

#: Says who acts, given the messages at hand and the workflows.
_Pair = Callable[[World, list[dict[str, Any]], list[Workflow]], list[tuple[str, Action]]]


def _messages(*kinds: str) -> _Pair:
    return lambda world, rows, _: [handle(next(row for row in rows if _is(row, (kind,)))) for kind in kinds]


def _controlled(kind: str, verb: str, ref: str | None = None) -> _Pair:
    return lambda world, rows, workflows: [
        *_messages(kind)(world, rows, workflows),
        control(verb, workflows[-1].id, ref),
    ]


def _stopped_join() -> list[Stage]:
    return [stage("a", **STOPS), stage("b"), stage("j", after="ab"), stage("c", after="b")]


def _join() -> list[Stage]:
    return [stage("a"), stage("b"), stage("j", after="ab"), stage("k", after="j")]


def _line() -> list[Stage]:
    return [stage("a"), stage("b", after="a"), stage("c", after="b")]


def _children(phase: str) -> list[Stage]:
    return [stage("p", plan={phase: [{"do": "ok"}, {"do": "ok"}]}), stage("q", after="p")]


def _pairs() -> dict[str, tuple[Callable[[], list[Workflow]], _Pair, tuple[str, ...]]]:
    def one(make: Callable[..., list[Stage]], *arguments: Any) -> Callable[[], list[Workflow]]:
        return lambda: [Workflow.create("tests", "w", make(*arguments))]

    def two_limited(first: int = 0) -> list[Workflow]:
        return [limited(f"w{n}", 1, True, [stage("a")]) for n in range(first, 2)]

    both = ("RunTask a", "RunTask b")
    tasks = ("RunTask",)
    return {
        "a branch stops, one goes on": (one(_stopped_join), _messages(*both), both),
        "the last arms of a join": (one(_join), _messages(*both), both),
        "the last branches": (one(lambda: [stage("a"), stage("b")]), _messages(*both), both),
        "two branches stop": (
            one(lambda: [stage("a", **STOPS), stage("b", **STOPS), stage("c"), stage("j", after="abc")]),
            _messages(*both),
            tasks,
        ),
        # Completed in place, c would lock f before d locks e.
        "a wide fan-out beside a branch": (
            one(
                lambda: [
                    stage("a"), stage("b"), stage("c", None, "a"), stage("d", None, "a"), stage("e", after="bd"),
                    stage("f", after="bc"),
                ]
            ),
            _messages(*both),
            both,
        ),
        "one fails, one goes on": (
            one(lambda: [stage("a", "fail"), stage("b"), stage("c", after="b")]), _messages(*both), both,
        ),
        **{
            f"the last {phase} stages": (
                one(_children, phase),
                _messages(f"RunTask p/{phase}0", f"RunTask p/{phase}1"),
                (f"RunTask p/{phase}0", f"RunTask p/{phase}1"),
            )
            for phase in ("before", "after")
        },
        "one task twice": (one(_line), _messages("RunTask a", "RunTask a"), tasks),
        "cancel": (one(_line), _controlled("RunTask a", "cancel"), tasks),
        "pause": (one(_line), _controlled("RunTask a", "pause"), tasks),
        "restart": (one(_line), _controlled("RunTask b", "restart_stage", "a"), ("RunTask b",)),
        "skip": (one(_join), _controlled("RunTask a", "skip_stage", "b"), tasks),
        "cancel of a stage": (one(_join), _controlled("RunTask a", "cancel_stage", "b"), tasks),
        "signal": (
            one(lambda: [stage("a", "suspend"), stage("b", after="a")]),
            _controlled("RunTask a", "signal", "a"),
            tasks,
        ),
        "jump": (
            one(lambda: [stage("a"), stage("b", "jump:a", "a"), stage("c", after="a"), stage("j", after="bc")]),
            _messages("RunTask b", "RunTask c"),
            ("RunTask b", "RunTask c"),
        ),
        "two of a limit of one": (
            lambda: two_limited(-1),
            lambda world, rows, _: [handle(row) for row in rows],
            ("StartWorkflow w0", "StartWorkflow w1"),
        ),
        "one comes, one goes": (
            two_limited,
            lambda world, rows, flows: [*_messages("RunTask a")(world, rows, flows), start_limited()],
            tasks,
        ),
        "the waiting one is canceled": (two_limited, _controlled("RunTask a", "cancel"), tasks),
        "one key, two starts": (
            list,
            lambda *_: [start("s0", "key", joins=False), start("s1", "key", joins=True)],
            (),
        ),
        "prune and restart": (
            one(_line), lambda world, rows, flows: [prune(), control("restart_stage", flows[0].id, "a")], (),
        ),
        "relay and worker": (
            one(_line), lambda world, rows, flows: [_overdue(world), *_messages("RunTask a")(world, rows, flows)], tasks,
        ),
        "a stranger": (
            one(_join),
            lambda world, rows, flows: [
                operator([each.id for each in reversed(flows[0].stages)]), *_messages("RunTask a")(world, rows, flows),
            ],
            tasks,
        ),
    }  # fmt: skip


def _overdue(world: World) -> tuple[str, Action]:
    world.server.execute("UPDATE stabilize_messages SET send_at = due_at")
    return relay()


#: A name to: its workflows, who acts, what is withheld on the way there.
PAIRS = _pairs()


def pair(world: World, name: str, inline: bool) -> Situation:
    """A situation of the list."""
    make, act, withheld = PAIRS[name]
    world.clear()
    workflows = make()
    return moment(
        world, name, inline, workflows, lambda w, rows: act(w, rows, workflows), steps=100, withhold=withheld
    )
