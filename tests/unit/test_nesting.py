"""Sub-workflows and maps on the embedded engine."""

from __future__ import annotations

from typing import Any

import pytest

from stabilize_celery import StageExecution, TaskResult, Workflow, WorkflowStatus
from stabilize_celery.errors import WorkflowFailedError
from stabilize_celery.testing import StabilizeForTests

S = WorkflowStatus


@pytest.fixture
def engine(stabilize: StabilizeForTests) -> StabilizeForTests:
    stabilize.stub("double", returns=lambda seen: {"doubled": seen["item"] * 2})
    stabilize.task("fail_odd")(_fail_odd)
    stabilize.stub("add", returns=lambda seen: {"sum": seen["a"] + seen.get("b", 1)})
    stabilize.stub("wait", returns=TaskResult.suspend())
    return stabilize


def _fail_odd(stage: StageExecution) -> TaskResult:
    if stage.context["item"] % 2:
        return TaskResult.terminal(f"{stage.context['item']} is odd")
    return TaskResult.success({"even": stage.context["item"]})


def flow(*stages: StageExecution) -> Workflow:
    return Workflow.create("test", "outer", stages)


def mapped(**options: Any) -> StageExecution:
    return StageExecution.single("m", "map", {"stage": {"type": "double"}, **options})


class TestMap:
    def test_results_come_in_the_order_of_the_items(self, engine: StabilizeForTests) -> None:
        run = engine.run(flow(mapped(items=[3, 1, 2])))
        assert run.get(0)["results"] == [{"doubled": 6}, {"doubled": 2}, {"doubled": 4}]

    def test_items_known_only_at_run_time(self, engine: StabilizeForTests) -> None:
        engine.task("list")(lambda stage: {"files": {"names": [1, 2]}})
        stages = [StageExecution.single("listing", "list"), mapped(items="files.names")]
        stages[1].requisite_stage_ref_ids = {"listing"}
        assert [r["doubled"] for r in engine.run(flow(*stages)).get(0)["results"]] == [2, 4]

    def test_no_items(self, engine: StabilizeForTests) -> None:
        assert engine.run(flow(mapped(items=[]))).get(0)["results"] == []

    def test_never_more_at_once_than_the_limit(self, engine: StabilizeForTests) -> None:
        run = engine.start(flow(mapped(items=list(range(7)), limit=3)))
        most = 0

        def watch() -> bool:
            nonlocal most
            stages = [s for s in run.workflow().stages if s.is_synthetic]
            most = max(most, sum(s.status is S.RUNNING for s in stages))
            return False

        engine.processor.drain(30, until=watch)
        assert (run.status, most) == (S.SUCCEEDED, 3)

    def test_a_failure_stops_the_others(self, engine: StabilizeForTests) -> None:
        run = engine.run(flow(mapped(items=[1, 2, 4], limit=1, stage={"type": "fail_odd"})))
        assert run.status is S.TERMINAL
        instances = [s.status for s in run.workflow().stages if s.is_synthetic]
        assert instances[0] is S.TERMINAL
        assert S.SUCCEEDED not in instances[1:]

    def test_failures_can_be_collected(self, engine: StabilizeForTests) -> None:
        stage = mapped(items=[1, 2, 3, 4], limit=2, on_failure="continue", stage={"type": "fail_odd"})
        outputs = engine.run(flow(stage)).workflow().stages[0].outputs
        assert outputs["results"] == [None, {"even": 2}, None, {"even": 4}]
        assert outputs["failed"] == [0, 2]

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"items": 5}, "items must be a list"),
            ({"items": "nothing"}, "items must be a list"),
            ({"items": [1], "limit": 0}, "limit must be"),
            ({"items": [1], "on_failure": "explode"}, "on_failure must be"),
            ({"items": [1], "stage": {}}, "map needs"),
        ],
    )
    def test_bad_options_fail_the_stage_with_a_reason(
        self, engine: StabilizeForTests, options: dict[str, Any], told: str
    ) -> None:
        with pytest.raises(WorkflowFailedError, match=told):
            engine.run(flow(mapped(**options))).get(0)


