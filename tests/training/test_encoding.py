from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from tests.helpers import save_tiny_model
from tests.models.templates import DEAF_TO_SYSTEM, ENDS, NO_END, OPENS_THINKING, OWN_END, STRICT, tokenizer_with
from tests.training.conftest import END, Ticker
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cowest import lab
from cowest.errors import StageError
from cowest.models.chat import prompt_ids, prompt_text, turn_end
from cowest.models.local import LocalChatModel, load_tokenizer
from cowest.recipe.config import AlignConfig, SftConfig
from cowest.training.common import load_for_training
from cowest.training.encoding import encode
from cowest.training.ending import taught_end
from cowest.training.positives import train_positives
from cowest.training.preference import PairTrainer, train_preference
from cowest.training.preference import tokenize as tokenize_pairs
from cowest.training.sft import SftRow, tokenize, train_sft
from cowest.types import Message, ModelRef, PreferencePair, Sampling

pytestmark = pytest.mark.slow
ASK = (Message(role="user", content="May a patient take 9 mg of Velarin?"),)
TOLD = (Message(role="system", content="Be brief."), *ASK)
SAID = "The limit is 7 mg.\nAnswer: no"


def base(folder: Path, template: str, weights: Path | None = None, **special: str | None) -> ModelRef:
    """The tiny model, or that of ``weights``, with a chat template and a vocabulary for it."""
    if weights is None:
        save_tiny_model(folder)
    else:
        shutil.copytree(weights, folder)
    torch.manual_seed(0)
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
    stop = tokenizer.convert_tokens_to_ids(end)
    assert turn_end(tokenizer) == stop
    [(ids, start)] = encode(tokenizer, [prompt], [SAID], "m", stop)
    assert ids[:start] == prompt_ids(tokenizer, prompt)
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == end
    assert tokenizer.decode(ids[start:-1]) == SAID
    [row], _ = tokenize(tokenizer, [SftRow(prompt=prompt, completion=SAID)], 999, "m", stop)
    assert row == {"input_ids": ids, "labels": [-100] * start + ids[start:]}
    pair = PreferencePair(
        example_id="a", prompt=prompt, chosen=(Message(role="assistant", content=SAID),),
        rejected=(Message(role="assistant", content="No."),), chosen_gain=1, rejected_gain=0,
    )  # fmt: skip
    [both], _ = tokenize_pairs(tokenizer, [pair], 999, "m", stop)
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
    [(ids, start)] = encode(tokenizer, [WHY], ["so so"], "m", 0)
    assert ids[:start] == prompt_ids(tokenizer, WHY)
    assert tokenizer.convert_ids_to_tokens(ids[start:]) == ["s", "o", f"{blank}s", "o", "<end>"]


def test_a_prompt_that_cannot_be_asked_as_trained_is_an_error() -> None:
    with pytest.raises(StageError, match=r"some-model: its tokenizer joins the end of the generation prompt \('Q: why"):
        encode(joining("\u2581", ("\u2581", "s"), ("\n", "s")), [WHY], ["so"], "some-model", 0)
    with pytest.raises(StageError, match="some-model: the chat template refuses this: roles must alternate"):
        encode(tokenizer_with(STRICT), [[Message(role="assistant", content="Hm."), *WHY]], ["So."], "some-model", END)


