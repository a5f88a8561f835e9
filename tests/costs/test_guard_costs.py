"""The estimate of a guard: what calibration and its rows were said to cost is what the endpoint counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.guard_runs import CALIBRATION, ROWS, SAMPLES, SYSTEMS, TASK, TEST, by_model, guarded_recipe, guarded_run
from tests.helpers import tiny_recipe
from tests.paid_endpoint import PaidEndpoint

from cowest.costs.estimate import Estimate, StageEstimate, estimate
from cowest.errors import BudgetExceededError, DataError
from cowest.recipe.config import RunConfig, config_from_dict

pytest.importorskip("sklearn")
NOWHERE = "http://127.0.0.1:9/v1"


def recipe(**changes: JsonValue) -> RunConfig:
    return config_from_dict(guarded_recipe(NOWHERE, **changes))


def lines(found: Estimate, stage: str) -> dict[tuple[str, str], StageEstimate]:
    return {(s.calls_for, s.model): s for s in found.stages if s.stage == stage}


def bounds(line: StageEstimate) -> tuple[float, float, float]:
    return line.calls.low, line.calls.expected, line.calls.high


async def test_a_served_pairs_calibration_and_rows(tmp_path: Path) -> None:
    found = await asyncio.to_thread(estimate, recipe(), tmp_path)
    calibrate, n = lines(found, "calibrate"), CALIBRATION
    assert {key: bounds(line) for key, line in calibrate.items()} == {
        ("weak alone", "weak"): (n, n, n),
        ("weak samples", "weak"): (n * SAMPLES,) * 3,
        ("strong alone", "strong"): (n, n, n),
        ("refine drafts", "strong"): (n, n, n),
    }
    assert all(line.cost_usd is not None and line.cost_usd.low > 0 for line in calibrate.values())
    rows = lines(found, "evaluate")
    assert bounds(rows["guarded", "strong"]) == (0, TEST, 2 * TEST)  # between none and both ways of asking
    # A row that is the weak model alone asks what the row `weak` has asked; else for all evidence.
    assert bounds(rows["guarded", "weak"]) == (0, TEST * (1 + SAMPLES) / 2, TEST * (1 + SAMPLES))
    assert ("cascade", "weak") not in rows  # the same requests
    order = [s.stage for s in found.stages]
    assert order.index("calibrate") > max(i for i, stage in enumerate(order) if stage == "feedback")

    endpoint = PaidEndpoint(logprobs=True)
    await guarded_run(endpoint, tmp_path)
    assert found.calls.low <= len(endpoint.answered) <= found.calls.high
    weak = [s.calls for s in found.stages if s.model == "weak"]
    assert sum(r.low for r in weak) <= by_model(endpoint)["weak"] <= sum(r.high for r in weak)
    after = await asyncio.to_thread(estimate, recipe(), tmp_path)
    assert after.calls.high == 0 and lines(after, "calibrate")["refine drafts", "strong"].already == n

    more: JsonValue = {"systems": [*SYSTEMS, *ROWS], "queries": TEST, "answer": {"max_tokens": 99}}
    anew = await asyncio.to_thread(estimate, recipe(evaluate=more), tmp_path)
    assert bounds(lines(anew, "calibrate")["strong alone", "strong"])[0] == n  # asked in another way


async def test_rows_are_expected_to_ask_as_their_guard_was_seen_to(tmp_path: Path) -> None:
    from cowest.collaboration.guard.policy import Guard

    await guarded_run(PaidEndpoint(logprobs=True), tmp_path)
    guard = Guard.model_validate_json((tmp_path / "guard/guard.json").read_bytes())
    (tmp_path / "ledger.sqlite").unlink()
    (tmp_path / "predictions/guarded.jsonl").unlink()
    found = await asyncio.to_thread(estimate, recipe(), tmp_path)
    line = lines(found, "evaluate")["guarded", "strong"]
    assert line.calls.expected == round(TEST * guard.guarded.calls)
    assert not any(s.calls.high for s in found.stages if s.stage == "calibrate")


async def test_what_a_stopped_calibration_has_paid_is_taken_off(tmp_path: Path) -> None:
    endpoint = PaidEndpoint(logprobs=True)
    whole = await asyncio.to_thread(estimate, recipe(), tmp_path)
    with pytest.raises(BudgetExceededError):
        await guarded_run(endpoint, tmp_path, budget_calls=180)
    rest = await asyncio.to_thread(estimate, recipe(), tmp_path)
    assert rest.calls.high < whole.calls.high
    alone = lines(rest, "calibrate")["weak alone", "weak"]
    assert alone.calls.low + alone.already == CALIBRATION and alone.already > 0
    await guarded_run(endpoint, tmp_path)
    assert rest.calls.low <= len(endpoint.answered) - 180 <= rest.calls.high


async def test_several_samples_of_one_request_are_one_call(tmp_path: Path) -> None:
    weak = guarded_recipe(NOWHERE)["weak"]
    assert isinstance(weak, dict)
    several: JsonValue = weak | {"samples_per_call": 2}
    found = await asyncio.to_thread(estimate, recipe(weak=several, guard={"samples": 4}), tmp_path)
    line = lines(found, "calibrate")["weak samples", "weak"]
    assert bounds(line) == (2 * CALIBRATION, 2 * CALIBRATION, 4 * CALIBRATION)


@pytest.mark.parametrize(("align", "drafts"), [({"objective": "preference"}, (0, 60, 60)), ("off", None)])
def test_a_trained_weak_model_drafts_once_more_where_it_is_aligned(
    tmp_path: Path, align: JsonValue, drafts: tuple[int, int, int] | None
) -> None:
    evaluate: JsonValue = {"systems": ["weak", "strong", "guarded"]}
    changed = tiny_recipe("lab:weak", NOWHERE, task=TASK, align=align, evaluate=evaluate)
    found = estimate(config_from_dict(changed), tmp_path)
    line = lines(found, "calibrate").get(("drafts", "lab:weak"))
    assert (None if line is None else bounds(line)) == drafts


def test_without_questions_to_calibrate_on_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set task\.calibration"):
        estimate(recipe(task=TASK | {"calibration": 0}), tmp_path)
