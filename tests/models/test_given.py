"""How likely a given text is to a local model: each token's log-probability as one plain pass has it, whatever shares the batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from cowest.errors import ModelCallError
from cowest.ledger.ledger import Ledger, call_of
from cowest.models.batching import Decoder
from cowest.models.chat import prompt_ids, token_ids
from cowest.models.given import split_given
from cowest.models.ledgered import LedgeredChatModel
from cowest.models.local import LocalChatModel
from cowest.models.sampler import Row
from cowest.types import Completion, Given, Message, ModelRef, Sampling

pytestmark = pytest.mark.slow
ASKED = (Message(role="user", content="In which year would Velmo have opened, had it been 3 years later?"),)
BEFORE = "Velmo 62. 62+3=65.\nAnswer: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: str) -> LocalChatModel:
    return LocalChatModel(ModelRef(base=folder), device="cpu", batch_size=4)


def plain(folder: str, before: str, given: str) -> list[float]:
    """The last tokens' log-probabilities from one pass over all: those that spell ``given``, a blank in the first one or not."""
    tokenizer, weights = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = prompt_ids(tokenizer, ASKED)
    apart = given[0].isdigit()  # the lab's tokenizer keeps a blank and a digit apart
    said = token_ids(tokenizer, before if apart else before.rstrip(" "))
    tail = token_ids(tokenizer, before + given)[len(said) :]
    with torch.no_grad():
        logits: Any = weights(torch.tensor([[*prompt, *said, *tail]])).logits[0].float()
    logprobs = torch.log_softmax(logits, -1)
    at = len(prompt) + len(said) - 1
    return [float(logprobs[at + i, token]) for i, token in enumerate(tail)]


async def read(model: LocalChatModel, given: str, before: str = BEFORE) -> Completion:
    return await model.generate(ASKED, Given(before=before, given=given))


async def test_a_given_text_has_the_probability_of_one_plain_pass(folder: str, model: LocalChatModel) -> None:
    texts = ["year 65", "year 7", "nobody knows", "65"]
    asked = [read(model, text) for text in texts]
    free = model.generate(ASKED, Sampling(temperature=1.0, max_tokens=12, seed=3))
    *found, beside = await asyncio.gather(*asked, free)
    for text, done in zip(texts, found, strict=True):
        assert done.logprobs is not None and "".join(t.token for t in done.logprobs).strip() == text
        assert [t.logprob for t in done.logprobs] == pytest.approx(plain(folder, BEFORE, text), abs=1e-4)
        assert done.finish_reason == "stop" and done.usage.output_tokens == len(done.logprobs)
    alone = await model.generate(ASKED, Sampling(temperature=1.0, max_tokens=12, seed=3))
    assert alone.text == beside.text  # a reading in the batch changes no sample


async def test_nothing_said_before_and_a_text_with_the_end_of_a_turn_in_it(folder: str, model: LocalChatModel) -> None:
    done = await read(model, "Velmo 62.", before="")
    assert [t.logprob for t in done.logprobs or ()] == pytest.approx(plain(folder, "", "Velmo 62."), abs=1e-4)
    eos: Any = AutoTokenizer.from_pretrained(folder).eos_token_id
    weights: Any = AutoModelForCausalLM.from_pretrained(folder)
    (row,) = Decoder(weights, [eos], 0).decode([Row((5, 6, 7), 3, logprobs=0, given=(9, eos, 11))])
    assert row.tokens == [9, eos, 11] and row.scores is not None and len(row.scores) == 3


async def test_what_does_not_fit_or_is_not_spelled_is_a_failed_call(model: LocalChatModel, folder: str) -> None:
    with pytest.raises(ModelCallError, match="do not fit"):
        await read(model, "year " * 600)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(ModelCallError, match="does not give back"):  # a special token has no text
        await read(model, f"65{tokenizer.eos_token}")


def test_a_prompt_that_opens_thinking_is_not_opened_again(folder: str) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{%- for m in messages -%}{{ m['content'] }}\n{%- endfor -%}"
        "{%- if add_generation_prompt -%}<think>\n{%- endif -%}"
    )
    asked = prompt_ids(tokenizer, ASKED)
    prompt, given = split_given(tokenizer, asked, ASKED, Given(before="<think>\nhm\n</think>\n\nAnswer: ", given="65"))
    text = tokenizer.decode([*prompt, *given])
    assert text.count("<think>") == 1 and text.endswith("<think>\nhm\n</think>\n\nAnswer: 65")
    assert tokenizer.decode(given).strip() == "65"


async def test_what_was_read_is_in_the_ledger_as_it_was(model: LocalChatModel, tmp_path: Path) -> None:
    asked = list[Sampling]()

    class Counted:
        name, aclose = "counted", model.aclose

        async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
            asked.append(sampling)
            return await model.generate(messages, sampling)

    kept = LedgeredChatModel(Counted(), Ledger(tmp_path / "answers.sqlite", "run"), model="m")
    one = Given(before=BEFORE, given="year 65")
    first, other = await asyncio.gather(kept.generate(ASKED, one), kept.generate(ASKED, Given(given="year 65")))
    again = await kept.generate(ASKED, one)
    assert first.logprobs == again.logprobs != other.logprobs and len(asked) == 2


def test_readings_have_keys_of_their_own_and_answers_keep_theirs() -> None:
    def key(sampling: Sampling) -> str:
        return call_of("m", ASKED, sampling, {}, None).key

    assert len({key(Sampling()), key(Given(given="a")), key(Given(given="b")), key(Given(given="b", before="c"))}) == 4
    assert "given" not in call_of("m", ASKED, Sampling(), {}, None).request
