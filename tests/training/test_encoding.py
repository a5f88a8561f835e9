from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from datasets import Dataset
from tests.helpers import save_tiny_model
from tests.models.templates import DEAF_TO_SYSTEM, ENDS, NO_END, OWN_END, STRICT, tokenizer_with
from tests.training.conftest import Ticker
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cowest.errors import StageError
from cowest.models.chat import prompt_ids, turn_end
from cowest.models.local import LocalChatModel, load_tokenizer
from cowest.recipe.config import AlignConfig, SftConfig
from cowest.training.encoding import encode
from cowest.training.positives import train_positives
from cowest.training.preference import PairTrainer, train_preference
from cowest.training.preference import tokenize as tokenize_pairs
from cowest.training.sft import SftRow, tokenize, train_sft
from cowest.types import Message, ModelRef, PreferencePair, Sampling

pytestmark = pytest.mark.slow
ASK = (Message(role="user", content="May a patient take 9 mg of Velarin?"),)
TOLD = (Message(role="system", content="Be brief."), *ASK)
SAID = "The limit is 7 mg.\nAnswer: no"


def base(folder: Path, template: str, **special: str | None) -> ModelRef:
    """The tiny model with a chat template, and a vocabulary for it."""
    save_tiny_model(folder)
    tokenizer, model = tokenizer_with(template), AutoModelForCausalLM.from_pretrained(folder)
    for name, token in special.items():
        setattr(tokenizer, name, token)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelRef(base=str(folder))


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("prompt", [ASK, TOLD], ids=["user", "system"])
def test_what_is_trained_is_the_prompt_as_asked_the_reply_and_the_end(name: str, prompt: tuple[Message, ...]) -> None:
    template, end = ENDS[name]
    tokenizer = tokenizer_with(template)
    [(ids, start)] = encode(tokenizer, [prompt], [SAID], "m")
    assert ids[:start] == prompt_ids(tokenizer, prompt)
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == end
    assert tokenizer.decode(ids[start:-1]) == SAID
    [row], _ = tokenize(tokenizer, [SftRow(prompt=prompt, completion=SAID)], 999, "m")
    assert row == {"input_ids": ids, "labels": [-100] * start + ids[start:]}
    pair = PreferencePair(
        example_id="a", prompt=prompt, chosen=(Message(role="assistant", content=SAID),),
        rejected=(Message(role="assistant", content="No."),), chosen_gain=1, rejected_gain=0,
    )  # fmt: skip
    [both], _ = tokenize_pairs(tokenizer, [pair], 999, "m")
    assert both["prompt_ids"] + both["chosen_ids"] == ids and both["rejected_ids"][-1] == ids[-1]


ABC = "abcdefghijklmnopqrstuvwxyzAQ:?"
WHY = (Message(role="user", content="why?"),)


def joining(blank: str, *merges: tuple[str, str]) -> PreTrainedTokenizerBase:
    """A tokenizer of characters that joins some neighbours, with ``blank`` for a blank; with another than that before all."""
    tokens = ["<end>", *ABC, "\n", blank, *(a + b for a, b in merges)]
    inner = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, list(merges)))
    inner.decoder = decoders.Fuse() if blank == " " else decoders.Metaspace()
    if blank != " ":
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    made.chat_template = NO_END
    return cast(PreTrainedTokenizerBase, made)


@pytest.mark.parametrize("blank", [" ", "\u2581"])
def test_a_token_across_the_prompts_end_is_not_trained_on(blank: str) -> None:
    tokenizer = joining(blank, (blank, "s"))  # the prompt ends with a blank, the reply begins with s
    [(ids, start)] = encode(tokenizer, [WHY], ["so so"], "m")
    assert ids[:start] == prompt_ids(tokenizer, WHY)
    assert tokenizer.convert_ids_to_tokens(ids[start:]) == ["s", "o", f"{blank}s", "o", "<end>"]


