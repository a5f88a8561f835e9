"""Which data each training stage sees, what its freshness depends on, and how it is stopped."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import Log, tiny_recipe

from cowest.assembly.context import Context
from cowest.assembly.prepare import prepare
from cowest.errors import ConfigError
from cowest.pipeline import stages_of
from cowest.protocols import Reporter
from cowest.recipe.config import config_from_dict
from cowest.run.weights import Weights
from cowest.stages.base import in_thread
from cowest.stages.choosing import CheckpointScore, Selection
from cowest.stages.learn import sft_examples, training_queries
from cowest.stages.loop import rounds_of


def context(**changes: JsonValue) -> Context:
    url = changes.pop("url", "http://localhost:1/v1")
    assert isinstance(url, str)
    return prepare(config_from_dict(tiny_recipe("org/model", url, **changes)), Path("unused"), Log())[0]


def test_queries_are_the_first_of_training_and_sft_sees_all() -> None:
    found = context(draft={"queries": 12})
    train = found.task.examples("train")
    assert list(training_queries(found)) == list(train[:12]) and list(sft_examples(found)) == list(train)
    assert list(training_queries(context(draft={}))) == list(train)


def test_held_out_queries_are_not_learned_by_heart() -> None:
    found = context(draft={"queries": 12, "held_out": True})
    drafted, learned = training_queries(found), sft_examples(found)
    assert (len(drafted), len(learned)) == (12, 28)
    assert not {e.id for e in drafted} & {e.id for e in learned}
    assert [*learned, *drafted] == list(found.task.examples("train"))


def test_each_round_may_draft_for_the_next_queries() -> None:
    found = context(draft={"queries": 16}, rounds={"most": 4, "queries": "next"})
    train, rounds = list(found.task.examples("train")), rounds_of(found.config)
    slices = [list(training_queries(found, round_)) for round_ in rounds]
    assert slices[:2] == [train[:16], train[16:32]]
    assert slices[2] == [*train[32:], *train[:8]], "forty are used up: from the first again"
    same = context(draft={"queries": 16}, rounds={"most": 4})
    assert [list(training_queries(same, round_)) for round_ in rounds] == [train[:16]] * 4


def test_sft_sees_the_queries_of_no_round_where_they_are_held_out() -> None:
    found = context(draft={"queries": 12, "held_out": True}, rounds={"most": 3, "queries": "next"})
    slices = [q for round_ in rounds_of(found.config) for q in training_queries(found, round_)]
    assert [*sft_examples(found), *slices] == list(found.task.examples("train"))
    with pytest.raises(ConfigError, match=r"fewer than all; rounds\.queries: next takes 4 times as many"):
        context(draft={"queries": 12, "held_out": True}, rounds={"most": 4, "queries": "next"})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rounds": {"queries": "next"}, "draft": {}}, r"rounds\.queries: next wants draft\.queries"),
        ({"rounds": {"most": 2}, "align": "off"}, r"rounds\.most: 2 .* align is off"),
        (
            {"rounds": {"most": 2}, "weak": {"kind": "openai", "model": "m", "base_url": "http://localhost:1/v1"}},
            r"rounds\.most: 2 .* not trained",
        ),
    ],
)
def test_rounds_that_there_cannot_be_are_refused_before_anything_is_paid(
    changes: dict[str, JsonValue], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        config_from_dict(tiny_recipe("org/model", "http://localhost:1/v1") | changes)


def test_queries_that_are_held_out_without_a_number_are_a_third_of_all() -> None:
    found = context(draft={"held_out": True})
    assert (len(training_queries(found)), len(sft_examples(found))) == (13, 27)


@pytest.mark.parametrize("draft", [{"held_out": True, "queries": 40}, {"held_out": True, "queries": 99}])
def test_something_must_be_left_to_learn_from(draft: dict[str, JsonValue]) -> None:
    with pytest.raises(ConfigError, match=r"draft\.held_out"):
        context(draft=draft)


def stale(**changes: JsonValue) -> set[str]:
    """The stages whose own settings, data or models are no longer those of the unchanged recipe."""
    one, other = context(), context(**changes)
    stages = stages_of(one.config)
    return {s.name for s in stages if s.depends(one).values != s.depends(other).values}


SFT = tiny_recipe("org/model", "http://localhost:1/v1")["sft"]
assert isinstance(SFT, dict)
ALL = ("sft", "sample", "feedback", "pairs", "align", "evaluate")
STRONG = tiny_recipe("org/model", "http://localhost:1/v1")["strong"]
assert isinstance(STRONG, dict)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        ({"url": "http://elsewhere:2/v1"}, set()),
        ({"name": "other"}, set()),
        ({"strong": STRONG | {"concurrency": 9, "timeout_s": 1, "max_attempts": 3}}, set()),
        ({"strong": STRONG | {"model": "other"}}, {"feedback", "align", "evaluate"}),
        ({"sft": {"max_steps": 61}}, {"sft"}),
        ({"sft": SFT | {"device": "cuda", "checkpoint_every": 7, "gradient_checkpointing": True}}, set()),
        ({"feedback": {"mode": "batch"}}, set()),
        ({"draft": {"samples": 2, "queries": 12}}, {"sample"}),
        ({"draft": {"samples": 3, "queries": 12, "held_out": True}}, {"sft", "sample", "feedback"}),
        ({"pairs": {"rule": "paper"}}, {"pairs"}),
        ({"align": {"beta": 0.5}}, {"align"}),
        ({"evaluate": {"queries": 5}}, {"evaluate", "align"}),  # evaluate.draft and .answer differ, too
        ({"feedback": {"metric": "accuracy"}}, {"feedback"}),
        ({"prompts": {"refine": "{input} {draft}"}}, set(ALL)),  # no longer the lab's frames
        ({"seed": 4}, {"sft", "sample", "feedback", "align"}),  # the world has a seed of its own
    ],
)
def test_what_each_stage_depends_on(changes: dict[str, JsonValue], expected: set[str]) -> None:
    assert stale(**changes) == expected


def test_the_chosen_checkpoint_is_the_aligned_model() -> None:
    scores = [
        CheckpointScore(step=s, model=Weights(base=f"step-{s}"), score=None, n=0, n_failed=0) for s in (0, 40, 80)
    ]
    assert Selection(metric="em", checkpoints=scores, chosen=40).model.base == "step-40"


async def test_a_stopped_run_stops_its_training_thread() -> None:
    steps, ended = 0, asyncio.Event()
    loop = asyncio.get_running_loop()

    def train(reporter: Reporter) -> int:
        nonlocal steps
        try:
            reporter.start("sft", 100_000)
            while True:
                time.sleep(0.005)
                steps += 1
                reporter.advance()
        finally:
            loop.call_soon_threadsafe(ended.set)

    log = Log()
    running = asyncio.create_task(in_thread(train, log))
    while steps < 3:
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.wait_for(ended.wait(), timeout=5)
    assert log.starts == [("sft", 100_000, 0)]


async def test_what_a_thread_returns_or_raises_comes_back() -> None:
    assert await in_thread(lambda reporter: 7, Log()) == 7

    def broken(reporter: Reporter) -> int:
        raise ConfigError("sft.device: no such device")

    with pytest.raises(ConfigError, match="no such device"):
        await in_thread(broken, Log())
