"""A broad set of workflows, each led to its end with whatever a person can do to it on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stabilize_celery import StageExecution, Workflow
from tests.concurrency.stage_hands import Scene
from tests.conformance.harness import flow
from tests.conformance.harness import stage as a_stage

STOPPED = {"do": [{"return": "stopped"}]}
FAILS_ON = {"continuePipelineOnFailure": True}


def _diamond() -> list[StageExecution]:
    return [
        a_stage("a", outputs={"x": 1}),
        a_stage("b", after=["a"]),
        a_stage("c", after=["a"]),
        a_stage("d", after=["b", "c"], stageEnabled={"type": "expression", "expression": "x == 1"}),
    ]


def _chain(scene: Scene) -> None:
    scene.start(flow(*(a_stage(f"s{n}", after=[f"s{n - 1}"] if n else []) for n in range(4))))


def _joins(scene: Scene) -> None:
    scene.start(flow(*_diamond()))


def _empty_stages(scene: Scene) -> None:
    """Stages without tasks end where they start, in the transaction that started them."""
    scene.start(
        flow(
            a_stage("a", None),
            a_stage("b", None, ["a"]),
            a_stage("c", None, ["a"]),
            a_stage("d", None, ["b", "c"]),
            a_stage("e", None, ["b"]),
        )
    )


def _stopped_branches(scene: Scene) -> None:
    """What a stopped stage blocks is reached by several ways, one deeper than the other."""
    scene.start(
        flow(
            a_stage("u"),
            a_stage("x", "script", context=STOPPED),
            a_stage("y", after=["x"]),
            a_stage("z", after=["x"]),
            a_stage("v", after=["y", "u"]),
            a_stage("w", after=["z", "u"]),
            a_stage("last", after=["v", "w"]),
        )
    )


def _failures(scene: Scene) -> None:
    scene.start(flow(a_stage("a", "fail", context=FAILS_ON), a_stage("b", after=["a"]), a_stage("c")))
    scene.start(
        flow(a_stage("a", "fail"), a_stage("b", after=["a"]), a_stage("c", "script", context=STOPPED))
    )


def _halted_by_the_last_branch(scene: Scene) -> None:
    """The workflow has halted branches when its last one ends, so its stages are looked at once more."""
    scene.start(flow(a_stage("a", "script", context=STOPPED), a_stage("b"), a_stage("c", after=["a", "b"])))


def _synthetic(scene: Scene) -> None:
    plan: dict[str, Any] = {
        "before": [{"name": "x"}, {"name": "y"}, {"name": "z", "requires": ["x", "y"]}],
        "after": [{"name": "n", "plan": {"before": [{"name": "deep"}], "after": [{"name": "deeper"}]}}],
    }
    scene.start(flow(a_stage("p", plan=plan), a_stage("q", after=["p"]), a_stage("r", None, ["p"])))
    failing = {"before": [{"name": "x", "task": "fail"}, {"name": "y"}], "on_failure": [{"name": "mend"}]}
    scene.start(flow(a_stage("p", plan=failing), a_stage("q", after=["p"])))


def _map(scene: Scene) -> None:
    shape = {"items": [1, 2, 3, 4, 5], "limit": 2, "stage": {"type": "ok"}}
    scene.start(flow(a_stage("m", None, type="map", context=shape), a_stage("after", after=["m"])))


def _jump(scene: Scene) -> None:
    back = {"do": [{"return": "jump", "target": "a"}, {"return": "success"}]}
    scene.start(flow(a_stage("a"), a_stage("b", "script", ["a"], context=back), a_stage("side", after=["a"])))


def _signals(scene: Scene) -> None:
    waits = {"do": [{"return": "suspend", "timeout": 3600}, {"return": "success"}]}
    run = scene.start(flow(a_stage("a", "script", context=waits), a_stage("b", after=["a"])))
    run.signal("a", "go")
    scene.proceed()


def _controls(scene: Scene) -> None:
    run = scene.start(flow(*_diamond()), "RunTask")
    run.pause()
    scene.proceed()
    run.resume()
    scene.proceed("RunTask c")
    run.skip_stage("c")
    scene.proceed()
    run.restart_stage("a")
    scene.proceed("RunTask")
    run.cancel_stage("a")
    scene.proceed()
    other = scene.start(flow(*_diamond()), "RunTask")
    other.cancel()
    scene.proceed()


def _sub_workflow(scene: Scene) -> None:
    inner = {"name": "inner", "stages": [{"ref": "x", "type": "ok"}]}
    outer = a_stage("outer", "sub_workflow", context={"workflow": inner})
    scene.start(flow(outer, a_stage("after", after=["outer"])))


def _hooks(scene: Scene) -> None:
    run = scene.start(flow(a_stage("a", "hooked"), a_stage("b", "hooked", after=["a"])), "RunTask b")
    run.restart_stage("a")
    scene.proceed("RunTask b")
    run.cancel()
    scene.proceed()


def _limits(scene: Scene) -> None:
    config = {
        "id": "shop",
        "limitConcurrent": True,
        "maxConcurrentExecutions": 1,
        "keepWaitingPipelines": True,
    }

    def limited(name: str) -> Workflow:
        return Workflow.create("tests", name, [a_stage("a"), a_stage("b", after=["a"])], config=config)

    runs = [scene.start(limited(str(number)), "RunTask") for number in range(3)]
    runs[0].pause()
    scene.proceed("RunTask")
    runs[0].resume()
    scene.proceed()
    runs[1].restart_stage("a")
    scene.proceed()


def _retries(scene: Scene) -> None:
    polls = {"do": [{"return": "running", "after": 0}, {"raise": "TransientError"}, {"return": "success"}]}
    run = scene.start(flow(a_stage("a", "script", context=polls)))
    scene.until_ready(run)


SCENARIOS: dict[str, Callable[[Scene], None]] = {
    function.__name__.removeprefix("_"): function
    for function in (
        _chain,
        _joins,
        _empty_stages,
        _stopped_branches,
        _failures,
        _halted_by_the_last_branch,
        _synthetic,
        _map,
        _jump,
        _signals,
        _controls,
        _sub_workflow,
        _hooks,
        _limits,
        _retries,
    )
}
