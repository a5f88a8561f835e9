"""What models on this machine have to do, and how long that takes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import QUERIES, SAMPLES, Log, cowest_main, tiny_recipe

from cowest.assembly.sources.local import LocalSource
from cowest.cli.output_estimate import print_estimate
from cowest.costs import measure
from cowest.costs.estimate import Estimate, StageEstimate, estimate
from cowest.costs.speed import Speed, together
from cowest.costs.work import Range
from cowest.errors import ModelNotFoundError
from cowest.pipeline import run
from cowest.recipe.config import RunConfig, config_from_dict
from cowest.table.estimate import estimate_table
from cowest.types import Completion, Message, Sampling, Usage

STRONG: dict[str, JsonValue] = {"kind": "local", "model": "lab:strong-tiny", "device": "cpu", "batch_size": 8}
WEAK: dict[str, JsonValue] = {"kind": "local", "model": "lab:weak-small", "device": "cpu", "batch_size": 8}
SHORT: dict[str, JsonValue] = {"sampling": {"temperature": 0.0, "max_tokens": 24}}
TEST = 12


def recipe(**changes: JsonValue) -> RunConfig:
    """The tiny recipe with both models here."""
    return config_from_dict(
        tiny_recipe("unused", "unused") | {"weak": WEAK, "strong": STRONG, "feedback": SHORT} | changes
    )


def line(found: Estimate, stage: str, calls_for: str, model: str | None = None) -> StageEstimate:
    (one,) = [
        s for s in found.stages if (s.stage, s.calls_for) == (stage, calls_for) and model in (None, s.model)
    ]  # fmt: skip
    return one


def test_a_run_counts_what_each_model_has_to_do(tmp_path: Path) -> None:
    found = estimate(recipe(), tmp_path / "none")
    assert [(s.stage, s.calls_for) for s in found.stages] == [
        ("sft", "60 steps"),
        ("sample", "drafts"),
        ("feedback", "strong alone"),
        ("feedback", "refine drafts"),
        ("align", "up to 4 steps"),
        ("align", "drafts"),
        ("align", "choose a checkpoint"),
        ("evaluate", "drafts"),
        ("evaluate", "strong"),
        ("evaluate", "collab"),
        ("evaluate", "collab_aligned"),
    ]
    assert line(found, "sample", "drafts").calls.expected == QUERIES * SAMPLES
    assert line(found, "align", "drafts").calls.expected == 3 * 8  # two checkpoints and none, on eight queries
    assert line(found, "evaluate", "drafts").calls.expected == 3 * TEST  # each of three systems opens it for itself
    assert found.here is not None and found.here.seconds is None and not found.here.speeds
    assert found.here.unknown == ("lab:strong-tiny", "lab:weak-small")
    assert found.here.calls.expected == sum(s.calls.expected for s in found.stages)
    assert found.calls.high == 0  # those are the paid ones


def test_a_training_goes_over_its_batches(tmp_path: Path) -> None:
    def tokens(**changes: JsonValue) -> Range:
        sft: dict[str, JsonValue] = {"method": "full", "max_steps": 10, "batch_size": 4, "max_length": 128}
        return line(
            estimate(recipe(sft=sft | changes), tmp_path), "sft", f"{changes.get('max_steps', 10)} steps"
        ).training_tokens

    once = tokens()
    assert once.low == once.expected == once.high > 10 * 4 * 10
    assert tokens(max_steps=20).expected == pytest.approx(2 * once.expected, abs=1)
    assert tokens(gradient_accumulation=3).expected == pytest.approx(3 * once.expected, abs=1)
    assert tokens(max_length=16).expected == 10 * 4 * 16  # every row is longer
    both = line(estimate(recipe(), tmp_path), "align", "up to 4 steps").training_tokens
    align: dict[str, JsonValue] = {"max_steps": 4, "batch_size": 4, "max_length": 128, "objective": "positives"}
    one = line(estimate(recipe(align=align), tmp_path), "align", "up to 4 steps").training_tokens
    assert both.low == 0 and both.expected == pytest.approx(2 * one.expected, abs=1)


def test_drafts_that_are_scored_alone_ask_the_strong_model_for_no_checkpoint(tmp_path: Path) -> None:
    found = estimate(recipe(pairs={"signal": "draft", "rule": "ordered"}), tmp_path)
    asked = {(s.stage, s.calls_for) for s in found.stages}
    assert ("align", "drafts") in asked and ("align", "choose a checkpoint") not in asked


def test_a_model_that_answers_at_once_is_not_taken_to_reason(tmp_path: Path) -> None:
    own: JsonValue = {
        "kind": "jsonl",
        "train": str(_rows(tmp_path / "a", 30)),
        "test": str(_rows(tmp_path / "b", 10, 50)),
    }
    answer: JsonValue = {"answer": {"temperature": 0.0, "max_tokens": 400}}
    thinks, says = (
        estimate(recipe(task=own, evaluate=answer, prompts={"reasons": reasons}), tmp_path / "none")
        for reasons in (True, False)
    )
    expected = [line(found, "evaluate", "strong").output_tokens.expected for found in (thinks, says)]
    assert expected[0] == expected[1] + 10 * 150


def _rows(folder: Path, n: int, first: int = 0) -> Path:
    folder.mkdir()
    rows = [{"input": f"Is {i} even?", "answer": "no" if i % 2 else "yes"} for i in range(first, first + n)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def table(*rows: str, **changes: JsonValue) -> RunConfig:
    return recipe(table={"rows": list(rows), "baseline": rows[0]}, **changes)


def test_a_table_counts_its_rows(tmp_path: Path) -> None:
    rows = ("weak_zero_shot", "weak", "strong", "strong_self_consistency", "collab", "collab_aligned")
    found = estimate_table(table(*rows), tmp_path)
    asked = {(s.calls_for, s.model): s.calls.expected for s in found.stages if s.stage == "rows"}
    assert asked == {
        ("weak_zero_shot", "lab:weak-small"): TEST,  # the same prompt as the tuned one's, put to other weights
        ("weak", "lab:weak-small"): TEST,
        ("strong", "lab:strong-tiny"): TEST,
        ("strong_self_consistency", "lab:strong-tiny"): 5 * TEST,
        ("collab", "lab:strong-tiny"): TEST,  # its drafts are those of weak, which a table remembers
        ("collab_aligned", "lab:weak-small"): TEST,
        ("collab_aligned", "lab:strong-tiny"): TEST,
    }
    assert {s.stage for s in found.stages} == {"sft", "sample", "feedback", "align", "rows"}


def test_a_table_trains_what_its_rows_need_once(tmp_path: Path) -> None:
    assert {s.stage for s in estimate_table(table("strong", "weak_zero_shot"), tmp_path).stages} == {"rows"}
    assert {s.stage for s in estimate_table(table("weak"), tmp_path).stages} == {"sft", "rows"}
    several = estimate_table(table("collab_aligned", "rlwf", "sft_positives"), tmp_path)
    assert [s.stage for s in several.stages].count("sft") == 1  # three alignments, of one SFT
    assert sum(s.training_tokens.high > 0 for s in several.stages if s.stage == "align") == 3


class Paced:
    """Reads 2,000 tokens a second and writes 200, one request after the other; answers have five tokens, prompts a hundred."""

    name = "paced"

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._turn = asyncio.Lock()

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        written = min(5, sampling.max_tokens)
        async with self._turn:
            await asyncio.sleep(100 / 2000 + (written - 1) / 200)
        self.asked.append(sampling.max_tokens)
        reason = "stop" if written == 5 else "length"
        usage = Usage(calls=1, input_tokens=100, output_tokens=written)
        return Completion(text="yes", finish_reason=reason, usage=usage)

    async def aclose(self) -> None: ...


def test_reading_and_writing_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalSource, "open", lambda *_: Paced())
    monkeypatch.setattr(measure, "_training", lambda *_: 1000.0)
    log = Log()
    found = estimate(recipe(), tmp_path / "none", log)
    assert found.here is not None and found.here.seconds is not None
    strong, weak = found.here.speeds
    assert strong.prompt_tokens_per_s == pytest.approx(2000, rel=0.2)
    assert strong.new_tokens_per_s == pytest.approx(250, rel=0.4)  # the first token comes with the reading
    assert (strong.answer_tokens, weak.answer_tokens) == (
        5,
        None,
    )  # what an untuned model writes says nothing of drafts
    assert weak.training_tokens_per_s == 1000
    sft = line(found, "sft", "60 steps")
    assert sft.seconds is not None and sft.seconds.expected == pytest.approx(
        sft.training_tokens.expected / 1000, rel=1e-2
    )
    alone = line(found, "feedback", "strong alone")
    assert alone.output_tokens.expected == 5 * QUERIES
    assert alone.seconds is not None and strong.prompt_tokens_per_s and strong.new_tokens_per_s
    assert alone.seconds.expected == pytest.approx(
        alone.input_tokens.expected / strong.prompt_tokens_per_s + 5 * QUERIES / strong.new_tokens_per_s, rel=0.05
    )
    assert found.here.seconds.expected == pytest.approx(sum(s.seconds.expected for s in found.stages if s.seconds))
    assert any("loading" in text for text in log.lines)
    assert not (tmp_path / "none").exists()


def test_what_is_missing_is_said_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalSource, "open", lambda *_: pytest.fail("a model was loaded"))
    gone: JsonValue = {"kind": "local", "model": "someone/no-such-model"}
    with pytest.raises(ModelNotFoundError, match=r"strong\.model"):
        estimate(recipe(strong=gone), tmp_path, Log())


def test_what_was_noted_goes_before_what_is_measured() -> None:
    noted = Speed(model="m", how="noted", prompt_tokens_per_s=10, new_tokens_per_s=10)
    now = Speed(model="m", how="measured", prompt_tokens_per_s=99, new_tokens_per_s=99, training_tokens_per_s=5)
    both = together({"a": noted}, {"a": now, "b": now})
    assert (both["a"].prompt_tokens_per_s, both["a"].training_tokens_per_s) == (10, 5)
    assert both["a"].how == "noted; measured" and both["b"] == now


def test_without_a_speed_the_way_to_one_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_estimate(estimate(recipe(), tmp_path))
    said = capsys.readouterr().out
    assert "Time:   not known for lab:strong-tiny, lab:weak-small: `cowest estimate RECIPE --measure`" in said
    assert "an upper bound" in said and "USD" not in said


@pytest.mark.slow
def test_a_run_notes_its_speed_and_makes_as_many_calls_as_estimated(tmp_path: Path) -> None:
    draft: JsonValue = {"samples": 3, "queries": 24, "sampling": {"temperature": 1.0, "max_tokens": 12}}
    before = estimate(recipe(draft=draft), tmp_path)
    asyncio.run(run(recipe(draft=draft), tmp_path, Log()))
    drafts = [json.loads(text)["usage"] for text in (tmp_path / "drafts.jsonl").read_text().splitlines()]
    told = line(before, "sample", "drafts")
    assert told.calls.expected == len(drafts)
    assert told.input_tokens.low * 0.9 <= sum(d["input_tokens"] for d in drafts) <= told.input_tokens.high * 1.1
    assert told.output_tokens.low <= sum(d["output_tokens"] for d in drafts) <= told.output_tokens.high
    after = estimate(recipe(draft=draft), tmp_path)
    assert after.here is not None and after.here.calls.high == after.here.training_tokens.high == 0
    assert after.here.seconds is not None and after.here.seconds.high == 0
    # Another evaluation, by the models as they are: its time is known from the stages that stand.
    short: JsonValue = {"queries": 6, "draft": {"temperature": 0.0, "max_tokens": 11}}
    rest = estimate(recipe(draft=draft, evaluate=short), tmp_path)
    assert rest.here is not None and rest.here.seconds is not None and rest.here.seconds.expected > 0
    weak = next(s for s in rest.here.speeds if s.model == "lab:weak-small")
    seconds = json.loads((tmp_path / "manifest.json").read_text())["stages"]["sample"]["seconds"]
    tokens = sum(d["input_tokens"] + d["output_tokens"] for d in drafts)
    assert weak.new_tokens_per_s == pytest.approx(tokens / seconds) and "noted by sft, sample" in weak.how
    assert weak.training_tokens_per_s is not None and weak.training_tokens_per_s > 0


@pytest.mark.slow
def test_the_command_measures_the_labs_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe().model_dump(mode="json", exclude_unset=True)))
    assert cowest_main(monkeypatch, "estimate", "recipe.yaml", "--measure", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["model"] for s in found["here"]["speeds"]] == ["lab:strong-tiny", "lab:weak-small"]
    assert all(s["prompt_tokens_per_s"] > 0 and s["new_tokens_per_s"] > 0 for s in found["here"]["speeds"])
    assert found["here"]["speeds"][1]["training_tokens_per_s"] > 0
    assert 0 < found["here"]["seconds"]["expected"] < 600
    assert not (tmp_path / "runs").exists()
