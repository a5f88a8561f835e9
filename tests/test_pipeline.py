"""The loop as a whole, with a really trained (tiny) weak model and a strong one behind HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue
from tests.helpers import QUERIES, SAMPLES, Log, Oracle, run_tiny, save_tiny_model, tiny_recipe, unused_url, world

from cowest.assembly.opened import most_at_risk
from cowest.errors import ConfigError, DataError, ModelCallError, StageError, WiringError
from cowest.models.endpoint import make_app, serve
from cowest.pipeline import export_weak, report_again, run, stages_of
from cowest.recipe.config import config_from_dict
from cowest.recipe.kept import kept_recipe
from cowest.results import Results
from cowest.stages.base import checked
from cowest.types import Completion, Draft, Feedback, Message, Prediction, PreferencePair, Record, Refinement, Sampling

FEEDBACK_TOKENS = 512  # the default of feedback.sampling, which tells that stage's requests from the evaluation's
RECORDS: dict[str, type[Record]] = {
    "drafts": Draft,
    "solo": Refinement,
    "refinements": Refinement,
    "feedback": Feedback,
    "pairs": PreferencePair,
}


@dataclass(frozen=True)
class Finished:
    weak: str
    out: Path
    oracle: Oracle
    log: Log
    results: Results


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("weak"))


@pytest.fixture(scope="module")
def finished(weak: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out, oracle, log = tmp_path_factory.mktemp("runs") / "tiny", Oracle(), Log()
    done = run_tiny(weak, out, oracle, log)
    return Finished(weak, out, oracle, log, done.results[""])


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    """A finished run to change."""
    return Path(shutil.copytree(finished.out, tmp_path / "run"))


STAGES = stages_of(config_from_dict(tiny_recipe("org/model", "http://localhost:1/v1")))


def records(out: Path, name: str) -> list[dict[str, JsonValue]]:
    """The records of a file without what is measured: latency, and who paid for a shared call."""
    found = [RECORDS[name].model_validate_json(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
    return [r.model_dump(mode="json", exclude={"usage", "latency_s"}) for r in found]


def counts(out: Path, stage: str) -> dict[str, int]:
    found: dict[str, int] = json.loads((out / "manifest.json").read_text())["stages"][stage]["counts"]
    return found


# What a run leaves behind


def test_results_are_the_contract(finished: Finished) -> None:
    read = Results.model_validate_json((finished.out / "results.json").read_bytes())
    assert read == finished.results
    assert read.name == "tiny" and read.task == "medicine"
    assert list(read.systems) == ["weak", "strong", "collab", "collab_aligned"]
    for result in read.systems.values():
        assert list(result.metrics) == ["accuracy", "macro_f1"]
        for value in result.metrics.values():
            assert value.n == 12 and value.n_failed == 0
            assert value.mean is not None and value.ci_low is not None and value.ci_high is not None
            assert 0 <= value.ci_low <= value.mean <= value.ci_high <= 1
    assert {(c.a, c.b) for c in read.comparisons} >= {
        ("collab_aligned", "collab"),
        ("collab", "strong"),
        ("collab", "weak"),
    }
    assert {c.test for c in read.comparisons} == {"paired_bootstrap", "mcnemar_exact"}
    assert set(read.stages) == {"sft", "sample", "feedback", "pairs", "align", "evaluate"}


def test_the_metrics_are_those_of_the_answers(finished: Finished) -> None:
    task = world()
    for name, result in finished.results.systems.items():
        lines = (finished.out / "predictions" / f"{name}.jsonl").read_text().splitlines()
        answers = [Prediction.model_validate_json(line) for line in lines]
        right = [
            bool(p.text and p.text.rstrip().endswith(f"Answer: {e.references[0]}"))
            for e, p in zip(task.examples("test"), answers, strict=True)
        ]
        if name != "weak":  # whose garbled drafts are for the task to read
            assert result.metrics["accuracy"].mean == pytest.approx(sum(right) / len(right))
        assert all((p.draft is not None) == name.startswith("collab") for p in answers)


def test_each_record_is_there_once_and_in_order(finished: Finished) -> None:
    drafts = records(finished.out, "drafts")
    assert [d["id"] for d in drafts] == [f"train-{q:05d}#{k}" for q in range(QUERIES) for k in range(SAMPLES)]
    assert [s["example_id"] for s in records(finished.out, "solo")] == [f"train-{q:05d}" for q in range(QUERIES)]
    usable = [d["id"] for d in drafts if d["text"] is not None]
    assert [r["draft_id"] for r in records(finished.out, "refinements")] == usable
    assert [f["draft_id"] for f in records(finished.out, "feedback")] == usable
    assert not list(finished.out.rglob("*.part"))


def test_the_pairs_follow_from_the_gains(finished: Finished) -> None:
    gain = {
        f.draft_id: f.gain
        for f in map(Feedback.model_validate_json, (finished.out / "feedback.jsonl").read_text().splitlines())
    }
    texts = {(d["example_id"], d["text"]): gain[str(d["id"])] for d in records(finished.out, "drafts") if d["text"]}
    pairs = [PreferencePair.model_validate_json(x) for x in (finished.out / "pairs.jsonl").read_text().splitlines()]
    assert pairs
    for pair in pairs:
        assert texts[pair.example_id, pair.chosen[0].content] == pair.chosen_gain
        assert texts[pair.example_id, pair.rejected[0].content] == pair.rejected_gain
        assert pair.margin >= 0.05


def test_the_checkpoint_with_the_best_validation_score_was_chosen(finished: Finished) -> None:
    chosen = json.loads((finished.out / "align" / "selection.json").read_text())
    assert [c["step"] for c in chosen["checkpoints"]] == [0, 2, 4]
    best = max(c["score"] for c in chosen["checkpoints"])
    assert chosen["chosen"] == min(c["step"] for c in chosen["checkpoints"] if c["score"] == best)


def test_the_strong_model_was_asked_once_about_equal_drafts(finished: Finished) -> None:
    asked = [r for r in finished.oracle.requests if r.sampling.max_tokens == FEEDBACK_TOKENS]  # those of stage feedback
    made = counts(finished.out, "feedback")
    drafts = {(d["example_id"], d["text"]) for d in records(finished.out, "drafts") if d["text"] is not None}
    assert made["refined_by_shared_draft"] > 0
    assert len(set(asked)) == len(asked) == QUERIES + len(drafts)
    assert len(drafts) == made["refined"] - made["refined_by_shared_draft"]


def test_there_is_a_report(finished: Finished) -> None:
    assert (finished.out / "report.html").stat().st_size > 10_000


def test_the_same_seed_gives_the_same_records_and_another_seed_does_not(finished: Finished, tmp_path: Path) -> None:
    run_tiny(finished.weak, tmp_path / "again", Oracle())
    for name in RECORDS:
        assert records(tmp_path / "again", name) == records(finished.out, name)
    again = Results.model_validate_json((tmp_path / "again" / "results.json").read_bytes())
    assert again.systems == finished.results.systems and again.comparisons == finished.results.comparisons
    run_tiny(finished.weak, tmp_path / "other", Oracle(), seed=4)
    assert records(tmp_path / "other", "drafts") != records(finished.out, "drafts")


# Reuse


def test_a_second_run_reuses_all_and_calls_no_one(finished: Finished, copy: Path) -> None:
    oracle, log = Oracle(), Log()
    again = run_tiny(finished.weak, copy, oracle, log)
    assert oracle.requests == []
    assert set(log.verdicts) == {s.name for s in STAGES}
    assert all(verdict.startswith("reused") for verdict in log.verdicts.values()), log.verdicts
    assert again.results[""] == finished.results


def test_another_pairing_rule_repeats_only_what_follows_from_it(finished: Finished, copy: Path) -> None:
    oracle, log = Oracle(), Log()
    run_tiny(finished.weak, copy, oracle, log, pairs={"rule": "paper"})
    verdicts = log.verdicts
    assert [verdicts[s].partition(" ")[0] for s in ("sft", "sample", "feedback")] == ["reused"] * 3
    assert verdicts["pairs"] == "run again, because pairs.rule changed from ordered to paper"
    assert verdicts["align"] == "run again, because pairs.jsonl changed"
    assert verdicts["evaluate"] == "run again, because align changed"
    assert all(r.sampling.seed is None for r in oracle.requests)  # nothing of stage feedback was asked again
    pairs = [PreferencePair.model_validate_json(x) for x in (copy / "pairs.jsonl").read_text().splitlines()]
    assert pairs and all(p.chosen_gain > 0 >= p.rejected_gain for p in pairs)
    assert records(copy, "drafts") == records(finished.out, "drafts")


def test_where_the_strong_model_is_served_does_not_matter_but_which_it_is_does(finished: Finished, copy: Path) -> None:
    # Every run here is on another port already. Another temperature is another question:
    log = Log()
    run_tiny(finished.weak, copy, Oracle(), log, feedback={"sampling": {"temperature": 0.0, "max_tokens": 99}})
    assert log.verdicts["sample"].startswith("reused")
    because = "feedback.sampling.max_tokens changed from 512 to 99"
    assert log.verdicts["feedback"] == f"run again, because {because}"
    # Shorter answers say the same here, so that nothing after them has to be made again.
    assert log.verdicts["pairs"].startswith("reused")


def test_a_lost_file_is_made_again(finished: Finished, copy: Path) -> None:
    (copy / "pairs.jsonl").unlink()
    log = Log()
    run_tiny(finished.weak, copy, Oracle(), log)
    assert log.verdicts["pairs"] == "mended, because pairs.jsonl is gone"
    assert records(copy, "pairs") == records(finished.out, "pairs")


def test_a_damaged_record_is_made_again_and_kept_beside(finished: Finished, copy: Path) -> None:
    file = copy / "solo.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "{broken", *lines[2:]]) + "\n")
    (copy / "feedback.jsonl").unlink()
    log, oracle = Log(), Oracle()
    run_tiny(finished.weak, copy, oracle, log)
    told = "solo.jsonl is not as it was left (a line was edited, or is damaged); feedback.jsonl is gone"
    assert log.verdicts["feedback"] == f"mended, because {told}"
    assert oracle.requests == []  # the ledger has the answers
    assert "{broken" in (copy / "solo.jsonl.damaged").read_text()
    for name in RECORDS:
        assert records(copy, name) == records(finished.out, name)
    assert log.verdicts["pairs"].startswith("reused") and log.verdicts["align"].startswith("reused")


# Failures


class Overloaded(Oracle):
    """Fails at the 7th query of the feedback that it is asked alone, and at the 9th draft."""

    def __init__(self) -> None:
        super().__init__()
        self._asked = Counter[bool]()

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        drafted = "\nDraft: " in messages[-1].content
        if sampling.max_tokens == FEEDBACK_TOKENS:
            self._asked[drafted] += 1
            if self._asked[drafted] == (9 if drafted else 7):
                raise ModelCallError("overloaded", "try later")
        return await super().generate(messages, sampling)


def test_failed_calls_are_counted_make_no_label_and_are_retried(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = run_tiny(finished.weak, out, Overloaded())
    made = counts(out, "feedback")
    assert made["solo_failed"] == 1 and 1 <= made["refined_failed"] <= SAMPLES  # equal drafts share a call
    assert made["unscored"] >= SAMPLES  # all drafts of the query without a solo answer
    unscored = {f["draft_id"] for f in records(out, "feedback") if None in (f["refined"]["value"], f["solo"]["value"])}  # type: ignore[index,call-overload]
    assert len(unscored) == made["unscored"]
    labelled = {
        (p["example_id"], p[side][0]["content"])  # type: ignore[index,call-overload]
        for p in records(out, "pairs")
        for side in ("chosen", "rejected")
    }
    texts = {d["id"]: (d["example_id"], d["text"]) for d in records(out, "drafts")}
    rest = {text for identity, text in texts.items() if identity not in unscored}
    assert labelled <= rest
    assert first.results[""].stages["feedback"].counts["refined_failed"] == made["refined_failed"]

    log, oracle = Log(), Oracle()
    run_tiny(finished.weak, out, oracle, log)
    assert log.verdicts["feedback"] == f"continued, to retry {1 + made['refined_failed']} failed calls"
    assert len([r for r in oracle.requests if r.sampling.max_tokens == FEEDBACK_TOKENS]) == 2
    # What follows from the mended records is made again from them.
    assert log.verdicts["pairs"] == "run again, because feedback.jsonl changed"
    for name in RECORDS:
        assert records(out, name) == records(finished.out, name)
    results = Results.model_validate_json((out / "results.json").read_bytes())
    assert results.systems == finished.results.systems


def test_failures_in_the_evaluation_are_counted_not_scored(finished: Finished, copy: Path) -> None:
    log = Log()
    outage = [ModelCallError("overloaded", "try later")] * 3
    small: dict[str, JsonValue] = {"temperature": 0.0, "max_tokens": 13}
    evaluate: dict[str, JsonValue] = {"systems": ["strong"], "answer": small, "draft": small}
    done = run_tiny(finished.weak, copy, Oracle(fail=[*[None] * 24, *outage]), log, evaluate=evaluate, cache="off")
    value = done.results[""].systems["strong"].metrics["accuracy"]
    assert (value.n, value.n_failed) == (9, 3)
    mended = run_tiny(finished.weak, copy, Oracle(), log, evaluate=evaluate, cache="off")
    assert log.verdicts["evaluate"] == "continued, to retry 3 failed calls"
    value = mended.results[""].systems["strong"].metrics["accuracy"]
    assert (value.n, value.n_failed) == (12, 0)


def test_an_endpoint_that_is_down_stops_the_run_and_labels_nothing(finished: Finished, copy: Path) -> None:
    async def go(url: str) -> None:
        recipe = tiny_recipe(finished.weak, url, feedback={"sampling": {"temperature": 0.0, "max_tokens": 64}})
        await run(config_from_dict(recipe), copy, Log())

    began = time.monotonic()
    failed = r"(strong alone|refine drafts): the first (12|20) calls all failed"
    with unused_url() as url, pytest.raises(StageError, match=failed) as caught:
        asyncio.run(go(url))
    assert time.monotonic() - began < 20
    assert caught.value.exit_code == 1
    assert not (copy / "feedback.jsonl").exists()
    asked = [
        answer
        for name in ("solo", "refinements")
        if (copy / f"{name}.jsonl").exists()
        for answer in records(copy, name)
    ]
    assert len(asked) >= 12 and all(answer["text"] is None and answer["error"] for answer in asked)
    log = Log()  # and when it is up again, the run goes on
    done = run_tiny(finished.weak, copy, Oracle(), log, feedback={"sampling": {"temperature": 0.0, "max_tokens": 64}})
    assert log.verdicts["feedback"] == "continued where it stopped"
    assert done.results[""].systems == finished.results.systems


def test_without_contrast_there_is_nothing_to_learn_and_the_rest_is_evaluated(finished: Finished, copy: Path) -> None:
    done = run_tiny(finished.weak, copy, Oracle(), pairs={"min_margin": 3.0})
    results = done.results[""]
    assert list(results.systems) == ["weak", "strong", "collab"] and done.report.exists()
    assert "no preference pair" in results.left_out["collab_aligned"]


def test_alignment_can_be_off(finished: Finished, copy: Path) -> None:
    done = run_tiny(finished.weak, copy, Oracle(), align="off")
    assert list(done.results[""].systems) == ["weak", "strong", "collab"]
    assert "off" in done.results[""].left_out["collab_aligned"] and done.report.exists()


# kill -9


async def _killed_after(answers: int, recipe: Path, out: Path, oracle: Oracle) -> None:
    """Run the command line until ``answers`` were given, then kill -9 it."""
    oracle.hold_after = answers
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cowest", "run", str(recipe), "--out", str(out), env=env, stderr=asyncio.subprocess.PIPE
    )
    # No limit of its own, for a machine that is busy with other things; pytest's ends what stands still.
    silent, ended = asyncio.ensure_future(oracle.silent.wait()), asyncio.ensure_future(process.communicate())
    try:
        await asyncio.wait({silent, ended}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        silent.cancel()
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        _, said = await ended
    assert process.returncode == -signal.SIGKILL, said.decode()
    oracle.release()


@pytest.mark.slow
@pytest.mark.timeout(900)  # two runs with their training, one of them in a process of its own
@pytest.mark.parametrize("answers", [7, 30])  # while the strong model is asked alone; while drafts are refined
def test_a_killed_run_goes_on_where_it_was(finished: Finished, tmp_path: Path, answers: int) -> None:
    oracle, out, log = Oracle(), tmp_path / "run", Log()

    async def go() -> None:
        async with serve(make_app(oracle, model_name="strong")) as url:
            recipe = tmp_path / "recipe.yaml"
            recipe.write_text(yaml.safe_dump(tiny_recipe(finished.weak, url)))
            await _killed_after(answers, recipe, out, oracle)
            assert not (out / "feedback.jsonl").exists()
            with (out / "solo.jsonl").open("a") as file:  # the worst moment for a kill: in the middle of a line
                file.write('{"example_id": "train-000')
            await run(config_from_dict(tiny_recipe(finished.weak, url)), out, log)

    asyncio.run(go())
    assert log.verdicts["sft"].startswith("reused")
    assert log.verdicts["feedback"] == "continued where it stopped"
    for name in RECORDS:
        assert records(out, name) == records(finished.out, name)
    asked = [r for r in oracle.requests if r.sampling.max_tokens == FEEDBACK_TOKENS]
    undisturbed = [r for r in finished.oracle.requests if r.sampling.max_tokens == FEEDBACK_TOKENS]
    assert set(asked) == set(undisturbed)
    # Only what was under way at the kill, or not yet entered, was asked twice; and one of them was never answered, but held.
    assert len(asked) - len(undisturbed) <= most_at_risk(2) - 1
    assert Results.model_validate_json((out / "results.json").read_bytes()).systems == finished.results.systems


# Around a run


def test_the_report_is_made_again_without_models_or_keys(copy: Path) -> None:
    (copy / "report.html").unlink()
    config = yaml.safe_load((copy / "recipe.yaml").read_text())
    config["weak"]["model"], config["strong"]["api_key_env"] = "/no/longer/there", "COWEST_TEST_NO_SUCH_KEY"
    (copy / "recipe.yaml").write_text(yaml.safe_dump(config))
    done = asyncio.run(report_again(copy))
    assert done.report == copy / "report.html" and done.report.stat().st_size > 10_000
    assert list(done.results[""].systems) == ["weak", "strong", "collab", "collab_aligned"]


def test_the_recipe_in_a_run_directory_is_the_whole_recipe(finished: Finished) -> None:
    config = kept_recipe(finished.out)
    assert config.seed == 3 and config.draft.samples == SAMPLES and config.weak.model == finished.weak


def test_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run directory"):
        asyncio.run(report_again(tmp_path))
    with pytest.raises(ConfigError, match="aligned"):
        export_weak(tmp_path, "nonsense", tmp_path / "merged")
    with pytest.raises(ConfigError, match="no run directory"):
        export_weak(tmp_path, "sft", tmp_path / "merged")


def test_a_damaged_manifest_is_told(finished: Finished, copy: Path) -> None:
    (copy / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json: damaged"):
        run_tiny(finished.weak, copy, Oracle())


def test_damaged_results_are_told(copy: Path) -> None:
    (copy / "results.json").write_text('{"schema": 1}')
    with pytest.raises(StageError, match=r"stage evaluate .* results\.json is not as it was left"):
        asyncio.run(report_again(copy))


def test_the_weak_model_can_be_exported(finished: Finished, tmp_path: Path) -> None:
    ref = export_weak(finished.out, "aligned", tmp_path / "merged")
    assert ref.adapter is None and (tmp_path / "merged" / "config.json").exists()


def test_several_tasks_have_a_folder_each(finished: Finished, tmp_path: Path) -> None:
    task = tiny_recipe("", "")["task"]
    quick: JsonValue = {"method": "full", "max_steps": 2, "batch_size": 4, "max_length": 128, "device": "cpu"}
    done = run_tiny(
        finished.weak,
        tmp_path,
        Oracle(),
        task=None,
        tasks={"one": task, "two": task},
        sft={
            "max_steps": 60,
            "method": "full",
            "batch_size": 4,
            "learning_rate": 1e-2,
            "max_length": 128,
            "device": "cpu",
        },
        align=quick | {"checkpoints": 1},  # type: ignore[operator]
    )
    assert list(done.results) == ["one", "two"]
    assert (tmp_path / "one" / "results.json").exists() and (tmp_path / "two" / "pairs.jsonl").exists()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["tasks"]["two"]["results"] == "two/results.json"
    assert set(summary["tasks"]["one"]["systems"]) == {"weak", "strong", "collab", "collab_aligned"}


# Wiring


def test_the_stages_are_wired() -> None:
    assert [s.name for s in STAGES] == ["sft", "sample", "feedback", "pairs", "align", "evaluate"]


def test_wrong_wiring_is_found_before_anything_runs() -> None:
    with pytest.raises(WiringError, match="'sample' reads 'sft'"):
        checked(STAGES[1:])
    with pytest.raises(WiringError, match="both write 'sft'"):
        checked([STAGES[0], replace(STAGES[0], name="twice")])
