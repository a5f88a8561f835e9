"""Several rounds: what they draft with, learn from and leave, when they end, and how they are told."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from pydantic import JsonValue
from tests.helpers import QUERIES, SAMPLES, Log, Oracle, run_tiny, save_tiny_model, tiny_recipe
from transformers import AutoModelForCausalLM, PreTrainedModel

from cowest.assembly.context import Context
from cowest.assembly.prepare import prepare
from cowest.cli.output import print_results
from cowest.costs.workload import workload
from cowest.models.chat import prompt_ids
from cowest.models.endpoint import make_app, serve
from cowest.models.local import load_tokenizer
from cowest.pipeline import RunSummary, run, stages_of
from cowest.recipe.config import config_from_dict
from cowest.results import Results
from cowest.run.manifest import StageEntry
from cowest.run.progress import QuietReporter
from cowest.run.store import JsonlFile
from cowest.run.weights import Weights
from cowest.stages.choosing import CheckpointScore, Selection
from cowest.stages.loop import begun, ended, rounds_of, taken
from cowest.table.plan import make_plan
from cowest.table.results import TableResults, pools, results_of
from cowest.table.run import open_plan, run_table
from cowest.training.drift import drift
from cowest.types import Draft, Message, ModelRef, Prediction, PreferencePair

pytestmark = pytest.mark.slow
TWO: dict[str, JsonValue] = {"most": 2, "stop": "never", "pairs": "all"}


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("weak"))


@pytest.fixture(scope="module")
def two(weak: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results, Log]:
    out, log = tmp_path_factory.mktemp("runs") / "two", Log()
    done = run_tiny(weak, out, Oracle(), log, rounds=TWO)
    return out, done.results[""], log


def drafts(path: Path) -> list[str | None]:
    return [d.text for d in JsonlFile(path, Draft).load()]


def pairs(path: Path) -> list[PreferencePair]:
    return JsonlFile(path, PreferencePair).load()


# A run of two rounds


def test_a_second_round_drafts_learns_and_is_told(two: tuple[Path, Results, Log]) -> None:
    out, results, log = two
    second = out / "round-2"
    assert sorted(p.name for p in second.iterdir()) == [
        "align", "drafts.jsonl", "drift.json", "feedback.jsonl", "pairs.jsonl", "refinements.jsonl", "solo.jsonl",
    ]  # fmt: skip
    assert len(drafts(second / "drafts.jsonl")) == QUERIES * SAMPLES
    assert drafts(second / "drafts.jsonl") != drafts(out / "drafts.jsonl")
    first, both = pairs(out / "pairs.jsonl"), pairs(second / "pairs.jsonl")
    assert first and both[-len(first) :] == first and len(both) > len(first), "its own, then those of the round before"
    one, other = results.rounds
    assert (one.number, other.number) == (1, 2)
    assert one.drift is None and other.drift is not None and other.drift.drafts > 0
    assert other.pairs == len(both) and one.pairs == len(first)
    assert 0 < other.strong_calls <= one.strong_calls - QUERIES, "the strong model alone is not asked again"
    assert one.ended is None and other.ended == "rounds.most is 2"
    assert [r.taken for r in results.rounds].count(True) == 1
    assert other.after is not None and one.after is not None and other.before == max(one.before or 0, one.after)
    assert [log.verdicts[name] for name in ("sample (round 2)", "align (round 2)")] == ["run", "run"]


def test_what_is_there_is_used_again_and_a_third_round_may_follow(
    two: tuple[Path, Results, Log], weak: str, tmp_path: Path
) -> None:
    out, log, oracle = Path(shutil.copytree(two[0], tmp_path / "run")), Log(), Oracle()
    run_tiny(weak, out, oracle, log, rounds=TWO)
    assert not oracle.requests and log.verdicts["align (round 2)"].startswith("reused")
    run_tiny(weak, out, oracle, log, rounds={**TWO, "most": 3})
    for name in ("sample", "drift", "feedback", "pairs", "align"):
        assert log.verdicts[f"{name} (round 2)"].startswith("reused")
        assert log.verdicts[f"{name} (round 3)"] == "run"
    assert log.verdicts["evaluate"].startswith("run again, because round-3/align changed")


def test_a_run_of_one_round_is_what_it_was(weak: str, tmp_path: Path) -> None:
    """So that runs of earlier versions are used as they are, and one may be continued with more rounds."""
    log = Log()
    done = run_tiny(weak, tmp_path / "run", Oracle(), log)
    assert done.results[""].rounds == [] and not (tmp_path / "run" / "round-2").exists()
    made = {
        k for e in json.loads((tmp_path / "run/manifest.json").read_text())["stages"].values() for k in e["made_with"]
    }
    assert not any(name.startswith("rounds") for name in made)
    run_tiny(weak, tmp_path / "run", Oracle(), log, rounds=TWO)
    assert log.verdicts["align"].startswith("reused") and log.verdicts["sample (round 2)"] == "run"


@pytest.mark.timeout(900)
def test_a_run_that_is_killed_in_its_second_round_goes_on(
    two: tuple[Path, Results, Log], weak: str, tmp_path: Path
) -> None:
    out, oracle, log = tmp_path / "run", Oracle(), Log()

    async def go() -> None:
        async with serve(make_app(oracle, model_name="strong")) as url:
            recipe = tiny_recipe(weak, url, rounds=TWO)
            first = config_from_dict(tiny_recipe(weak, url))
            await run(first, out, Log())
            (out / "recipe.yaml").unlink()
            path = tmp_path / "recipe.yaml"
            path.write_text(yaml.safe_dump(recipe))
            oracle.hold_after = len(oracle.requests) + 4
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "cowest", "run", str(path), "--out", str(out),
                env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            await oracle.silent.wait()
            process.send_signal(signal.SIGKILL)
            await process.wait()
            oracle.release()
            assert (out / "round-2/drafts.jsonl").exists() and not (out / "round-2/feedback.jsonl").exists()
            await run(config_from_dict(recipe), out, log)

    asyncio.run(go())
    assert log.verdicts["sample (round 2)"].startswith("reused")
    assert log.verdicts["feedback (round 2)"] == "continued where it stopped"
    assert drafts(out / "round-2/drafts.jsonl") == drafts(two[0] / "round-2/drafts.jsonl")
    assert pairs(out / "round-2/pairs.jsonl") == pairs(two[0] / "round-2/pairs.jsonl")
    results = Results.model_validate_json((out / "results.json").read_bytes())
    assert [r.after for r in results.rounds] == [r.after for r in two[1].rounds]


def test_the_estimate_counts_the_rounds_that_may_come(
    weak: str, two: tuple[Path, Results, Log], tmp_path: Path
) -> None:
    def refined(out: Path, **rounds: JsonValue) -> list[tuple[str, float, float]]:
        config = config_from_dict(tiny_recipe(weak, "http://127.0.0.1:9/v1", rounds=rounds))
        [context] = prepare(config, out, QuietReporter())
        found = [w for w in workload(context, frozenset()) if w.stage == "feedback"]
        return [(w.calls_for, w.calls.low, w.calls.high) for w in found]

    fresh = refined(tmp_path / "none", most=2)
    assert fresh[1:] == [
        ("refine drafts", fresh[1][1], QUERIES * SAMPLES),
        ("strong alone, round 2", 0, 0),
        ("refine drafts, round 2", 0, QUERIES * SAMPLES),
    ]
    assert [high for _, _, high in refined(two[0], **TWO)] == [0, 0, 0, 0]


# When it ends


def with_scores(context: Context, number: int, scores: list[float | None], skipped: str | None = None) -> None:
    """A round whose checkpoints came out so."""
    round_ = rounds_of(context.config)[number - 1]
    model = Weights(base="x", hashes={})
    found = [CheckpointScore(step=n, model=model, score=score, n=8, n_failed=0) for n, score in enumerate(scores)]
    best = max(found, key=lambda c: (-1 if c.score is None else c.score, -c.step)).step
    folder = context.path(round_.file("align"))
    folder.mkdir(parents=True)
    (folder / "selection.json").write_text(
        Selection(metric="accuracy", checkpoints=found, chosen=best, skipped=skipped).model_dump_json()
    )
    entry = StageEntry(status="done", version=1, made_with={}, inputs={}, seconds=1.0)
    context.run.record(round_.stage("align"), entry)


def looped(weak: str, out: Path, **rounds: JsonValue) -> Context:
    [context] = prepare(
        config_from_dict(tiny_recipe(weak, "http://127.0.0.1:9/v1", rounds=rounds)), out, QuietReporter()
    )
    return context


def test_it_goes_on_while_validation_rises_and_leaves_the_best_of_equals_the_earliest(
    weak: str, tmp_path: Path
) -> None:
    context = looped(weak, tmp_path, most=4)
    assert len(begun(context)) == 1
    with_scores(context, 1, [0.5, 0.6])
    assert len(begun(context)) == 2 and taken(context).round_.number == 1
    with_scores(context, 2, [0.6, 0.7])
    assert len(begun(context)) == 3 and taken(context).round_.number == 2
    with_scores(context, 3, [0.7, 0.7])
    assert len(begun(context)) == 3, "a third round without a rise is the last"
    assert ended(context, begun(context)) == "validation did not rise in round 3 (0.700, before 0.700)"
    assert taken(context).round_.number == 2


def test_it_ends_where_there_is_nothing_to_learn_from_or_the_calls_are_spent(weak: str, tmp_path: Path) -> None:
    empty = looped(weak, tmp_path / "empty", most=3, stop="never")
    with_scores(empty, 1, [None], skipped="no pairs")
    assert ended(empty, begun(empty)) == "round 1 had nothing to learn from: no pairs" and len(begun(empty)) == 1


def test_the_budget_of_strong_calls_ends_the_loop(two: tuple[Path, Results, Log], weak: str, tmp_path: Path) -> None:
    """No round begins that could take more than is left: every draft another one, the answers without a draft there already."""
    out, calls = Path(shutil.copytree(two[0], tmp_path / "run")), two[1].rounds[0].strong_calls
    most = calls + QUERIES * SAMPLES
    assert len(begun(looped(weak, out, **TWO, strong_calls=most))) == 2
    assert sum(one.strong_calls for one in two[1].rounds) <= most
    spent = looped(weak, out, **TWO, strong_calls=most - 1)
    assert len(begun(spent)) == 1
    why = ended(spent, begun(spent))
    assert (
        why == f"feedback has taken {calls} strong calls, round 2 could take 36, and rounds.strong_calls is {most - 1}"
    )


def test_the_budget_counts_the_samples_behind_an_expected_score(
    two: tuple[Path, Results, Log], weak: str, tmp_path: Path
) -> None:
    out, sampled = Path(shutil.copytree(two[0], tmp_path / "run")), {"expect": "samples", "samples": 3}
    recipe = tiny_recipe(
        weak, "http://127.0.0.1:9/v1", rounds={**TWO, "strong_calls": 100}, feedback=cast(JsonValue, sampled)
    )
    [context] = prepare(config_from_dict(recipe), out, QuietReporter())
    why = ended(context, rounds_of(context.config)[:1])
    assert why is not None and f"round 2 could take {4 * QUERIES * SAMPLES}" in why


def test_a_rise_that_no_test_shows_ends_it_where_that_is_asked_for(weak: str, tmp_path: Path) -> None:
    context = looped(weak, tmp_path, most=2, stop="test")
    with_scores(context, 1, [0.5, 0.6])
    queries = context.task.examples("validation")[:8]
    for step, right in ((0, 4), (1, 5)):
        rows = [
            Prediction(example_id=e.id, system="s", text=f"Answer: {e.references[0] if n < right else 'never'}")
            for n, e in enumerate(queries)
        ]
        context.run.file(f"align/validation/step-{step}.jsonl", Prediction).replace(rows)
    why = ended(context, begun(context))
    assert why is not None and "is not shown to be better on validation (0.600, before 0.500): p = 1" in why


def test_the_reference_is_a_setting(weak: str) -> None:
    def reads(**rounds: JsonValue) -> tuple[str, ...]:
        config = config_from_dict(tiny_recipe(weak, "http://127.0.0.1:9/v1", rounds={"most": 3, **rounds}))
        return next(s for s in stages_of(config, rounds_of(config)) if s.name == "align (round 3)").reads

    assert reads() == ("align", "round-2/align", "round-3/pairs.jsonl")
    assert reads(reference="sft") == ("sft", "round-3/pairs.jsonl")


# How far it has moved


def test_drift_is_the_mean_difference_of_log_probabilities(weak: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    model = cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(weak))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(other)
    tokenizer = load_tokenizer(ModelRef(base=weak))
    tokenizer.save_pretrained(other)
    prompt = (Message(role="user", content="Is it safe?"),)
    drafts_ = [(prompt, "yes"), (prompt, "no no")]

    def logp(folder: Any, text: str) -> tuple[float, int]:
        net = AutoModelForCausalLM.from_pretrained(folder).eval()
        head = list(prompt_ids(tokenizer, prompt))
        tail = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = torch.log_softmax(net(torch.tensor([head + tail])).logits[0].double(), -1)
        return sum(float(logits[len(head) + i - 1, t]) for i, t in enumerate(tail)), len(tail)

    gaps = [logp(other, text)[0] - logp(weak, text)[0] for _, text in drafts_]
    found = drift(ModelRef(base=str(other)), ModelRef(base=weak), drafts_, 128, "cpu")
    assert found.drafts == 2
    assert found.kl == pytest.approx(sum(gaps) / 2, abs=1e-4)
    assert found.se == pytest.approx(abs(gaps[0] - gaps[1]) / 2, abs=1e-4)
    assert found.kl_per_token == pytest.approx(sum(gaps) / sum(logp(weak, t)[1] for _, t in drafts_), abs=1e-4)
    assert drift(ModelRef(base=weak), ModelRef(base=weak), drafts_, 128, "cpu").kl == 0


# How they are told


def test_terminal_and_report_say_what_each_round_gave(
    two: tuple[Path, Results, Log], capsys: pytest.CaptureFixture[str]
) -> None:
    out, results, _ = two
    print_results(RunSummary(out, out / "report.html", {"": results}))
    said, page = capsys.readouterr().out, (out / "report.html").read_text()
    for text in (said, page):
        assert "The rounds" in text and "ended after round 2: rounds.most is 2; taken: " in text
        for one in results.rounds:
            assert f"{one.strong_calls:,}" in text and f"{one.pairs} of {one.queries_with_pairs} queries" in text


# In a table


def test_a_tables_grid_may_vary_the_rounds(weak: str, tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    rows: dict[str, JsonValue] = {
        "rows": ["strong", "collab", "collab_aligned"],
        "axis": "rounds",
        "grid": {"one": {}, "two": {"rounds.most": 2, "rounds.stop": "never"}},
    }

    async def go() -> TableResults:
        async with serve(make_app(Oracle(), model_name="strong")) as url:
            plan = make_plan(config_from_dict(tiny_recipe(weak, url, table=rows)))
            await run_table(plan, tmp_path, Log())
            return results_of(plan, pools(plan, open_plan(plan, tmp_path, Log(), offline=True)))

    found = asyncio.run(go())
    assert {name for table in found.tables for name in table.rows} == {"strong", "collab", "collab_aligned"}
    two, one = tmp_path / "seed-3/two/main", tmp_path / "seed-3/one/main"
    assert (two / "round-2/align/selection.json").exists() and not (one / "round-2").exists()
    stages = json.loads((two / "manifest.json").read_text())["stages"]
    assert set(stages["row collab_aligned"]["inputs"]) == {"align", "round-2/align"}
