"""A run at a tight max_tokens, over HTTP: alone the strong model is cut off, with a draft it answers in a word."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import Log

from cowest.cli.output import print_results
from cowest.collaboration.feedback import unscored_reasons
from cowest.models.endpoint import make_app, serve
from cowest.pipeline import RunSummary, run
from cowest.recipe.config import config_from_dict
from cowest.results import Results
from cowest.types import Completion, Feedback, Message, Prediction, Refinement, Sampling, Usage

LIMIT = 16


@dataclass
class Thinker:
    """Thinks long where there is no draft: half of the time in words, half of the time hidden."""

    name: str = "strong"
    asked: list[str] = field(default_factory=list)

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        question = messages[-1].content
        self.asked.append(question)
        number = int(question.split("number ")[1].split("?")[0])
        full = Usage(calls=1, input_tokens=20, output_tokens=sampling.max_tokens)
        if "draft" in question:
            return Completion(text="Answer: yes", usage=full.model_copy(update={"output_tokens": 4}))
        if number % 4 == 3:
            return Completion(text="Answer: yes", usage=full.model_copy(update={"output_tokens": 4}))
        text = "Let me look at the first of the" if number % 2 else "<think>\nOne could say\nAnswer: no"
        # "stop" at exactly the limit is a cut, too
        return Completion(text=text, finish_reason="length" if number % 3 else "stop", usage=full)

    async def aclose(self) -> None: ...


@dataclass
class Drafter:
    """A weak model whose drafts are short."""

    name: str = "weak"

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        return Completion(text="Answer: yes", usage=Usage(calls=1, input_tokens=20, output_tokens=4))

    async def aclose(self) -> None: ...


def recipe(folder: Path, weak: str, strong: str) -> dict[str, JsonValue]:
    for split, first in (("train", 0), ("validation", 100), ("test", 200)):
        rows = [{"input": f"Is number {first + i}?", "answer": ("yes", "no")[i % 5 == 4]} for i in range(24)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    served: dict[str, JsonValue] = {"kind": "openai", "api_key_env": None, "max_attempts": 1}
    tight: dict[str, JsonValue] = {"temperature": 0.0, "max_tokens": LIMIT}
    return {
        "name": "tight",
        "task": {"kind": "jsonl", "labels": ["yes", "no"], **files},
        "weak": served | {"model": "weak", "base_url": weak},
        "strong": served | {"model": "strong", "base_url": strong},
        "draft": {"samples": 2, "queries": 24},
        "feedback": {"sampling": tight},
        "evaluate": {"draft": tight, "answer": tight},
    }  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSummary, Log, Thinker]:
    folder, log, strong = tmp_path_factory.mktemp("tight"), Log(), Thinker()

    async def go() -> RunSummary:
        async with (
            serve(make_app(Drafter(), model_name="weak")) as weak,
            serve(make_app(strong, model_name="strong")) as url,
        ):
            return await run(config_from_dict(recipe(folder, weak, url)), folder / "run", log)

    return asyncio.run(go()), log, strong


def test_cut_off_answers_are_counted_by_system_and_are_neither_right_nor_wrong(
    ran: tuple[RunSummary, Log, Thinker],
) -> None:
    results = ran[0].results[""]
    strong, collab = (results.systems[name].metrics["accuracy"] for name in ("strong", "collab"))
    assert (strong.n, strong.n_failed, strong.n_cut) == (6, 0, 18)
    assert (collab.n, collab.n_failed, collab.n_cut, collab.mean_cut_wrong) == (24, 0, 0, None)
    assert collab.mean == pytest.approx(20 / 24) and strong.mean is not None and strong.mean_cut_wrong is not None
    assert strong.mean_cut_wrong == pytest.approx(strong.mean * 6 / 24)
    (found, _) = [c for c in results.comparisons if c.metric == "accuracy" and {c.a, c.b} == {"collab", "strong"}]
    assert (found.n, found.a_cut, found.b_cut, found.diff) == (6, 0, 18, 0.0), "the limit is no difference"


def test_results_json_has_the_counts_of_every_stage(ran: tuple[RunSummary, Log, Thinker]) -> None:
    out = ran[0].out
    results = Results.model_validate_json((out / "results.json").read_bytes())
    manifest = json.loads((out / "manifest.json").read_text())["stages"]
    assert {name: s.counts for name, s in results.stages.items()} == {name: s["counts"] for name, s in manifest.items()}
    counts = results.stages["evaluate"].counts
    assert (counts["strong_cut_off"], counts["strong_failed"], counts["collab_cut_off"]) == (18, 0, 0)
    assert results.stages["evaluate"].seconds > 0


def test_the_run_warns_at_the_first_batch_and_names_the_setting(ran: tuple[RunSummary, Log, Thinker]) -> None:
    warnings = [line for line in ran[1].lines if "warning" in line]
    assert len(warnings) == 6 and "no row collab_aligned: " in warnings[5]
    assert "strong alone" in warnings[0] and "raise feedback.sampling.max_tokens" in warnings[0]
    assert "evaluate strong" in warnings[3] and "raise evaluate.answer.max_tokens" in warnings[3]


def test_what_cannot_be_compared_is_said_with_the_side_that_was_cut_off(ran: tuple[RunSummary, Log, Thinker]) -> None:
    warnings = [line for line in ran[1].lines if "warning" in line]
    cut = "18 of 24 queries cannot be scored: cut off before an answer, with the draft 0, alone 18. Raise "
    assert warnings[1].startswith(f"refine drafts: warning: {cut}feedback.sampling.max_tokens from 16 to 32 or more")
    assert warnings[4].startswith(f"evaluate collab: warning: {cut}evaluate.answer.max_tokens from 16 to 32 or more")
    assert warnings[2].startswith("pairs: warning: 36 of 48 drafts are unscored and make no pair (cut off 36; ")
    assert "alone is missing for 36, the one with the draft for 0" in warnings[2]
    assert "raise feedback.sampling.max_tokens from 16 to 32 or more" in warnings[2]
    page = ran[0].report.read_text(encoding="utf-8")
    assert "before an answer: cut off 36" in page


def test_terminal_and_report_say_it(ran: tuple[RunSummary, Log, Thinker], capsys: pytest.CaptureFixture[str]) -> None:
    print_results(ran[0])
    printed = " ".join(capsys.readouterr().out.split())
    assert "failed ┃ cut" in printed
    assert "strong: 18 cut off before an answer, left out of the mean; counted as wrong, accuracy is" in printed
    assert "cut off at max_tokens before an answer, and left out: collab 0, strong 18" in printed
    page = ran[0].report.read_text(encoding="utf-8")
    assert "Cut off</th>" in page and "left out: collab 0, strong 18" in page


def test_what_was_hidden_is_in_the_records_and_nothing_is_asked_twice(ran: tuple[RunSummary, Log, Thinker]) -> None:
    out = ran[0].out
    lines = (out / "predictions" / "strong.jsonl").read_text(encoding="utf-8").splitlines()
    hidden = [p for p in map(Prediction.model_validate_json, lines) if p.text is None]
    assert len(hidden) == 12 and all(p.thinking and p.truncated and p.error is None for p in hidden)
    solos = [Refinement.model_validate_json(x) for x in (out / "solo.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum(s.text is None and s.truncated for s in solos) == 12
    assert len(ran[2].asked) == len(set(ran[2].asked)), "a text that was cut off is no failure to be tried again"


def test_feedback_says_why_drafts_have_no_gain(ran: tuple[RunSummary, Log, Thinker]) -> None:
    lines = (ran[0].out / "feedback.jsonl").read_text(encoding="utf-8").splitlines()
    records = [Feedback.model_validate_json(line) for line in lines]
    assert unscored_reasons(records) == {"cut off": 2 * 18}
    reasons = {r.solo.error for r in records if r.gain is None}
    assert reasons == {f"cut off at max_tokens {LIMIT} before an answer"}
