"""The estimate against real runs: what it promised is what the endpoint counted."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests import paid_endpoint
from tests.helpers import QUERIES, SAMPLES, Log, Oracle, run_tiny, save_tiny_model, tiny_recipe
from tests.paid_endpoint import PaidEndpoint, paid_recipe

from cowest.assembly.places import LAB_WEIGHTS
from cowest.cli.starter import write_starter
from cowest.costs.estimate import Estimate, StageEstimate, estimate
from cowest.errors import BudgetExceededError, ConfigError
from cowest.models.tokens import approximate_tokens, prompt_tokens, token_counter
from cowest.pipeline import run
from cowest.recipe.config import RunConfig, config_from_dict, load_config
from cowest.types import Message

NOWHERE = "http://127.0.0.1:9/v1"


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("weak"))


@pytest.fixture
def starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real pair of ``cowest init``; there is no key."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    write_starter(tmp_path / "mine")
    return tmp_path / "mine" / "real-pair.yaml"


def of(found: Estimate, calls_for: str) -> StageEstimate:
    (line,) = [s for s in found.stages if s.calls_for == calls_for]
    return line


def calls(found: Estimate) -> dict[str, tuple[float, float, float]]:
    return {s.calls_for: (s.calls.low, s.calls.expected, s.calls.high) for s in found.stages}


def paid_config(**changes: JsonValue) -> RunConfig:
    return config_from_dict(paid_recipe(NOWHERE, **changes))


async def paid_run(endpoint: PaidEndpoint, out: Path, **changes: JsonValue) -> None:
    async with endpoint.serve() as url:
        await run(config_from_dict(paid_recipe(url, **changes)), out, Log())


def test_the_starters_real_pair_by_hand(starter: Path, tmp_path: Path) -> None:
    config = load_config(starter, ["draft.queries=100", "evaluate.queries=50"])
    found = estimate(config, tmp_path / "none")
    assert {s.calls_for: (s.calls.low, s.calls.expected, s.calls.high) for s in found.stages if s.paid} == {
        "strong alone": (100, 100, 100),
        "refine drafts": (100, 400, 400),
        "choose a checkpoint": (100, 500, 500),
        "strong": (50, 50, 50),
        "collab": (50, 50, 50),
        "collab_aligned": (0, 50, 50),
    }
    line = of(found, "refine drafts")
    assert line.output_tokens.high == 400 * 512  # feedback.sampling.max_tokens
    assert line.cost_usd is not None
    for bound in ("low", "expected", "high"):
        tokens_in, tokens_out = getattr(line.input_tokens, bound), getattr(line.output_tokens, bound)
        assert getattr(line.cost_usd, bound) == pytest.approx((tokens_in * 2.0 + tokens_out * 10.0) / 1e6, rel=1e-3)
    assert found.cost_usd is not None
    assert found.cost_usd.high == pytest.approx(sum(s.cost_usd.high for s in found.stages if s.cost_usd))
    assert found.cost_usd.low < found.cost_usd.expected < found.cost_usd.high
    assert not (tmp_path / "none").exists()


def test_prompts_are_the_recipes_own(starter: Path, tmp_path: Path) -> None:
    short = load_config(starter, ["draft.queries=10", "prompts.solo='{input}'"])
    long = load_config(starter, ["draft.queries=10", f"prompts.solo='{'x' * 4000}{{input}}'"])
    before, after = (of(estimate(c, tmp_path / "none"), "strong alone").input_tokens.expected for c in (short, long))
    assert after - before == pytest.approx(10 * 1000, rel=0.01)


def test_an_unknown_price_is_said_and_never_zero(starter: Path, tmp_path: Path) -> None:
    config = load_config(starter, ["strong.model=nobody-knows", "budget_usd=5"])
    found = estimate(config, tmp_path / "none")
    assert found.cost_usd is None and found.unpriced_models == ["nobody-knows"]
    assert all(s.cost_usd is None and s.input_tokens.low >= 0 for s in found.stages if s.paid)
    assert found.tokens.expected > 0
    (fit,) = found.budgets
    assert (fit.low, fit.expected, fit.high) == (None, None, None)


def test_a_batch_costs_half_in_the_feedback_alone(starter: Path, tmp_path: Path) -> None:
    live = estimate(load_config(starter), tmp_path / "none")
    batch = estimate(load_config(starter, ["feedback.mode=batch"]), tmp_path / "none")
    for before, after in zip(live.stages, batch.stages, strict=True):
        assert before.cost_usd is not None and after.cost_usd is not None
        share = 0.5 if before.stage == "feedback" else 1.0
        assert after.cost_usd.high == pytest.approx(share * before.cost_usd.high)
        assert after.batch is (before.stage == "feedback")


@pytest.mark.parametrize(
    ("setting", "seconds"),
    [
        ("strong.concurrency=1", 50 * (0.5 + 512 / 50)),
        ("strong.concurrency=10", 5 * (0.5 + 512 / 50)),
        ("strong.requests_per_minute=2", 50 * 30.0),
    ],
)
def test_time_at_the_configured_limits(starter: Path, tmp_path: Path, setting: str, seconds: float) -> None:
    config = load_config(starter, ["evaluate.queries=50", setting])
    time = of(estimate(config, tmp_path / "none"), "strong").seconds
    assert time is not None and time.high == pytest.approx(seconds)


def test_tokens_per_minute_bound_the_time(starter: Path, tmp_path: Path) -> None:
    config = load_config(starter, ["evaluate.queries=50", "strong.tokens_per_minute=1000"])
    line = of(estimate(config, tmp_path / "none"), "strong")
    assert line.seconds is not None
    assert line.seconds.high == pytest.approx(60 * (line.input_tokens.high + line.output_tokens.high) / 1000, rel=0.01)


def test_a_strong_model_that_runs_here_costs_nothing(starter: Path, tmp_path: Path) -> None:
    found = estimate(load_config(starter.with_name("recipe.yaml")), tmp_path / "none")
    assert of(found, "strong alone").calls.expected == 266  # a third of the 800 training questions
    assert all(not s.paid and s.cost_usd is not None and s.cost_usd.high == 0 for s in found.stages)
    assert (found.calls.high, found.tokens.high) == (0, 0)


def test_a_judge_reads_every_text_of_a_query(starter: Path, tmp_path: Path) -> None:
    judge = "feedback.judge={kind: openai, model: gpt-6-luna}"
    found = estimate(load_config(starter, ["draft.queries=100", judge]), tmp_path / "none")
    line = of(found, "judge")
    assert (line.calls.low, line.calls.expected, line.calls.high) == (100, 900, 1800)
    assert line.input_tokens.expected > 900 * 150  # its instruction, the schema, question, reference and answer
    assert line.cost_usd is not None
    assert line.cost_usd.high == pytest.approx(
        (line.input_tokens.high * 0.10 + line.output_tokens.high * 0.50) / 1e6, rel=1e-3
    )


@pytest.mark.parametrize("cache", ["read", "refresh", "off"])
async def test_a_served_pair_makes_as_many_calls_as_estimated(tmp_path: Path, cache: str) -> None:
    endpoint = PaidEndpoint()
    found = await asyncio.to_thread(estimate, paid_config(cache=cache), tmp_path)
    await paid_run(endpoint, tmp_path, cache=cache)
    made = [json.loads(body) for body in endpoint.answered]
    assert found.calls.low <= len(made) <= found.calls.high
    drafting = [body for body in made if body["model"] == "weak"]
    drafts = [s.calls for s in found.stages if s.calls_for == "drafts"]
    assert sum(r.low for r in drafts) <= len(drafting) <= sum(r.high for r in drafts)
    assert cache == "refresh" or len(drafting) == sum(r.expected for r in drafts)
    after = await asyncio.to_thread(estimate, paid_config(cache=cache), tmp_path)
    assert after.calls.high == 0
    assert after.already >= (len(made) if cache == "read" else 1)


async def test_several_samples_in_one_request_are_one_call(tmp_path: Path) -> None:
    weak = paid_recipe(NOWHERE)["weak"]
    assert isinstance(weak, dict)
    several: dict[str, JsonValue] = weak | {"samples_per_call": 2}
    found = await asyncio.to_thread(estimate, paid_config(weak=several), tmp_path)
    line = next(s for s in found.stages if s.stage == "sample")
    assert (line.calls.low, line.calls.expected, line.calls.high) == (60, 60, 90)  # 30 queries, 3 samples


async def test_systems_of_several_calls_make_as_many_as_estimated(tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    names: list[JsonValue] = ["strong", "collab", "bm25", "strong_self_refine", "best_of_k", "strong_self_consistency"]
    frames: JsonValue = {"draft": "{input}", "solo": "{context}\n{input}", "refine": "{input}\nDraft: {draft}"}
    changes: dict[str, JsonValue] = {"evaluate": {"systems": names}, "prompts": frames}
    found = await asyncio.to_thread(estimate, paid_config(**changes), tmp_path)
    lines = {s.calls_for: s.calls for s in found.stages if s.stage == "evaluate"}
    n = lines["strong"].expected
    assert list(lines) == [
        "drafts",
        "strong",
        "collab",
        "bm25",
        "strong_self_refine",
        "best_of_k",
        "strong_self_consistency",
    ]
    assert lines["bm25"].expected == lines["strong_self_refine"].expected == n  # the first of two calls is strong's
    assert lines["strong_self_consistency"].expected == 5 * n
    endpoint = PaidEndpoint()
    await paid_run(endpoint, tmp_path, **changes)
    # Where drafts are all alike nothing is chosen, where they differ there is a choice.
    assert (lines["best_of_k"].low, lines["best_of_k"].high) == (n, 2 * n)  # of the strong model
    assert found.calls.low <= len(endpoint.answered) <= found.calls.high
    after = await asyncio.to_thread(estimate, paid_config(**changes), tmp_path)
    assert after.calls.high == 0


@pytest.mark.parametrize("asks", ["never", "sometimes", "for ever"])
async def test_interactions_make_as_many_calls_as_estimated(
    asks: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names: list[JsonValue] = ["strong", "collab", "collab_critique", "collab_advise", "collab_consult"]
    names += ["best_of_k", "collab_drafts", "collab_specialists"]
    frames: JsonValue = {"draft": "{input}", "solo": "{context}\n{input}", "refine": "{input}\nDraft: {draft}"}
    answer = paid_endpoint.reply

    def reply(body: dict[str, JsonValue], index: int) -> str:
        text = answer(body, index)
        may = "tools" in body and "tool_choice" not in body
        return "ASK: how so?" if may and (asks == "for ever" or (asks == "sometimes" and "no" in text)) else text

    def changes(url: str) -> dict[str, JsonValue]:
        weak = paid_recipe(url)["weak"]
        assert isinstance(weak, dict)
        beside: JsonValue = {"specialists": {"law": weak | {"model": "law"}, "history": weak | {"model": "history"}}}
        return {"evaluate": {"systems": names}, "prompts": frames, "table": beside}

    monkeypatch.setattr(paid_endpoint, "reply", reply)
    found = await asyncio.to_thread(estimate, paid_config(**changes(NOWHERE)), tmp_path)
    lines = {(s.calls_for, s.model): s.calls for s in found.stages if s.stage == "evaluate"}
    n = lines["strong", "strong"].expected
    exact = {
        ("collab_critique", "weak"): n,  # the draft is collab's, so that only the revision is paid for
        ("collab_critique", "strong"): 2 * n,
        ("collab_advise", "weak"): n,
        ("collab_advise", "strong"): n,  # the attempt is strong's
        ("collab_drafts", "strong"): n,  # the drafts are best_of_k's
        ("collab_specialists", "law"): n,
        ("collab_specialists", "history"): n,
        ("collab_specialists", "strong"): n,
    }
    assert {key: lines[key].expected for key in exact} == exact and ("collab_drafts", "weak") not in lines
    assert (lines["collab_consult", "strong"].low, lines["collab_consult", "strong"].high) == (n, 3 * n)
    assert (lines["collab_consult", "weak"].low, lines["collab_consult", "weak"].high) == (0, 2 * n)
    endpoint = PaidEndpoint()
    async with endpoint.serve() as url:
        await run(config_from_dict(paid_recipe(url, **changes(url))), tmp_path, Log())
    assert found.calls.low <= len(endpoint.answered) <= found.calls.high
    tooled = sum("tools" in json.loads(body) for body in endpoint.answered)
    assert {"never": tooled == n, "sometimes": n < tooled < 3 * n, "for ever": tooled == 3 * n}[asks]
    by_model = Counter(json.loads(body)["model"] for body in endpoint.answered)
    assert by_model["law"] == by_model["history"] == n
    after = await asyncio.to_thread(estimate, paid_config(**changes(NOWHERE)), tmp_path)
    assert after.calls.high == 0


async def test_what_a_stopped_run_has_paid_is_taken_off(tmp_path: Path) -> None:
    endpoint = PaidEndpoint()
    whole = await asyncio.to_thread(estimate, paid_config(), tmp_path)
    with pytest.raises(BudgetExceededError):
        await paid_run(endpoint, tmp_path, budget_calls=120)
    stopped = len(endpoint.answered)
    assert stopped == 120
    rest = await asyncio.to_thread(estimate, paid_config(budget_calls=130), tmp_path)
    assert rest.already == stopped
    # All drafts are there, so what feedback will ask is known one by one; the strong model was asked query by query.
    alone, refine = of(rest, "strong alone"), of(rest, "refine drafts")
    assert alone.calls.low == alone.calls.high == 30 - alone.already
    assert refine.calls.low == refine.calls.high > 0
    assert alone.already + refine.already == stopped - 90 and alone.already and refine.already
    (fit,) = rest.budgets
    assert (fit.spent, fit.high) == (120, False)
    assert rest.calls.high < whole.calls.high
    await paid_run(endpoint, tmp_path)
    assert rest.calls.low <= len(endpoint.answered) - stopped <= rest.calls.high


async def test_a_stopped_judge(tmp_path: Path) -> None:
    judge = paid_recipe(NOWHERE)["strong"]
    assert isinstance(judge, dict)
    endpoint, stopped = PaidEndpoint(), 260  # 90 drafts, 30 answers, 90 refinements; the rest are judgements

    async def judged(**changes: JsonValue) -> None:
        async with endpoint.serve() as url:
            feedback: JsonValue = {"judge": judge | {"base_url": url, "model": "judge"}}
            await run(config_from_dict(paid_recipe(url, feedback=feedback, **changes)), tmp_path, Log())

    config = paid_config(feedback={"judge": judge | {"model": "judge"}})
    whole = await asyncio.to_thread(estimate, config, tmp_path)
    with pytest.raises(BudgetExceededError):
        await judged(budget_calls=stopped)
    rest = of(await asyncio.to_thread(estimate, config, tmp_path), "judge")
    assert 0 < rest.already <= 50 and rest.calls.low > 0 and rest.calls.high == 2 * rest.calls.low + rest.already
    await judged()
    made = sum(json.loads(body)["model"] == "judge" for body in endpoint.answered)
    assert of(whole, "judge").calls.low <= made <= of(whole, "judge").calls.high
    assert rest.calls.low <= made - (stopped - 210) <= rest.calls.high
    after = await asyncio.to_thread(estimate, config, tmp_path)
    assert after.calls.high == 0


async def test_a_changed_setting_is_paid_for_again(tmp_path: Path) -> None:
    await paid_run(PaidEndpoint(), tmp_path)
    changed = paid_config(feedback={"sampling": {"max_tokens": 99}})
    found = await asyncio.to_thread(estimate, changed, tmp_path)
    lines = {(s.stage, s.calls_for): s for s in found.stages}
    assert lines["sample", "drafts"].calls.high == 0
    assert lines["feedback", "strong alone"].calls.low == 30
    other = await asyncio.to_thread(estimate, paid_config(seed=1), tmp_path)
    assert next(s for s in other.stages if s.stage == "sample").calls.low == 90


async def test_the_ledgers_mean_is_expected_where_there_is_one(tmp_path: Path) -> None:
    ledger = str(tmp_path / "shared.sqlite")
    before = await asyncio.to_thread(estimate, paid_config(ledger=ledger), tmp_path / "new")
    await paid_run(PaidEndpoint(), tmp_path / "one", ledger=ledger)
    after = await asyncio.to_thread(estimate, paid_config(ledger=ledger, seed=1, cache="off"), tmp_path / "new")
    name = "strong alone"
    assert of(before, name).output_tokens.expected > 30 * 100
    assert of(after, name).output_tokens.expected == 30 * 5  # what the endpoint counts for each answer
    assert any("in the ledger" in line for line in after.assumptions)


@pytest.mark.slow
def test_a_trained_pair_makes_as_many_calls_as_estimated(weak: str, tmp_path: Path) -> None:
    oracle, recipe = Oracle(), config_from_dict(tiny_recipe(weak, NOWHERE))
    found = estimate(recipe, tmp_path)
    assert calls(found)["refine drafts"] == (QUERIES, QUERIES * SAMPLES, QUERIES * SAMPLES)
    run_tiny(weak, tmp_path, oracle)
    made = len(oracle.requests)
    assert found.calls.low <= made <= found.calls.high
    assert estimate(recipe, tmp_path).calls.high == 0
    again = config_from_dict(tiny_recipe(weak, NOWHERE, seed=4))
    assert calls(estimate(again, tmp_path))["refine drafts"] == (QUERIES, QUERIES * SAMPLES, QUERIES * SAMPLES)


def test_tokens_are_counted_by_the_models_tokenizer(starter: Path, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder, text = LAB_WEIGHTS / "strong", "Kasti lowers limits by 20 mg."
    count, how = token_counter(str(folder))
    assert count(text) == len(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).tokens)
    assert count(text) != approximate_tokens(text)
    assert "tokenizer of" in how
    exact = estimate(load_config(starter, [f"strong.tokenizer={folder}"]), tmp_path / "none")
    rule = estimate(load_config(starter), tmp_path / "none")
    assert of(exact, "strong alone").input_tokens != of(rule, "strong alone").input_tokens
    assert any("tokenizer of" in line for line in exact.assumptions)
    assert any("4 bytes" in line for line in rule.assumptions)


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("药物", 2)])
def test_the_rule(text: str, tokens: int) -> None:
    assert approximate_tokens(text) == tokens


def test_a_message_has_a_frame() -> None:
    assert prompt_tokens(len, [Message(role="system", content="ab"), Message(role="user", content="c")]) == 11


def test_a_hub_name_that_is_in_the_cache(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = tmp_path / "models--org--small"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0123abcd")
    (model / "snapshots" / "0123abcd").mkdir(parents=True)
    shutil.copy(LAB_WEIGHTS / "strong" / "tokenizer.json", model / "snapshots" / "0123abcd")
    # In a process of its own: where the cache is, is read when the library is imported.
    script = "from cowest.models.tokens import token_counter; count, how = token_counter('org/small'); print(count('20 mg'), how)"
    command, env = [sys.executable, "-c", script], {**os.environ, "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=True)
    exact = token_counter(str(LAB_WEIGHTS / "strong"))[0]
    assert done.stdout == f"{exact('20 mg')} the tokenizer of org/small\n"


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match="no such folder"):
        token_counter(str(tmp_path / "none"))
    count, how = token_counter(str(tmp_path))
    assert count("abcd") == 1 and "has no tokenizer.json" in how
    count, how = token_counter("nobody/has-this-model")
    assert count("abcd") == 1 and "not in the hub's cache" in how
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read"):
        token_counter(str(tmp_path))