def test_a_prompt_that_cannot_be_asked_as_trained_is_an_error() -> None:
    with pytest.raises(StageError, match=r"some-model: its tokenizer joins the end of the generation prompt \('Q: why"):
        encode(joining("\u2581", ("\u2581", "s"), ("\n", "s")), [WHY], ["so"], "some-model")
    with pytest.raises(StageError, match="some-model: the chat template refuses this: roles must alternate"):
        encode(tokenizer_with(STRICT), [[Message(role="assistant", content="Hm."), *WHY]], ["So."], "some-model")
    tokenizer = tokenizer_with(NO_END)
    tokenizer.eos_token = None
    with pytest.raises(StageError, match=r"some-model: its chat template ends no turn .* set eos_token"):
        encode(tokenizer, [WHY], ["so"], "some-model")


SHORT = SftConfig(
    method="full", batch_size=8, learning_rate=1e-2, max_steps=60, warmup_steps=2, schedule="cosine", device="cpu"
)


@pytest.mark.parametrize(
    ("template", "special"),
    [
        (OWN_END, {}),
        (OWN_END, {"pad_token": None}),
        (OWN_END, {"pad_token": None, "eos_token": None}),
        (ENDS["opens thinking"][0], {"eos_token": "<|stop|>"}),
        (ENDS["empty thinking"][0], {"eos_token": "<|stop|>"}),
        (NO_END, {}),
        (DEAF_TO_SYSTEM, {}),
    ],
    ids=["own end", "no pad", "no eos", "opens thinking", "empty thinking", "no end", "deaf"],
)
async def test_after_sft_every_answer_stops(
    template: str, special: dict[str, str | None], rows: list[SftRow], tmp_path: Path
) -> None:
    rows = [r.model_copy(update={"prompt": (Message(role="system", content="Be brief."), *r.prompt)}) for r in rows]
    done = train_sft(base(tmp_path / "base", template, **special), rows, SHORT, tmp_path / "sft", 0, Ticker())
    model = LocalChatModel(done.model, device="cpu")
    answers = await asyncio.gather(*(model.generate(r.prompt, Sampling(max_tokens=60)) for r in rows))
    await model.aclose()
    assert {a.finish_reason for a in answers} == {"stop"}
    assert all(a.text.startswith("The limit is ") for a in answers)
    end = turn_end(load_tokenizer(done.model))
    ids = AutoModelForCausalLM.from_pretrained(done.model.base).generation_config.eos_token_id
    assert end == ids or end in ids  # other programs stop there, too


def test_the_user_is_told_once_of_another_end(rows: list[SftRow], pairs: list[PreferencePair], tmp_path: Path) -> None:
    ref, ticker = base(tmp_path / "base", OWN_END), Ticker()
    one = {"method": "full", "max_steps": 1, "device": "cpu"}
    done = train_sft(ref, rows, SftConfig.model_validate(one), tmp_path / "sft", 0, ticker)
    train_preference(done.model, pairs, AlignConfig.model_validate(one), tmp_path / "align", 0, ticker)
    train_positives(done.model, pairs, AlignConfig.model_validate(one), tmp_path / "positives", 0, ticker)
    assert ticker.told == [
        "sft: the chat template ends a turn with <|stop|>, the tokenizer a text with <end>: "
        "the model learns the first, and generation stops on both"
    ]


def test_trl_trains_on_our_tokens(tmp_path: Path, pairs: list[PreferencePair], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, object]] = []
    train = PairTrainer.train

    def spy(self: PairTrainer, **more: object) -> object:
        seen.extend(cast(Dataset, self.train_dataset))
        return train(self, **cast(Any, more))

    monkeypatch.setattr(PairTrainer, "train", spy)
    ref = base(tmp_path / "base", ENDS["empty thinking"][0])
    settings = AlignConfig(method="full", max_steps=1, device="cpu", checkpoints=1)
    train_preference(ref, pairs, settings, tmp_path / "a", 0, Ticker())
    ours, _ = tokenize_pairs(load_tokenizer(ref), pairs, settings.max_length, "m")
    assert [{k: row[k] for k in ours[0]} for row in seen] == ours
