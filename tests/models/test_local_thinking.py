"""A local model whose template opens thinking, or whose tokenizer marks it by special tokens: nothing of it is lost or shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.helpers import save_tiny_model
from transformers import AutoTokenizer

from cowest.models.answer import HiddenAnswerError, visible
from cowest.models.chat import PLAIN_TEMPLATE
from cowest.models.local import LocalChatModel
from cowest.models.thinking import split_thinking
from cowest.models.token_text import answer_text
from cowest.types import Completion, Message, ModelRef, Sampling

ASK = (Message(role="user", content="Is it safe?"),)


def tiny(folder: Path, template: str | None = None, special: tuple[str, ...] = ()) -> str:
    path = save_tiny_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(path)
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    return path


async def test_what_follows_an_opening_mark_of_the_template_is_thinking(tmp_path: Path) -> None:
    opening = PLAIN_TEMPLATE.replace(
        "### assistant:{{ '\n' }}{%- endif -%}", "### assistant:{{ '\n<think>\n' }}{%- endif -%}"
    )
    assert opening != PLAIN_TEMPLATE
    model = LocalChatModel(ModelRef(base=tiny(tmp_path / "model", opening)), device="cpu")
    done = await model.generate(ASK, Sampling(temperature=1.0, max_tokens=12, seed=3))
    assert done.text.startswith("<think>") and split_thinking(done.text).visible is None
    with pytest.raises(HiddenAnswerError) as caught:
        visible(done, model.name)
    assert caught.value.kind == ("cut_off" if done.finish_reason == "length" else "thinking_only")
    pieces = [piece async for piece in model.stream(ASK, Sampling(temperature=1.0, max_tokens=12, seed=3))]
    whole = pieces.pop()
    assert isinstance(whole, Completion) and whole.text == "".join(map(str, pieces)) == done.text
    await model.aclose()


async def test_a_template_without_one_changes_nothing(tmp_path: Path) -> None:
    model = LocalChatModel(ModelRef(base=tiny(tmp_path / "model")), device="cpu")
    assert "<think>" not in (await model.generate(ASK, Sampling(temperature=1.0, max_tokens=12, seed=3))).text
    await model.aclose()


def test_special_tokens_that_mark_thinking_stay_in_the_text(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny(tmp_path / "model", special=("[THINK]", "[/THINK]", "<|other|>")))
    plain: list[int] = tokenizer("Answer: no", add_special_tokens=False)["input_ids"]
    begin, end, other = (int(str(tokenizer.convert_tokens_to_ids(t))) for t in ("[THINK]", "[/THINK]", "<|other|>"))
    text = answer_text(tokenizer, [begin, *plain, end, other, *plain, tokenizer.eos_token_id])
    assert "<|other|>" not in text and tokenizer.eos_token not in text
    parts = split_thinking(text)
    assert parts.visible == parts.thinking == str(tokenizer.decode(plain)).strip()
    assert answer_text(tokenizer, [*plain, other]) == tokenizer.decode(plain)
