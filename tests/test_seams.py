"""Seams: what comes next is added from outside, here as a toy each.

Routes, systems, tasks and Python objects have theirs in tests/server/test_route.py, tests/systems/test_registry.py,
tests/tasks/test_plugins.py and tests/test_api.py.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import Log, Oracle, run_tiny, save_tiny_model, tiny_recipe

from cowest import api
from cowest.assembly.prepare import prepare
from cowest.errors import ConfigError, NothingToLearnError
from cowest.models.endpoint import make_app, serve
from cowest.models.local import LocalChatModel
from cowest.models.scripted import ScriptedChatModel, ScriptRule
from cowest.pipeline import run, run_stages, stages_of, stages_of_round
from cowest.protocols import Asks, ChatModel, Reporter, Tracker
from cowest.recipe import registry
from cowest.recipe.config import AlignConfig, config_from_dict
from cowest.scoring.metrics import Metric
from cowest.stages.base import checked
from cowest.stages.choosing import selection_of
from cowest.stages.learn import aligned
from cowest.stages.rounds import Policy, Round
from cowest.types import Alignment, Checkpoint, Completion, Draft, Example, Feedback, Message, ModelRef, Sampling, Score


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("weak"))


@pytest.fixture(scope="module")
def finished(weak: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run_tiny(weak, out, Oracle())
    return out


def installed(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        return [point for point in points if point.group == group and name in (None, point.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)


# Policy: a second round is a loop


async def test_a_second_round_drafts_with_what_the_first_has_left(finished: Path, weak: str, tmp_path: Path) -> None:
    out, log = Path(shutil.copytree(finished, tmp_path / "run")), Log()
    async with serve(make_app(Oracle(), model_name="strong")) as url:
        context = prepare(config_from_dict(tiny_recipe(weak, url)), out, log)[0]
        first = stages_of(context.config)
        second = stages_of_round(Round(aligned(Round(Policy("sft", ("sft",), lambda c: c.weak.base()))), number=2))
        rounds = checked([*first[:-1], *second, first[-1]])
        try:
            await run_stages(context, lambda _: rounds)
        finally:
            await context.models.aclose()
    assert all(log.verdicts[stage.name].startswith("reused") for stage in first)
    assert [log.verdicts[stage.name] for stage in second] == ["run"] * 5
    assert sorted(p.name for p in (out / "round-2").iterdir()) == [
        "align", "drafts.jsonl", "drift.json", "feedback.jsonl", "pairs.jsonl", "refinements.jsonl", "solo.jsonl",
    ]  # fmt: skip
    drafts = [[Draft.model_validate_json(x).text for x in (out / n / "drafts.jsonl").open()] for n in (".", "round-2")]
    assert len(drafts[0]) == len(drafts[1]) and drafts[0] != drafts[1]
    assert selection_of(context, Round(Policy("any", (), lambda c: c.weak.base()), 2)).checkpoints[0].model.base


# Objective


def alignment() -> dict[str, JsonValue]:
    section = tiny_recipe("unused", "http://127.0.0.1:9/v1")["align"]
    assert isinstance(section, dict)
    return section


class Unpaired:
    """Learns from drafts one by one: here, how many of them helped, and it leaves the policy as it is."""

    name = "unpaired"
    reads = ("drafts.jsonl", "feedback.jsonl")
    seen: Mapping[str, int] = {}

    def train(
        self,
        policy: ModelRef,
        files: Mapping[str, Path],
        settings: AlignConfig,
        out: Path,
        seed: int,
        reporter: Reporter,
        tracker: Tracker,
    ) -> Alignment:
        drafts = [Draft.model_validate_json(x) for x in files["drafts.jsonl"].open()]
        gains = [Feedback.model_validate_json(x).gain or 0.0 for x in files["feedback.jsonl"].open()]
        if not any(gain > 0 for gain in gains):
            raise NothingToLearnError("no draft helped")
        target = out / "step-1" / "model"
        shutil.copytree(policy.base, target, dirs_exist_ok=True)
        Unpaired.seen = {"drafts": len(drafts), "helped": sum(g > 0 for g in gains)}
        made = Checkpoint(step=1, model=ModelRef(base=str(target)))
        return Alignment(checkpoints=[made], counts={"helped": Unpaired.seen["helped"]})


def test_an_objective_of_another_package(
    finished: Path, weak: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, EntryPoint("unpaired", f"{__name__}:Unpaired", "cowest.objectives"))
    out, log = Path(shutil.copytree(finished, tmp_path / "run")), Log()
    done = run_tiny(weak, out, Oracle(), log, align={**alignment(), "objective": "unpaired"})
    assert log.verdicts["pairs"].startswith("reused")
    assert log.verdicts["align"].startswith("run again, because align.objective changed from preference to unpaired")
    assert "collab_aligned" in done.results[""].systems and Unpaired.seen["helped"] > 0
    counts = json.loads((out / "manifest.json").read_text())["stages"]["align"]["counts"]
    assert counts["helped"] == Unpaired.seen["helped"]


def test_a_name_that_nothing_has(tmp_path: Path) -> None:
    for section, key, told in (
        ("align", "objective", "there is no objective 'preferense'; did you mean 'preference'"),
        ("pairs", "signal", "there is no signal 'preferense'"),
        ("draft", "format", "there is no draft format 'preferense'"),
    ):
        recipe = tiny_recipe("lab:weak", "http://127.0.0.1:9/v1", **{section: {key: "preferense", "samples": 2}}
                             if section == "draft" else {section: {key: "preferense"}})  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            prepare(config_from_dict(recipe), tmp_path, Log())


# Engine: weights answer somewhere else


class Elsewhere:
    """An engine whose weights answer through a wrapper that counts, as those behind a server would."""

    asked = 0

    def open(self, ref: ModelRef, *, device: str, dtype: str, batch_size: int) -> ChatModel:
        return _Counting(LocalChatModel(ref, device=device, dtype=dtype, batch_size=batch_size))


class _Counting:
    def __init__(self, inner: ChatModel) -> None:
        self._inner, self.name = inner, inner.name

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        Elsewhere.asked += 1
        return await self._inner.generate(messages, sampling)

    async def aclose(self) -> None:
        await self._inner.aclose()


def test_an_engine_of_another_package(
    finished: Path, weak: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, EntryPoint("elsewhere", f"{__name__}:Elsewhere", "cowest.engines"))
    out, log = Path(shutil.copytree(finished, tmp_path / "run")), Log()

    async def go() -> None:
        async with serve(make_app(Oracle(), model_name="strong")) as url:
            recipe = tiny_recipe(weak, url)
            assert isinstance(recipe["weak"], dict)
            await run(config_from_dict(recipe | {"weak": {**recipe["weak"], "engine": "elsewhere"}}), out, log)

    asyncio.run(go())
    assert Elsewhere.asked > 0
    assert log.verdicts["sft"].startswith("reused")  # training has no engine
    assert log.verdicts["sample"] == "run again, because weak.engine changed from process to elsewhere"
    assert log.verdicts["feedback"].startswith("reused")  # the same weights drafted the same


def test_an_engine_that_is_not_there(weak: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(weak, "http://127.0.0.1:9/v1")
    recipe["weak"] = {"kind": "local", "model": weak, "engine": "nowhere"}
    with pytest.raises(ConfigError, match=r"weak\.engine: there is no engine 'nowhere'; there are: process"):
        prepare(config_from_dict(recipe), tmp_path, Log())


# Scorer


class Longest:
    """A Scorer of another package: the longer, the better."""

    async def score(self, example: Example, text: str | None) -> Score:
        return Score(value=None if text is None else min(1.0, len(text) / 1000))


def test_a_scorer_of_another_package(
    finished: Path, weak: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, EntryPoint("longest", f"{__name__}:Longest", "cowest.scorers"))
    out, log = Path(shutil.copytree(finished, tmp_path / "run")), Log()
    run_tiny(weak, out, Oracle(), log, feedback={"scorer": "longest"})
    assert log.verdicts["feedback"] == "run again, because feedback.scorer changed from unset to longest"
    scores = {Feedback.model_validate_json(x).refined.value for x in (out / "feedback.jsonl").open()}
    assert scores and all(0 < (score or 0) < 0.5 for score in scores)
    with pytest.raises(ConfigError, match=r"feedback\.scorer: there is no scorer 'longer'; did you mean 'longest'"):
        prepare(config_from_dict(tiny_recipe(weak, "http://127.0.0.1:9/v1", feedback={"scorer": "longer"})), out, Log())


# What a recipe names, of an installed package


@dataclass(frozen=True)
class Shouted:
    """A draft format."""

    name: str = "shouted"
    instruction: str = "SHOUT."

    def completion(self, target: str, example: Example) -> str | None:
        return target.upper()


@dataclass(frozen=True)
class Outcome:
    """A signal: the score with the draft, whatever the strong model says alone."""

    name: str = "outcome"
    asks: frozenset[Asks] = frozenset({"refine"})
    alone: bool = False

    def value(self, feedback: Feedback) -> float | None:
        return feedback.refined.value


def says_yes(answer: str | None, references: Sequence[str]) -> float:
    return float(answer == "yes")


SAYS_YES = Metric("says_yes", "mean", "says yes", says_yes, binary=True)


def evenness(folder: Path) -> dict[str, JsonValue]:
    task: dict[str, JsonValue] = {"kind": "jsonl", "metrics": ["says_yes", "accuracy"]}
    for start, split in enumerate(("train", "validation", "test")):
        rows = [{"input": f"Is {n} even?", "answer": "yes" if n % 2 == 0 else "no", "choices": ["yes", "no"]}
                for n in range(start, 30, 3)]  # fmt: skip
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task[split] = str(folder / f"{split}.jsonl")
    return task


async def test_a_metric_a_signal_and_a_draft_format_of_another_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(
        monkeypatch,
        EntryPoint("says_yes", f"{__name__}:SAYS_YES", "cowest.metrics"),
        EntryPoint("outcome", f"{__name__}:Outcome", "cowest.signals"),
        EntryPoint("shouted", f"{__name__}:Shouted", "cowest.formats"),
    )
    weak = ScriptedChatModel([ScriptRule(contains="SHOUT.", reply="Answer: yes")], default="Answer: no")
    recipe: dict[str, JsonValue] = {
        "name": "named",
        "task": evenness(tmp_path),
        "strong": {"kind": "scripted", "default": "Answer: no"},
        "draft": {"format": "shouted", "samples": 2},
        "pairs": {"signal": "outcome"},
    }
    done = await api.run(recipe, tmp_path / "run", weak=weak)
    assert {name: s.metrics["says_yes"].mean for name, s in done.results[""].systems.items()} == {
        "weak": 1.0, "strong": 0.0, "collab": 0.0,
    }  # fmt: skip
    feedback = [Feedback.model_validate_json(x) for x in (tmp_path / "run" / "feedback.jsonl").open()]
    assert all(f.refined.value == 0.0 and f.solo.value is None for f in feedback)  # by the metric; as the signal asks
    with pytest.raises(ConfigError, match="metrics: there is no metric 'says_no'; did you mean 'says_yes'"):
        task: JsonValue = {**evenness(tmp_path), "metrics": ["says_no"]}
        await api.run({**recipe, "task": task}, tmp_path / "other", weak=weak)


# Models of a package


def parrot(options: Mapping[str, JsonValue]) -> ChatModel:
    if "says" not in options:
        raise ValueError("says: what is the parrot to say?")
    return ScriptedChatModel([], default=str(options["says"]), name="parrot")


async def test_models_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, EntryPoint("parrot", f"{__name__}:parrot", "cowest.models"))
    yes: dict[str, JsonValue] = {"kind": "plugin", "name": "parrot", "options": {"says": "Answer: yes"}}
    recipe: dict[str, JsonValue] = {
        "name": "parrots",
        "task": {**evenness(tmp_path), "metrics": ["accuracy"]},
        "weak": yes,
        "strong": {**yes, "options": {"says": "Answer: no"}},
        "draft": {"samples": 2},
    }
    done = await api.run(recipe, tmp_path / "run")
    shares = {name: s.metrics["accuracy"].mean for name, s in done.results[""].systems.items()}
    assert set(shares) == {"weak", "strong", "collab"} and shares["weak"] == 1 - (shares["strong"] or 0)
    with pytest.raises(ConfigError, match=r"strong\.name: there is no model 'parot'; did you mean 'parrot'"):
        await api.run({**recipe, "strong": {"kind": "plugin", "name": "parot"}}, tmp_path / "run")
    with pytest.raises(ConfigError, match="the model 'parrot' failed: ValueError: says: what is the parrot to say"):
        await api.run({**recipe, "strong": {"kind": "plugin", "name": "parrot"}}, tmp_path / "run")
