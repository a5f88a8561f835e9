"""`cowest run` with the rows of a guard: what is made when, by which models, and that nothing is paid twice."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue
from tests.guard_runs import CALIBRATION, ROWS, SAMPLES, SYSTEMS, TASK, TEST, by_model, guarded_recipe, guarded_run
from tests.helpers import WORLD, Log, Oracle, run_tiny, save_tiny_model, tiny_recipe
from tests.paid_endpoint import CONCURRENCY, PaidEndpoint

from cowest.assembly.opened import most_at_risk
from cowest.collaboration.guard.evidence import Answered
from cowest.collaboration.guard.policy import Guard
from cowest.errors import BudgetExceededError, ConfigError, DataError, StageError
from cowest.lab.task import lab_task
from cowest.ledger.summary import summarise_ledger
from cowest.recipe.config import LabTaskConfig
from cowest.run.store import JsonlFile
from cowest.types import Prediction


def guard_in(run: Path) -> Guard:
    return Guard.model_validate_json((run / "guard/guard.json").read_bytes())


def paid_for(out: Path, purpose: str) -> dict[str, int]:
    """Calls by model of one purpose, as the ledger has them."""
    lines = summarise_ledger(out / "ledger.sqlite").by_purpose_and_model()
    return {model: line.calls for (what, model), line in lines.items() if what == purpose}


async def test_a_served_pair_calibrates_certifies_and_answers(tmp_path: Path) -> None:
    endpoint, log = PaidEndpoint(logprobs=True), Log()
    done = await guarded_run(endpoint, tmp_path, log)
    assert list(log.verdicts)[:6] == ["sample", "feedback", "pairs", "calibrate", "guard", "evaluate"]
    assert list(done.results[""].systems) == [*SYSTEMS, *ROWS]
    assert (guard_in(tmp_path).weak, guard_in(tmp_path).drafter) == ("base", "base")
    assert paid_for(tmp_path, "calibrate") == {"weak": CALIBRATION * (1 + SAMPLES), "strong": 2 * CALIBRATION}
    rows = JsonlFile(tmp_path / "guard/calibration.jsonl", Answered).load()
    assert len(rows) == CALIBRATION and all(set(row.scores) == {"weak", "strong", "both"} for row in rows)
    assert all(row.evidence and row.evidence.arms["weak"].confidence for row in rows)
    for name in ROWS:
        made = JsonlFile(tmp_path / f"predictions/{name}.jsonl", Prediction).load()
        assert len(made) == TEST and all(p.route is not None for p in made)
    assert max(Counter(endpoint.answered).values()) == 1

    paid, again = len(endpoint.answered), Log()
    await guarded_run(endpoint, tmp_path, again)
    assert len(endpoint.answered) == paid
    assert all(why.startswith("reused") for why in again.verdicts.values())


async def test_another_risk_certifies_and_answers_anew_and_calibrates_nothing(tmp_path: Path) -> None:
    endpoint = PaidEndpoint(logprobs=True)
    await guarded_run(endpoint, tmp_path, guard={"risk": 0.02, "samples": SAMPLES})
    assert not guard_in(tmp_path).promised  # too few queries: both rows are the better model alone
    calibrated, log = paid_for(tmp_path, "calibrate"), Log()
    await guarded_run(endpoint, tmp_path, log, guard={"risk": 0.03, "samples": SAMPLES})
    assert log.verdicts["calibrate"].startswith("reused")
    assert "guard: run again, because guard.risk changed from 0.02 to 0.03" in log.lines
    assert log.verdicts["evaluate"] == "run again, because guard/guard.json changed"
    assert paid_for(tmp_path, "calibrate") == calibrated
    assert guard_in(tmp_path).risk == 0.03
    paid = len(endpoint.answered)
    await guarded_run(endpoint, tmp_path, log, guard={"risk": 0.9, "samples": SAMPLES})
    assert guard_in(tmp_path).promised and max(Counter(endpoint.answered).values()) == 1
    new = [json.loads(body) for body in endpoint.answered[paid:]]
    assert len(new) <= 2 * TEST and {body["model"] for body in new} <= {"strong"}  # of the rows: no query is calibrated


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"prompts": {"draft": "{input}", "solo": "Well: {input}", "refine": "{input}\nDraft: {draft}"}}, "prompt"),
        ({"guard": {"risk": 0.2, "samples": 3}}, "guard.samples changed from 2 to 3"),
        ({"guard": {"risk": 0.2, "samples": 2, "confidence": False}}, "guard.confidence changed from True to False"),
    ],
)
async def test_what_the_answers_follow_from_calibrates_again(
    tmp_path: Path, changes: dict[str, JsonValue], why: str
) -> None:
    endpoint, log = PaidEndpoint(logprobs=True), Log()
    await guarded_run(endpoint, tmp_path)
    await guarded_run(endpoint, tmp_path, log, **changes)
    assert log.verdicts["calibrate"].startswith("run again, because") and why in log.verdicts["calibrate"]
    assert max(Counter(endpoint.answered).values()) == 1


async def test_another_strong_model_calibrates_again(tmp_path: Path) -> None:
    endpoint, log = PaidEndpoint(logprobs=True), Log()
    await guarded_run(endpoint, tmp_path)
    strong = guarded_recipe("")["strong"]
    assert isinstance(strong, dict)
    async with endpoint.serve() as url:
        other: JsonValue = strong | {"model": "stronger", "base_url": url}
        from cowest.pipeline import run
        from cowest.recipe.config import config_from_dict

        await run(config_from_dict(guarded_recipe(url, strong=other)), tmp_path, log)
    assert "strong.model changed from strong to stronger" in log.verdicts["calibrate"]
    assert paid_for(tmp_path, "calibrate")["stronger"] == 2 * CALIBRATION
    assert paid_for(tmp_path, "calibrate")["weak"] == CALIBRATION * (1 + SAMPLES)  # asked once


async def test_a_budget_stops_in_calibrate_and_nothing_is_paid_twice(tmp_path: Path) -> None:
    endpoint, log = PaidEndpoint(logprobs=True), Log()
    with pytest.raises(BudgetExceededError, match=r"calibrate: \d+ of 60 done"):
        await guarded_run(endpoint, tmp_path, budget_calls=180)
    assert len(endpoint.answered) == 180
    await guarded_run(endpoint, tmp_path, log)
    assert log.verdicts["calibrate"] == "continued where it stopped"
    assert max(Counter(endpoint.answered).values()) == 1
    assert paid_for(tmp_path, "calibrate")["strong"] == 2 * CALIBRATION


@pytest.mark.slow
async def test_a_kill_in_calibrate_pays_twice_at_most_what_was_under_way(tmp_path: Path) -> None:
    endpoint, recipe, out = PaidEndpoint(logprobs=True), tmp_path / "recipe.yaml", tmp_path / "run"

    async def started() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cowest", "run", str(recipe), "--out", str(out)),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )

    async with endpoint.serve() as url:
        recipe.write_text(yaml.safe_dump(guarded_recipe(url)))
        process = await started()
        await asyncio.wait_for(endpoint.after(200), 120)
        process.send_signal(signal.SIGKILL)
        await process.communicate()
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["stages"]["calibrate"]["status"] == "running"
        process = await started()
        _, said = await process.communicate()
        assert process.returncode == 0, said.decode()
    for model in ("weak", "strong"):  # both are asked at that time, each with its own calls under way
        asked = [body for body in endpoint.answered if json.loads(body)["model"] == model]
        assert len(asked) - len(set(asked)) <= most_at_risk(CONCURRENCY), model
    assert len(JsonlFile(out / "guard/calibration.jsonl", Answered).load()) == CALIBRATION


async def test_a_weak_model_without_logprobs_stops_before_the_strong_one_is_calibrated(tmp_path: Path) -> None:
    endpoint = PaidEndpoint()
    with pytest.raises(
        StageError, match=r"calibrate: .*no_logprobs: weak gives no log-probabilities.*guard\.confidence"
    ):
        await guarded_run(endpoint, tmp_path)
    assert "strong" not in paid_for(tmp_path, "calibrate")
    assert paid_for(tmp_path, "calibrate")["weak"] <= CALIBRATION
    by_samples: JsonValue = {"risk": 0.2, "samples": 2, "confidence": False}
    done = await guarded_run(endpoint, tmp_path, guard=by_samples)
    assert set(ROWS) < set(done.results[""].systems)
    rows = JsonlFile(tmp_path / "guard/calibration.jsonl", Answered).load()
    assert all(row.evidence and row.evidence.agreement is not None for row in rows)
    # They ask for what the other systems ask: those answers are not paid for again.
    assert (
        max(Counter(endpoint.answered).values()) == 1
        and by_model(endpoint)["strong"] <= 2 * (CALIBRATION + TEST + 4) + 8
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"task": TASK | {"calibration": 0}}, DataError, "8 questions are left to calibrate on .* set task.calibration"),
        ({"task": TASK | {"calibration": 20}}, DataError, "20 questions are left to calibrate on"),
        ({"guard": {"queries": 30}}, DataError, "30 questions are left to calibrate on"),
        ({"feedback": {"judge": {"kind": "openai", "model": "judge", "api_key_env": None}}}, ConfigError, "judged"),
    ],
)  # fmt: skip
async def test_a_run_that_can_have_no_guard_is_refused_before_anything_is_paid(
    tmp_path: Path, changes: dict[str, JsonValue], error: type[Exception], message: str
) -> None:
    endpoint = PaidEndpoint(logprobs=True)
    with pytest.raises(error, match=message):
        await guarded_run(endpoint, tmp_path, None, **changes)
    assert not endpoint.answered and not (tmp_path / "recipe.yaml").exists()


# Trained weak models

SIZES: dict[str, JsonValue] = {"train": 100, "validation": 8, "test": TEST}


def oracle() -> Oracle:
    """One who knows the larger world, too."""
    task = lab_task(LabTaskConfig.model_validate(WORLD | SIZES), seed=0)
    return Oracle(more={e.input: e.references[0] for split in SIZES for e in task.examples(split)})


def changed(**changes: JsonValue) -> dict[str, JsonValue]:
    base = tiny_recipe("", "")
    evaluate = base["evaluate"]
    assert isinstance(evaluate, dict)
    systems: list[JsonValue] = ["weak", "strong", "collab", "collab_aligned", *ROWS]
    found: dict[str, JsonValue] = {"task": TASK, "evaluate": evaluate | {"systems": systems}, "guard": {"risk": 0.2}}
    return found | changes


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("weak"))


@pytest.fixture(scope="module")
def trained(weak: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Log, Oracle]:
    out, log, strong = tmp_path_factory.mktemp("runs") / "tiny", Log(), oracle()
    run_tiny(weak, out, strong, log, **changed())
    return out, log, strong


@pytest.mark.slow
def test_the_aligned_model_drafts_and_the_tuned_one_answers(trained: tuple[Path, Log, Oracle]) -> None:
    out, log, _ = trained
    names = list(log.verdicts)
    assert names.index("align") < names.index("calibrate") < names.index("guard") < names.index("evaluate")
    chosen = json.loads((out / "align/selection.json").read_text())["chosen"]
    assert (guard_in(out).weak, guard_in(out).drafter) == ("sft", "aligned" if chosen else "sft")
    assert paid_for(out, "calibrate")["strong"] == 2 * CALIBRATION


@pytest.mark.slow
@pytest.mark.parametrize("how", ["off", "skipped"])
def test_without_an_aligned_model_the_tuned_one_drafts(
    trained: tuple[Path, Log, Oracle], weak: str, tmp_path: Path, how: str
) -> None:
    out, log, strong = Path(shutil.copytree(trained[0], tmp_path / "run")), Log(), oracle()
    draft: dict[str, JsonValue] = {"samples": 2, "queries": 4, "sampling": {"temperature": 0.0, "max_tokens": 12}}
    changes: dict[str, JsonValue] = {"align": "off"} if how == "off" else {"draft": draft}
    done = run_tiny(weak, out, strong, log, **changed(**changes))
    assert log.verdicts["sft"].startswith("reused")
    assert (guard_in(out).weak, guard_in(out).drafter) == ("sft", "sft")
    assert "collab_aligned" in done.results[""].left_out and set(ROWS) < set(done.results[""].systems)
    assert log.verdicts["calibrate"].startswith("run again, because")
    if how == "off":  # the drafts of the calibration queries are other ones only where the aligned model was another
        assert len([r for r in strong.requests if "\nDraft: " not in r.messages[-1].content]) == 0
