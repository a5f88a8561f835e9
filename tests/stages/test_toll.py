"""A price on what a draft's tokens cost in the strong model's prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import Log
from tests.paid_endpoint import PaidEndpoint, paid_recipe

from cowest.collaboration.signals import Gain
from cowest.errors import ConfigError
from cowest.models.tokens import approximate_tokens
from cowest.pipeline import run
from cowest.recipe.config import config_from_dict, with_values
from cowest.run.store import RunDir
from cowest.types import Draft, Feedback, PreferencePair

EVALUATE: dict[str, JsonValue] = {"queries": 1, "systems": ["strong"]}


async def priced(endpoint: PaidEndpoint, out: Path, per_usd: float, **prices: float) -> Log:
    log = Log()
    async with endpoint.serve() as url:
        recipe = paid_recipe(url, pairs={"price_per_usd": per_usd, "min_margin": 0.5}, evaluate=EVALUATE)
        price: dict[str, JsonValue] = {"input": 2.0, "output": 4.0, **prices}
        await run(config_from_dict(with_values(recipe, {"strong.price": price})), out, log)
    return log


async def test_a_drafts_tokens_cost_what_the_strong_models_prompt_does(tmp_path: Path) -> None:
    endpoint = PaidEndpoint()
    await priced(endpoint, tmp_path, 500.0)
    drafts = {d.text: d for d in RunDir(tmp_path).file("drafts.jsonl", Draft).load()}
    gains = {f.draft_id: Gain().value(f) for f in RunDir(tmp_path).file("feedback.jsonl", Feedback).load()}
    pairs = RunDir(tmp_path).file("pairs.jsonl", PreferencePair).load()
    assert pairs
    for pair in pairs:
        text = pair.chosen[0].content
        cost = 500.0 * 2.0e-6 * approximate_tokens(text)
        assert cost > 0 and pair.chosen_gain == pytest.approx((gains[drafts[text].id] or 0) - cost)
    calls = len(endpoint.answered)
    again = await priced(endpoint, tmp_path, 500.0, output=5.0)
    assert "run again" not in again.verdicts["pairs"]
    dearer = await priced(endpoint, tmp_path, 500.0, input=3.0)
    assert "the price of a prompt changed from 2.0 to 3.0" in dearer.verdicts["pairs"]
    assert len(endpoint.answered) == calls


async def test_without_a_price_it_is_refused(tmp_path: Path) -> None:
    mine: dict[str, JsonValue] = {"kind": "scripted", "default": "Answer: yes"}
    recipe = paid_recipe("http://127.0.0.1:9/v1", pairs={"price_per_usd": 1.0}, strong=mine)
    with pytest.raises(ConfigError, match=r"scripted has no price; give strong\.price, or use pairs\.price_per_word"):
        await run(config_from_dict(recipe), tmp_path, Log())