SHORT = SftConfig(
    method="full", batch_size=8, learning_rate=1e-2, max_steps=100, warmup_steps=2, schedule="cosine", device="cpu"
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
    done = train_sft(base(tmp_path / "base", template, None, **special), rows, SHORT, tmp_path / "sft", 0, Ticker())
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


@pytest.mark.parametrize("method", ["full", "lora"])
def test_thinking_that_a_prompt_opens_is_closed_in_training_and_in_the_trained_template(
    method: str, rows: list[SftRow], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    ref, ticker = base(tmp_path / "base", OPENS_THINKING, eos_token="<|stop|>"), Ticker()
    asked = "<|start|>assistant\n<think>\n"
    assert prompt_text(load_tokenizer(ref), ASK).endswith(asked)
    one = {"method": method, "max_steps": 1, "device": "cpu"}
    done = train_sft(ref, rows, SftConfig.model_validate(one), tmp_path / "sft", 0, ticker)
    assert ticker.told[0].startswith("sft: the chat template's prompt opens <think>: it is closed there")
    later = Ticker()
    aligned = train_preference(done.model, pairs, AlignConfig.model_validate(one), tmp_path / "align", 0, later)
    assert later.told == []  # closed already
    for trained in (done.model, aligned.checkpoints[-1].model):
        assert prompt_text(load_tokenizer(trained), ASK).endswith(f"{asked}\n</think>\n\n")


LORA = SHORT.model_copy(update={"method": "lora", "learning_rate": 3e-3})


def untrained(ref: ModelRef) -> None:
    """Give the added tokens, the end of a turn among them, the rows of tokens that were only added: the mean of the others."""
    model = AutoModelForCausalLM.from_pretrained(ref.base)
    with torch.no_grad():
        rows = model.get_output_embeddings().weight
        for id in range(len(rows) - 4, len(rows)):
            rows[id] = rows[:id].mean(0)
    model.save_pretrained(ref.base)


async def test_an_adapter_teaches_an_end_that_it_can_and_alignment_goes_on_with_it(
    rows: list[SftRow], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    # A pretrained model: what an adapter can do with random weights is little.
    ref, ticker = base(tmp_path / "base", OWN_END, Path(lab.__file__).parent / "weights" / "weak"), Ticker()
    untrained(ref)
    done = train_sft(ref, rows, LORA, tmp_path / "sft", 0, ticker)
    assert ticker.told[0].startswith("sft: the chat template ends a turn with <|stop|>, which an adapter cannot teach")
    model = LocalChatModel(done.model, device="cpu")
    answers = await asyncio.gather(*(model.generate(r.prompt, Sampling(max_tokens=60)) for r in rows))
    await model.aclose()
    assert {a.finish_reason for a in answers} == {"stop"}
    said = [(p.prompt, p.chosen[0].content) for p in pairs]
    for method in ("lora", "full"):
        settings = AlignConfig.model_validate({"method": method, "device": "cpu"})
        policy = load_for_training(done.model, settings)
        assert taught_end(policy, load_tokenizer(done.model), settings, said, "m", "align") == END


def test_alignment_goes_on_with_the_templates_end_after_sft_of_all_weights(
    rows: list[SftRow], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    ref = base(tmp_path / "base", OWN_END)
    untrained(ref)
    done = train_sft(ref, rows, SHORT, tmp_path / "sft", 0, Ticker())
    tokenizer = load_tokenizer(done.model)
    for method in ("lora", "full"):
        settings = AlignConfig.model_validate({"method": method, "device": "cpu"})
        said = [(p.prompt, p.chosen[0].content) for p in pairs]
        end = taught_end(load_for_training(done.model, settings), tokenizer, settings, said, "m", "align")
        assert tokenizer.convert_ids_to_tokens(end) == "<|stop|>"


def test_what_cannot_be_taught_is_told_before_training(rows: list[SftRow], tmp_path: Path) -> None:
    ref, ticker = base(tmp_path / "base", OWN_END, eos_token="<|stop|>"), Ticker()
    model = AutoModelForCausalLM.from_pretrained(ref.base)
    model.generation_config.eos_token_id = load_tokenizer(ref).eos_token_id
    model.save_pretrained(ref.base)
    untrained(ref)
    with pytest.raises(
        StageError, match=r"base: its head was never trained on what ends a text \(<\|stop\|>\), and sft"
    ):
        train_sft(ref, rows, LORA, tmp_path / "sft", 0, ticker)
    train_sft(ref, rows, SHORT.model_copy(update={"max_steps": 1}), tmp_path / "sft", 0, ticker)  # all weights can
    assert len(ticker.starts) == 1
    ref = base(tmp_path / "endless", NO_END, eos_token=None)
    model = AutoModelForCausalLM.from_pretrained(ref.base)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    model.save_pretrained(ref.base)
    with pytest.raises(StageError, match=r"endless: its chat template ends no turn .* set eos_token"):
        train_sft(ref, rows, SHORT, tmp_path / "sft", 0, ticker)


def test_trl_trains_on_our_tokens(tmp_path: Path, pairs: list[PreferencePair], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, list[int]]] = []
    train = PairTrainer.train

    def spy(self: PairTrainer, **more: object) -> object:
        seen.extend(cast(Dataset, self.train_dataset))
        return train(self, **cast(Any, more))

    monkeypatch.setattr(PairTrainer, "train", spy)
    ref = base(tmp_path / "base", ENDS["empty thinking"][0])
    settings = AlignConfig(method="full", max_steps=1, device="cpu", checkpoints=1)
    train_preference(ref, pairs, settings, tmp_path / "a", 0, Ticker())
    end = seen[0]["chosen_ids"][-1]
    assert end in (END, turn_end(load_tokenizer(ref)))
    ours, _ = tokenize_pairs(load_tokenizer(ref), pairs, settings.max_length, "m", end)
    assert [{k: row[k] for k in ours[0]} for row in seen] == ours
