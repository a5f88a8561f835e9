"""Everything that a recipe names can be a Python object instead: task, models, scorer, metric, format, signal, system, tracker."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue
from tests.helpers import save_tiny_model

from cowest import api
from cowest.errors import ConfigError
from cowest.models.scripted import ScriptedChatModel
from cowest.recipe.kept import kept_recipe
from cowest.scoring.metrics import Metric, use_metric
from cowest.tasks.base import CLASS_METRICS, SimpleTask
from cowest.types import Completion, Example, Feedback, Message, Prediction, Sampling, Score, Usage


def question(number: int, split: str) -> Example:
    return Example(
        id=f"{split}-{number}", input=f"Is {split} {number} even?", references=("no" if number % 2 else "yes",)
    )


def task() -> SimpleTask:
    sizes = {"train": 12, "validation": 6, "test": 10}
    splits = {split: tuple(question(i, split) for i in range(n)) for split, n in sizes.items()}
    return SimpleTask("evenness", CLASS_METRICS, ("yes", "no"), "Answer yes or no.", splits)


@dataclass
class Speaker:
    """A ChatModel: says what ``reply`` makes of what it is asked, and counts."""

    name: str
    replies: Mapping[str, str]
    asked: list[str] = field(default_factory=list)

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        text = messages[-1].content
        self.asked.append(text)
        reply = next(reply for mark, reply in self.replies.items() if mark in text)
        return Completion(text=reply, usage=Usage(calls=1, input_tokens=9, output_tokens=3))

    async def aclose(self) -> None:
        raise AssertionError("what a script has made is the script's to close")


def strong() -> Speaker:
    return Speaker("mine", {"<draft>": "Answer: yes", "": "Answer: no"})


def weak() -> Speaker:
    return Speaker("small", {"": "Even numbers end so.\nAnswer: yes"})


@dataclass(frozen=True)
class Oracle:
    """A System that is right."""

    name: str = "oracle"

    async def answer(self, example: Example) -> Prediction:
        return Prediction(example_id=example.id, system=self.name, text=f"Answer: {example.references[0]}")


class Tracked:
    def __init__(self) -> None:
        self.rows: list[tuple[str, Mapping[str, float], int | None]] = []

    def log(self, stage: str, values: Mapping[str, float], step: int | None = None) -> None:
        self.rows.append((stage, values, step))


RECIPE: dict[str, JsonValue] = {"name": "objects", "draft": {"samples": 2}, "evaluate": {"queries": 10}}


async def test_a_run_of_objects_within_a_running_loop(tmp_path: Path) -> None:
    tracker, big = Tracked(), strong()
    done = await api.run(
        RECIPE, tmp_path / "run", task=task(), weak=weak(), strong=big, systems=[Oracle()], tracker=tracker
    )
    results = done.results[""]
    assert {name: s.metrics["accuracy"].mean for name, s in results.systems.items()} == {
        "weak": 0.5, "strong": 0.5, "collab": 0.5, "oracle": 1.0,
    }  # fmt: skip
    assert {stage for stage, _, _ in tracker.rows} == {"sample", "feedback", "pairs", "evaluate"}
    assert results.task == "evenness" and done.report.exists()
    kept = kept_recipe(tmp_path / "run")
    assert (kept.weak.model, kept.strong.kind) == ("small", "object")

    again = strong()  # known by its name: nothing is asked again
    await api.run(RECIPE, tmp_path / "run", task=task(), weak=weak(), strong=again, systems=[Oracle()])
    assert big.asked and not again.asked


async def test_what_was_an_object_must_be_handed_over_again(tmp_path: Path) -> None:
    await api.run(RECIPE, tmp_path / "run", task=task(), weak=weak(), strong=strong())
    with pytest.raises(ConfigError, match=r"weak: 'small' was a Python object; .*weak=\.\.\."):
        await api.run(tmp_path / "run" / "recipe.yaml", tmp_path / "run", task=task(), strong=strong())
    with pytest.raises(ConfigError, match=r"task: 'evenness' was a Python object"):
        await api.run(tmp_path / "run" / "recipe.yaml", tmp_path / "run", weak=weak(), strong=strong())


def test_in_a_script_without_a_loop_from_a_file(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    done = api.run_sync(recipe, tmp_path / "run", task=task(), weak=weak(), strong=strong())
    assert list(done.results[""].systems) == ["weak", "strong", "collab"]


async def test_the_front_for_scripts_says_what_to_do_within_a_loop(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="await"):
        api.run_sync(RECIPE, tmp_path, task=task(), weak=weak(), strong=strong())


class Longer:
    """A Scorer: the longer, the better."""

    async def score(self, example: Example, text: str | None) -> Score:
        return Score(value=None if text is None else min(1.0, len(text) / 100))


@dataclass(frozen=True)
class Shouting:
    """A DraftFormat."""

    name: str = "shouting"
    instruction: str = "SHOUT."

    def completion(self, target: str, example: Example) -> str | None:
        return target.upper()


@dataclass(frozen=True)
class Outcome:
    """A Signal that asks for less than the gain: the score with the draft alone."""

    name: str = "outcome"
    asks: frozenset[str] = frozenset({"refine"})
    alone: bool = False

    def value(self, feedback: Feedback) -> float | None:
        return feedback.refined.value


YES = Metric("says_yes", "mean", "says yes", lambda answer, references: float(answer == "yes"), binary=True)


async def test_scorer_metric_format_and_signal(tmp_path: Path) -> None:
    small, big = weak(), strong()
    done = await api.run(
        RECIPE, tmp_path / "run", task=task(), weak=small, strong=big,
        scorer=Longer(), metric=YES, draft_format=Shouting(), signal=Outcome(),  # type: ignore[arg-type]
    )  # fmt: skip
    results = done.results[""]
    assert {name: s.metrics["says_yes"].mean for name, s in results.systems.items()} == {
        "weak": 1.0, "strong": 0.0, "collab": 1.0,
    }  # fmt: skip
    assert list(results.systems["weak"].metrics) == ["says_yes", "accuracy", "macro_f1"]
    assert all("SHOUT." in text for text in small.asked)
    feedback = [Feedback.model_validate_json(x) for x in (tmp_path / "run" / "feedback.jsonl").read_text().splitlines()]
    assert {f.refined.value for f in feedback} == {0.11}  # by the scorer
    train = [text for text in big.asked if "train" in text]
    assert train and all(
        "<draft>" in text for text in train
    )  # the strong model alone was not asked about training queries


async def test_two_metrics_of_one_name(tmp_path: Path) -> None:
    other = Metric("says_yes", "mean", "another", lambda answer, references: 0.0)
    assert YES.name == use_metric(YES)
    with pytest.raises(ConfigError, match="another metric of this name"):
        await api.evaluate([Oracle()], task(), metrics=[other])


async def test_evaluate_keeps_answers_and_compares(tmp_path: Path) -> None:
    fixed = ScriptedChatModel([], default="Answer: yes")
    from cowest.systems.single import SingleCall

    alone = SingleCall(fixed, lambda e: (Message(role="user", content=e.input),), Sampling(), "always_yes")
    found = await api.evaluate([Oracle(), alone], task(), out=tmp_path / "kept", queries=8)
    assert found.systems["oracle"].metrics["accuracy"].mean == 1.0
    assert found.systems["always_yes"].metrics["accuracy"].mean == 0.5
    (compared,) = [c for c in found.comparisons if c.metric == "accuracy" and c.test == "mcnemar_exact"]
    assert (compared.a, compared.b, compared.diff, compared.n) == ("always_yes", "oracle", -0.5, 8)
    before = len(fixed.requests)
    await api.evaluate([Oracle(), alone], task(), out=tmp_path / "kept", queries=8)
    assert len(fixed.requests) == before  # what is kept is not asked again
    with pytest.raises(ConfigError, match="same name"):
        await api.evaluate([Oracle(), Oracle()], task())


def test_evaluate_in_a_script() -> None:
    assert api.evaluate_sync([Oracle()], task(), queries=2).systems["oracle"].metrics["accuracy"].n == 2


async def test_a_table_takes_objects_as_rows(tmp_path: Path) -> None:
    recipe: dict[str, JsonValue] = {**RECIPE, "table": {"rows": ["strong", "collab"]}}
    found = await api.table(recipe, tmp_path / "t", task=task(), weak=weak(), strong=strong(), systems=[Oracle()])
    assert {name: row.metrics["accuracy"].mean for name, row in found.tables[0].rows.items()} == {
        "strong": 0.5, "collab": 0.5, "oracle": 1.0,
    }  # fmt: skip
    assert (tmp_path / "t" / "table.md").exists()


@pytest.mark.slow
def test_an_object_beside_a_weak_model_that_is_trained(tmp_path: Path) -> None:
    quick: JsonValue = {
        "method": "full", "max_steps": 60, "learning_rate": 1e-2, "batch_size": 4, "max_length": 128, "device": "cpu",
    }  # fmt: skip
    short: JsonValue = {"temperature": 0.0, "max_tokens": 8}
    local: JsonValue = {"kind": "local", "model": save_tiny_model(tmp_path / "weak"), "device": "cpu"}
    more: dict[str, JsonValue] = {"weak": local, "sft": quick, "align": "off", "evaluate": {"draft": short}}
    tracker = Tracked()
    done = api.run_sync({**RECIPE, **more}, tmp_path / "run", task=task(), strong=strong(), tracker=tracker)
    assert "weak" in done.results[""].systems
    assert [step for stage, values, step in tracker.rows if stage == "sft" and "loss" in values][-1] == 60
    asyncio.run(api.run({**RECIPE, **more}, tmp_path / "run", task=task(), strong=strong()))