class TestSubWorkflow:
    DEFINITION = {"name": "inner", "stages": [{"ref": "x", "type": "add", "context": {"a": 1}}]}

    def nested(self, definition: Any = DEFINITION, **options: Any) -> StageExecution:
        return StageExecution.single("outer", "sub_workflow", {"workflow": definition, **options})

    def test_by_definition(self, engine: StabilizeForTests) -> None:
        outputs = engine.run(flow(self.nested())).get(0)
        assert outputs["sub_workflow_outputs"] == {"sum": 2}
        assert outputs["sub_workflow_status"] == "SUCCEEDED"
        assert engine.get(outputs["sub_workflow_id"]).workflow().name == "inner"

    def test_by_registered_name_from_what_the_stage_sees(self, engine: StabilizeForTests) -> None:
        engine.register_workflow(
            "adding",
            lambda seen: Workflow.create(
                "t", "adding", [StageExecution.single("x", "add", {"a": seen["n"]})]
            ),
        )
        assert engine.run(flow(self.nested("adding", n=10))).get(0)["sub_workflow_outputs"] == {"sum": 11}

    def test_a_failure_of_the_child_is_the_stages(self, engine: StabilizeForTests) -> None:
        definition = {"stages": [{"ref": "x", "type": "fail_odd", "context": {"item": 3}}]}
        with pytest.raises(WorkflowFailedError, match="3 is odd"):
            engine.run(flow(self.nested(definition))).get(0)

    def test_waiting_costs_no_message(self, engine: StabilizeForTests) -> None:
        run = engine.run(flow(self.nested({"stages": [{"ref": "x", "type": "wait"}]})))
        assert run.status is S.RUNNING
        assert engine.store.count_messages() == 0

    @pytest.mark.parametrize("verb", ["cancel", "cancel_stage", "skip"])
    def test_what_ends_the_stage_cancels_the_child(self, engine: StabilizeForTests, verb: str) -> None:
        run = engine.run(flow(self.nested({"stages": [{"ref": "x", "type": "wait"}]})))
        inner = engine.runs[-1]
        {
            "cancel": lambda: run.cancel(user="kim"),
            "cancel_stage": lambda: run.cancel_stage("outer", user="kim"),
            "skip": lambda: run.skip_stage("outer", user="kim"),
        }[verb]()
        engine.drain()
        assert inner.status is S.CANCELED
        assert run.ready()

    def test_pause_and_resume_go_down(self, engine: StabilizeForTests) -> None:
        run = engine.run(flow(self.nested({"stages": [{"ref": "x", "type": "wait"}]})))
        inner = engine.runs[-1]
        run.pause(user="kim")
        engine.drain()
        assert (run.status, inner.status) == (S.PAUSED, S.PAUSED)
        run.resume(user="kim")
        engine.drain()
        assert (run.status, inner.status) == (S.RUNNING, S.RUNNING)

    def test_a_restart_runs_another_child(self, engine: StabilizeForTests) -> None:
        run = engine.run(flow(self.nested()))
        first = run.get(0)["sub_workflow_id"]
        run.restart_stage("outer", user="kim")
        engine.drain()
        assert run.get(0)["sub_workflow_id"] != first

    def test_the_depth_is_limited(self, engine: StabilizeForTests) -> None:
        engine.register_workflow("forever", lambda _: flow(self.nested("forever", max_depth=3)))
        with pytest.raises(WorkflowFailedError, match="nested deeper than 3 levels"):
            engine.run(flow(self.nested("forever", max_depth=3))).get(0)
        assert len(engine.find()) == 4

    @pytest.mark.parametrize("definition", ["unknown", {"stages": []}, {"stages": 3}, 7])
    def test_a_bad_definition_fails_the_stage(self, engine: StabilizeForTests, definition: Any) -> None:
        run = engine.run(flow(self.nested(definition)))
        assert run.status is S.TERMINAL
        assert len(engine.find()) == 1


class TestLimitOfAMap:
    def test_a_slow_item_holds_one_place_and_no_more(self, engine: StabilizeForTests) -> None:
        """The first item waits; all others run in the other place, one after the other."""
        engine.task("slow_first")(
            lambda stage: TaskResult.suspend() if stage.context["item"] == 0 and not _go(stage) else None
        )
        items = StageExecution.single(
            "m", "map", {"items": list(range(6)), "stage": {"type": "slow_first"}, "limit": 2}
        )
        run = engine.start(flow(items))
        engine.drain()
        before = {s.ref_id: s.status for s in run.workflow().stages if s.is_synthetic}
        assert before == {"m[0]": S.SUSPENDED, **{f"m[{n}]": S.SUCCEEDED for n in range(1, 6)}}
        assert engine.audit(run.id).problems == []
        run.signal("m[0]", "go")
        engine.drain()
        assert run.status is S.SUCCEEDED

    def test_items_wait_while_every_place_is_taken(self, engine: StabilizeForTests) -> None:
        engine.task("hold")(lambda stage: None if _go(stage) else TaskResult.suspend())
        items = StageExecution.single(
            "m", "map", {"items": list(range(5)), "stage": {"type": "hold"}, "limit": 2}
        )
        run = engine.start(flow(items))
        for turn, ended in enumerate((1, 2, 0, 4, 3)):
            engine.drain()
            held = {s.ref_id for s in run.workflow().stages if s.status is S.SUSPENDED}
            assert len(held) == min(2, 5 - turn)
            assert engine.audit(run.id).problems == []
            run.signal(f"m[{ended}]", "go")
        engine.drain()
        assert run.status is S.SUCCEEDED

    def test_a_failure_stops_those_that_wait(self, engine: StabilizeForTests) -> None:
        items = StageExecution.single(
            "m", "map", {"items": [2, 1, 4, 6], "stage": {"type": "fail_odd"}, "limit": 1}
        )
        run = engine.run(flow(items))
        assert run.status is S.TERMINAL
        assert [s.status for s in run.workflow().stages if s.is_synthetic] == [
            S.SUCCEEDED,
            S.TERMINAL,
            S.CANCELED,
            S.CANCELED,
        ]


def _go(stage: StageExecution) -> bool:
    return stage.context.get("_signal_name") == "go"


def test_a_synthetic_stage_is_called_by_its_name_where_it_fails(engine: StabilizeForTests) -> None:
    """Its ref_id says nothing to people; an error that calls it by that cannot be read."""
    item = {"type": "sub_workflow", "context": {"workflow": 3}, "name": "each"}
    run = engine.start(flow(StageExecution.single("m", "map", {"items": [1], "stage": item})))
    engine.drain()
    errors = engine.get(run.id).workflow().stages[1].context["error"]
    assert errors.startswith("stage each [0]: 'workflow' must be")
