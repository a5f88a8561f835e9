"""A run whose strong model answers "no" to every draft: said early, in terminal, manifest, results and report, or it stops."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import Log

from cowest.api import run
from cowest.cli.output import print_results
from cowest.errors import StageError
from cowest.pipeline import RunSummary
from cowest.results import Results
from cowest.run.manifest import Manifest
from cowest.stages.draft_watch import FIRST
from cowest.types import Completion, Message, Prediction, Refinement, Sampling, Usage

QUERIES = 60


def right(number: int) -> str:
    return "yes" if number % 3 else "no"


class Weak:
    """Drafts what is right, but for every fourth query."""

    name = "weak"

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        number = int(messages[-1].content.split("number ")[1].split("?")[0])
        said = right(number) if number % 4 else {"yes": "no", "no": "yes"}[right(number)]
        return Completion(text=f"I think so.\nAnswer: {said}", usage=Usage(calls=1))

    async def aclose(self) -> None: ...


class Naysayer:
    """Right alone; with a draft it says "no". Answers one call after the other, as a server with one place does."""

    name = "strong"

    def __init__(self) -> None:
        self.with_draft: list[str] = []
        self._one: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        asked = messages[-1].content
        number = int(asked.split("number ")[1].split("?")[0])
        async with self._one.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            await asyncio.sleep(0)
            if "<draft>" in asked:
                self.with_draft.append(asked)
                return Completion(text="Answer: no", usage=Usage(calls=1))
        return Completion(text=f"Answer: {right(number)}", usage=Usage(calls=1))

    async def aclose(self) -> None: ...


def go(folder: Path, strong: Naysayer, log: Log, **watch: JsonValue) -> RunSummary:
    for split, first in (("train", 0), ("validation", 100), ("test", 200)):
        rows = [{"input": f"Is number {first + i}?", "answer": right(first + i)} for i in range(QUERIES)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    recipe: dict[str, JsonValue] = {
        "name": "no",
        "task": {"kind": "jsonl", "labels": ["yes", "no"], **files},
        "draft": {"samples": 3},
        "feedback": {"watch": watch.get("feedback", "warn")},
        "evaluate": {"watch": watch.get("evaluate", "warn")},
    }
    return asyncio.run(run(recipe, folder / "run", reporter=log, weak=Weak(), strong=strong))


@pytest.fixture(scope="module")
def warned(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSummary, Log]:
    log = Log()
    return go(tmp_path_factory.mktemp("warned"), Naysayer(), log), log


def test_the_run_goes_on_and_says_it_while_it_runs(warned: tuple[RunSummary, Log]) -> None:
    said = [line for line in warned[1].lines if "warning: with a draft the strong model says" in line]
    assert len(said) == 2
    assert (
        said[0].startswith("refine drafts: ") and "36 of 36 times (right 12 of 36 times, alone it says so 12" in said[0]
    )
    assert said[1].startswith("evaluate collab: ")
    assert "right \"yes\", draft" in said[0] and "feedback.watch: stop does so by itself" in said[0]  # fmt: skip


def test_manifest_results_terminal_and_report_say_it_again(
    warned: tuple[RunSummary, Log], capsys: pytest.CaptureFixture[str]
) -> None:
    done = warned[0]
    manifest = Manifest.model_validate_json((done.out / "manifest.json").read_bytes())
    results = Results.model_validate_json((done.out / "results.json").read_bytes())
    (said,) = manifest.stages["feedback"].warnings
    assert results.stages["feedback"].warnings == (said,) and 'says "no" 36 of 36 times' in said
    (of_collab,) = results.stages["evaluate"].warnings
    assert of_collab.startswith("collab: with a draft the strong model says")
    print_results(done)
    printed = " ".join(capsys.readouterr().out.split())
    assert 'warning: feedback: with a draft the strong model says "no" 36 of 36 times' in printed
    page = done.report.read_text(encoding="utf-8")
    assert "Warning, feedback" in page and "says &#34;no&#34; 36 of 36 times" in page


def test_what_it_does_with_drafts_is_in_the_results(
    warned: tuple[RunSummary, Log], capsys: pytest.CaptureFixture[str]
) -> None:
    found = warned[0].results[""].systems["collab"].uptake
    assert found is not None and found.solo is not None and found.drafts == QUERIES
    tests = range(200, 200 + QUERIES)
    drafts_no = sum((right(i) == "no") == bool(i % 4) for i in tests)
    assert (found.copied.n, found.copied.of) == (drafts_no, QUERIES)
    assert (found.solo.spoils.n, found.solo.spoils.of) == (sum(right(i) == "yes" for i in tests), QUERIES)
    assert found.solo.helps.of == 0 and warned[0].results[""].systems["strong"].uptake is None
    print_results(warned[0])
    printed = capsys.readouterr().out
    assert "What the strong model does with a draft" in printed and f"{drafts_no}/{QUERIES}" in printed


def test_pairs_say_how_many_queries_had_a_contrast(warned: tuple[RunSummary, Log]) -> None:
    (said,) = [line for line in warned[1].lines if line.startswith("pairs: 0 pairs")]
    assert "0 pairs from 0 of 60 queries (without: 60: all their drafts are the same text)" in said
    counts = warned[0].results[""].stages["pairs"].counts
    assert counts["no_contrast_equal_drafts"] == counts["queries_without_contrast"] == QUERIES


def test_stop_ends_while_there_is_money_and_the_same_command_loses_nothing(tmp_path: Path) -> None:
    strong, log = Naysayer(), Log()
    with pytest.raises(
        StageError, match=r"refine drafts: stopped by feedback.watch: stop. .*--set feedback.watch=warn"
    ):
        go(tmp_path, strong, log, feedback="stop")
    lost = len(strong.with_draft) - FIRST  # what was under way
    assert lost in (0, 1) and len(set(strong.with_draft)) == FIRST + lost, "of 60 queries with 3 drafts each"
    solos, kept = (
        [Refinement.model_validate_json(line) for line in (tmp_path / "run" / name).read_bytes().splitlines()]
        for name in ("solo.jsonl", "refinements.jsonl")
    )
    assert FIRST <= len({r.example_id for r in kept}) <= FIRST + lost
    assert FIRST <= len(solos) <= FIRST + 2, "nothing is asked ahead"
    with pytest.raises(StageError, match=r"stopped by feedback\.watch"):
        go(tmp_path, strong, log, feedback="stop")
    assert len(strong.with_draft) == FIRST + lost, "what is there is looked at before anything is asked"
    with pytest.raises(StageError, match=r"evaluate collab: stopped by evaluate.watch: stop"):
        go(tmp_path, strong, log, evaluate="stop")
    lost = len(strong.with_draft) - QUERIES - FIRST
    assert 0 <= lost <= 3
    done = go(tmp_path, strong, log)
    rows = (done.out / "predictions" / "collab.jsonl").read_text(encoding="utf-8").splitlines()
    assert len({Prediction.model_validate_json(row).example_id for row in rows}) == QUERIES
    assert len(set(strong.with_draft)) == 2 * QUERIES and len(strong.with_draft) <= 2 * QUERIES + lost


def test_off_says_nothing(tmp_path: Path) -> None:
    log = Log()
    done = go(tmp_path, Naysayer(), log, feedback="off", evaluate="off")
    assert not [line for line in log.lines if "with a draft" in line]
    assert not any(stage.warnings for stage in done.results[""].stages.values())
