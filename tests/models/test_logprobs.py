"""Log-probabilities of a local model's tokens."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.helpers import save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from cowest.models.batching import Decoder, TokenScore
from cowest.models.local import LocalChatModel
from cowest.models.sampler import Row
from cowest.models.token_text import pieces, token_logprobs
from cowest.types import Completion, Message, ModelRef, Sampling

pytestmark = pytest.mark.slow
PROMPTS = ["May a patient with moran fever take 45 mg of Velarin?", "Why?", "Who took office in 1931?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: str) -> LocalChatModel:
    return LocalChatModel(ModelRef(base=folder), device="cpu", batch_size=8)


async def answer(model: LocalChatModel, prompt: str, sampling: Sampling) -> Completion:
    return await model.generate([Message(role="user", content=prompt)], sampling)


def plain_logprobs(model: Any, prompt: tuple[int, ...], tokens: list[int]) -> torch.Tensor:
    """Log-probabilities (tokens, vocabulary) by one plain forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.float(), -1)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_they_are_the_models_own_whatever_the_sampling_and_the_batch(folder: str, temperature: float) -> None:
    plain: Any = AutoModelForCausalLM.from_pretrained(folder)
    rows = [
        Row(prompt, 6 + i, temperature, 0.9, seed=i, logprobs=wanted)
        for i, (prompt, wanted) in enumerate([((7, 8, 9, 10), 3), ((20, 21), None), ((30,), 0), ((7, 8, 9, 10), 1)])
    ]
    decoded = Decoder(plain, eos_ids=[4], pad_id=0).decode(rows)
    unscored = Decoder(plain, eos_ids=[4], pad_id=0).decode([replace(row, logprobs=None) for row in rows])
    assert [d.tokens for d in decoded] == [d.tokens for d in unscored]
    assert all(d.scores is None for d in (*unscored, decoded[1]))
    for row, done in zip(rows, decoded, strict=True):
        if row.logprobs is None:
            continue
        assert done.scores is not None and len(done.scores) == len(done.tokens) > 0
        for expected, token, score in zip(
            plain_logprobs(plain, row.prompt, done.tokens), done.tokens, done.scores, strict=True
        ):
            assert score.logprob == pytest.approx(float(expected[token]), abs=1e-4)
            best = expected.topk(row.logprobs)
            assert [i for i, _ in score.top] == best.indices.tolist()
            assert [p for _, p in score.top] == pytest.approx(best.values.tolist(), abs=1e-4)


async def test_a_completion_has_them_only_when_asked_and_the_same_text(model: LocalChatModel) -> None:
    how = Sampling(temperature=0.7, max_tokens=20, seed=1, logprobs=2)
    other = how.model_copy(update={"logprobs": None})
    done, unasked = await asyncio.gather(answer(model, PROMPTS[0], how), answer(model, PROMPTS[0], other))
    assert done.text == unasked.text and unasked.logprobs is None
    assert done.logprobs is not None and {len(t.top) for t in done.logprobs} == {2}
    assert "".join(t.token for t in done.logprobs) == done.text


async def test_the_end_of_the_text_is_no_token_and_a_row_that_left_early_keeps_its_own(model: LocalChatModel) -> None:
    short = Sampling(temperature=1.0, max_tokens=3, seed=1, logprobs=1)
    long = Sampling(temperature=1.0, max_tokens=40, seed=2, logprobs=1)
    first, second = await asyncio.gather(answer(model, "Why?", short), answer(model, PROMPTS[0], long))
    for done, sampling in ((first, short), (second, long)):
        assert done.logprobs is not None
        alone = (await answer(model, "Why?" if sampling is short else PROMPTS[0], sampling)).logprobs
        assert alone is not None and [t.token for t in alone] == [t.token for t in done.logprobs]
        assert [t.logprob for t in alone] == pytest.approx([t.logprob for t in done.logprobs], abs=1e-3)
        assert len(done.logprobs) == done.usage.output_tokens - (done.finish_reason == "stop")
        assert all(t.logprob <= 0 for t in done.logprobs)


@pytest.mark.parametrize("text", ["Velmo is safe up to 62 mg.", "東京 é — “naïve”", "\n\n  two", "👩🏽‍⚕️!"])
def test_pieces_spell_the_text_and_a_part_of_a_character_waits_for_the_rest(folder: str, text: str) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, tokens)
    assert len(found) == len(tokens) and "".join(found) == text
    assert "\ufffd" not in "".join(found)


def test_alternatives_of_no_probability_are_left_out(folder: str) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    a, b = (
        tokenizer("ab", add_special_tokens=False)["input_ids"][:1],
        tokenizer("7", add_special_tokens=False)["input_ids"],
    )
    (scored,) = token_logprobs(tokenizer, a, [TokenScore(-0.5, ((a[0], -0.5), (b[0], -math.inf)))])
    assert scored.top == ((tokenizer.decode(a), -0.5),)
