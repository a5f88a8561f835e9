"""A run whose models are both behind an endpoint: nothing is trained, every call is paid for, entered and bounded."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.batch_server import Provider
from tests.helpers import Log
from tests.paid_endpoint import PaidEndpoint, paid_recipe, records_of, reply

from cowest.errors import BudgetExceededError, ConfigError
from cowest.pipeline import RunSummary, run
from cowest.recipe.config import config_from_dict


async def _run(endpoint: PaidEndpoint, out: Path, log: Log | None = None, **changes: JsonValue) -> RunSummary:
    async with endpoint.serve() as url:
        return await run(config_from_dict(paid_recipe(url, **changes)), out, log or Log())


async def test_a_served_pair_is_run_without_training(tmp_path: Path) -> None:
    endpoint, log = PaidEndpoint(), Log()
    done = await _run(endpoint, tmp_path, log)
    assert list(done.results[""].systems) == ["weak", "strong", "collab"]
    assert list(log.verdicts) == ["sample", "feedback", "pairs", "evaluate"]
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) > 0
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert max(Counter(endpoint.answered).values()) == 1
    assert done.bill is not None
    assert done.bill.answered == len(endpoint.answered)
    used = done.results[""].systems["strong"].usage
    assert used.cost_usd == pytest.approx((used.input_tokens * 1.0 + used.output_tokens * 4.0) / 1e6)


async def test_k_drafts_are_bought_in_one_request_where_the_server_can(tmp_path: Path) -> None:
    endpoint = PaidEndpoint()
    recipe = paid_recipe("http://localhost/v1")["weak"]
    assert isinstance(recipe, dict)
    async with endpoint.serve() as url:
        weak: dict[str, JsonValue] = recipe | {"base_url": url, "samples_per_call": 3}
        await run(config_from_dict(paid_recipe(url, weak=weak)), tmp_path, Log())
    bodies = [json.loads(body) for body in endpoint.answered]
    drafting = [body for body in bodies if body["model"] == "weak" and body.get("n")]
    assert len(drafting) == 30 and {body["n"] for body in drafting} == {3}
    drafts = records_of(tmp_path)["drafts"]
    assert len(drafts) == 90
    assert len({(d["example_id"], d["text"]) for d in drafts}) == 90


async def test_a_second_run_in_another_folder_pays_nothing_when_they_share_a_ledger(tmp_path: Path) -> None:
    endpoint, ledger = PaidEndpoint(), str(tmp_path / "shared.sqlite")
    first = await _run(endpoint, tmp_path / "one", ledger=ledger)
    paid = len(endpoint.answered)
    second = await _run(endpoint, tmp_path / "two", ledger=ledger, name="again")
    assert len(endpoint.answered) == paid
    assert second.results[""].systems == first.results[""].systems
    assert second.bill is not None and second.bill.answered == 0 and second.bill.hits >= paid
    await _run(endpoint, tmp_path / "three", ledger=ledger, name="anew", cache="off")
    assert len(endpoint.answered) >= 2 * paid


@pytest.mark.parametrize(
    ("limit", "value"), [("budget_calls", 50), ("budget_tokens", 2_000), ("budget_usd", 0.002)], ids=str
)
async def test_a_budget_is_a_hard_stop_and_a_higher_one_continues(tmp_path: Path, limit: str, value: float) -> None:
    endpoint, out = PaidEndpoint(), tmp_path / "run"
    changes: dict[str, JsonValue] = {limit: value}
    short: dict[str, JsonValue] = {"feedback": {"sampling": {"max_tokens": 20}}}
    with pytest.raises(BudgetExceededError, match=rf"\d+ of \d+ done\. {limit}"):
        await _run(endpoint, out, None, **changes, **short)
    stopped = len(endpoint.answered)
    spent = {"budget_calls": stopped, "budget_tokens": 25 * stopped, "budget_usd": stopped * (20 + 5 * 4) / 1e6}[limit]
    assert 0.3 * value < spent <= value
    await _run(endpoint, out, None, **short)
    assert max(Counter(endpoint.answered).values()) == 1


async def test_a_budget_in_usd_needs_a_price(tmp_path: Path) -> None:
    endpoint = PaidEndpoint()
    nameless: dict[str, JsonValue] = {"kind": "openai", "model": "nobody-knows", "api_key_env": None}
    with pytest.raises(ConfigError, match=r"no price is known for 'nobody-knows'.*strong\.price"):
        await _run(endpoint, tmp_path, strong=nameless, budget_usd=1.0)
    assert not endpoint.answered


async def test_an_interrupted_run_waits_for_what_is_paid_for(tmp_path: Path) -> None:
    endpoint = PaidEndpoint(delay_s=0.05)
    async with endpoint.serve() as url:
        config = config_from_dict(paid_recipe(url))
        running = asyncio.ensure_future(run(config, tmp_path, Log()))
        await endpoint.after(10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        at_the_stop = len(endpoint.answered)
        await run(config, tmp_path, Log())
    assert at_the_stop < 30
    assert max(Counter(endpoint.answered).values()) == 1


async def test_feedback_through_the_batch_api(tmp_path: Path) -> None:
    provider = Provider(answer=lambda body: reply(body, 0))
    async with provider.serve() as url:
        recipe = paid_recipe(url, feedback={"mode": "batch", "sampling": {"max_tokens": 20}})
        strong = recipe["strong"]
        assert isinstance(strong, dict)
        strong |= {"batch": {"poll_s": 0.02, "discount": 0.5}}
        done = await run(config_from_dict(recipe), tmp_path, Log())
    assert len(provider.jobs) == 2, "one for the strong model alone, one for the refinements"
    assert len(records_of(tmp_path)["feedback"]) == 90
    assert done.bill is not None
    feedback = done.bill.purposes["feedback"]
    assert feedback.calls == sum(provider.answered.values())
    assert feedback.cost_usd == pytest.approx(
        feedback.calls * (10 * 1.0 + 4 * 4.0) / 1e6 / 2, abs=1e-6 * feedback.calls
    )
    assert provider.live == done.bill.answered - feedback.calls


async def test_a_judge_scores_in_place_of_the_metric(tmp_path: Path) -> None:
    endpoint = PaidEndpoint()
    judging = {"kind": "scripted", "default": '{"coherence": 9, "consistency": "4.5", "explanation": "Partly."}'}
    judged: dict[str, JsonValue] = {"sampling": {"max_tokens": 20}, "judge": judging}  # type: ignore[dict-item]
    await _run(endpoint, tmp_path, None, feedback=judged)
    scores = [row["refined"] for row in records_of(tmp_path)["feedback"]]
    assert all(isinstance(s, dict) and s["value"] == pytest.approx(0.675) for s in scores)
