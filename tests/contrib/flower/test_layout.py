"""Where stages are drawn: left to right along the dependencies, and none on top of another."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.contrib.flower.browser import Browser
from tests.contrib.flower.deployment import Shop

ARRANGE = """
    const [url, stages, edges, done] = arguments;
    import(url).then((layout) => {
        const start = layout.arrange(stages, edges);
        done({ positions: Object.fromEntries(start), width: layout.WIDTH, height: layout.HEIGHT, padding: layout.PADDING });
    }, (error) => done({ error: String(error) }));
"""


def stage(name: str, parent: str | None = None, phase: str | None = None) -> dict[str, Any]:
    return {"id": name, "parent_id": parent, "phase": phase}


@pytest.fixture
def arrange(shop: Shop, browser: Browser):
    browser.open(f"{shop.flower.url_with_name}/workflows")
    url = f"{shop.flower.url}/workflows/static/layout.js"

    def ask(stages: list[dict[str, Any]], edges: list[list[str]]) -> Any:
        answer = browser.driver.execute_async_script(ARRANGE, url, stages, edges)
        assert "error" not in answer, answer
        return answer

    return ask


def boxes(answer: Any, stages: list[dict[str, Any]]) -> dict[str, tuple[float, float, float, float]]:
    """Of every stage; of one with stages inside, around these."""
    found: dict[str, tuple[float, float, float, float]] = {}
    inside: dict[str | None, list[str]] = {}
    for each in stages:
        inside.setdefault(each["parent_id"], []).append(each["id"])

    def box(name: str) -> tuple[float, float, float, float]:
        if name in answer["positions"]:
            place = answer["positions"][name]
            half, high = answer["width"] / 2, answer["height"] / 2
            found[name] = (place["x"] - half, place["y"] - high, place["x"] + half, place["y"] + high)
        else:
            several = [box(child) for child in inside[name]]
            more = answer["padding"] - 6
            found[name] = (
                min(each[0] for each in several) - more,
                min(each[1] for each in several) - more,
                max(each[2] for each in several) + more,
                max(each[3] for each in several) + more,
            )
        return found[name]

    for name in inside[None]:
        box(name)
    return found


def check(answer: Any, stages: list[dict[str, Any]], edges: list[list[str]]) -> None:
    placed = boxes(answer, stages)
    assert set(placed) == {each["id"] for each in stages}
    for upstream, downstream in edges:
        assert placed[upstream][2] < placed[downstream][0], (upstream, downstream)
    parents = {each["id"]: each["parent_id"] for each in stages}
    siblings: dict[str | None, list[str]] = {}
    for name, parent in parents.items():
        siblings.setdefault(parent, []).append(name)
    for group in siblings.values():
        for i, one in enumerate(group):
            for other in group[i + 1 :]:
                a, b = placed[one], placed[other]
                apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
                assert apart, (one, other, a, b)


@pytest.mark.parametrize("seed", range(6))
def test_no_stage_covers_another(arrange, seed: int):
    chance = random.Random(seed)
    names = [f"s{number}" for number in range(chance.randint(1, 60))]
    stages = [stage(name) for name in names]
    edges = [
        [upstream, name]
        for number, name in enumerate(names)
        for upstream in chance.sample(names[:number], min(number, chance.randint(0, 3)))
    ]
    for parent in chance.sample(names, min(len(names), 5)):
        children = [f"{parent}.{number}" for number in range(chance.randint(1, 4))]
        stages += [stage(name, parent, chance.choice(["before", "after", "on_failure"])) for name in children]
        if chance.random() < 0.5:
            stages.append(stage(f"{children[0]}.deep", children[0], "before"))
    chance.shuffle(stages)
    check(arrange(stages, edges), stages, edges)


def test_a_wide_fan_is_folded(arrange):
    arms = [f"arm{number}" for number in range(500)]
    stages = [stage("root"), *map(stage, arms), stage("join")]
    edges = [["root", arm] for arm in arms] + [[arm, "join"] for arm in arms]
    answer = arrange(stages, edges)
    check(answer, stages, edges)
    placed = boxes(answer, stages)
    width = placed["join"][2] - placed["root"][0]
    height = max(box[3] for box in placed.values()) - min(box[1] for box in placed.values())
    assert height < 2 * width


def test_what_runs_before_stands_left_of_what_runs_after(arrange):
    stages = [stage("deploy"), stage("notify", "deploy", "after"), stage("check", "deploy", "before")]
    answer = arrange(stages, [])
    check(answer, stages, [])
    placed = boxes(answer, stages)
    assert placed["check"][2] < placed["notify"][0]


def test_a_stage_that_names_an_unknown_parent_is_drawn_all_the_same(arrange):
    stages = [stage("a"), stage("child", "gone", "before")]
    assert set(arrange(stages, [["gone", "a"]])["positions"]) == {"a", "child"}
