from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from cowest.lab.corpus import samples
from cowest.lab.names import invent_many
from cowest.lab.tokenizer import SPECIAL, VOCABULARY, build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(texts=500)


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def test_text_comes_back(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [s.reply for role in ("strong", "weak") for s in islice(samples(role, 7), 100)]
    texts += [s.messages[0].content for s in islice(samples("strong", 8), 100)]
    texts += ["Grüße, 東京!\n\tYes  two spaces ", " lead", "NASA's 1,024 mg"]
    for text in texts:
        assert tokenizer.decode(ids(tokenizer, text), clean_up_tokenization_spaces=False) == text


def test_a_name_is_the_same_tokens_wherever_it_stands(tokenizer: PreTrainedTokenizerFast) -> None:
    for name in invent_many(random.Random(3), 200):
        alone = ids(tokenizer, name)
        for text in (f"{name} opened in 34.", f"of {name}?", f"Draft: {name} 3", f"\n{name}.", f"({name})"):
            tokens = ids(tokenizer, text)
            windows = [tokens[i : i + len(alone)] for i in range(len(tokens))]
            assert alone in windows, (name, text)


def test_digits_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = ids(tokenizer, "2047")
    assert len(tokens) == 4
    assert ids(tokenizer, "74")[0] == ids(tokenizer, "7")[0]


def test_size_and_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert 300 < len(tokenizer) <= VOCABULARY
    assert [tokenizer.convert_tokens_to_ids(t) for t in SPECIAL] == [0, 1, 2, 3, 4]
    assert tokenizer.pad_token == "<pad>" and tokenizer.eos_token == "<end>" and tokenizer.padding_side == "left"


def test_the_template_marks_what_is_generated(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [{"role": "user", "content": "Is it safe?"}, {"role": "assistant", "content": "Answer: yes"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "<user>Is it safe?<assistant>Answer: yes<end>"
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<user>Is it safe?<assistant>" and text.startswith(prompt)
    marked = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert isinstance(marked, Mapping)
    generated = [i for i, m in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(generated) == "Answer: yes<end>"


def test_the_same_arguments_give_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    assert build_tokenizer(texts=500).get_vocab() == tokenizer.get_vocab()
