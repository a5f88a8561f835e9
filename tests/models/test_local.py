from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cowest.errors import ConfigError, ModelCallError, ModelNotFoundError
from cowest.lab.tokenizer import build_tokenizer
from cowest.models.batching import Decoder
from cowest.models.chat import ensure_chat_template
from cowest.models.local import LocalChatModel
from cowest.models.sampler import Row, Sampler, nucleus
from cowest.protocols import ChatModel
from cowest.types import Completion, Message, ModelRef, Sampling

pytestmark = pytest.mark.slow
PROMPTS = [
    "May a patient with moran fever take 45 mg of Velarin?",
    "Why?",
    "The daily limit of Velarin is 60 mg. Moran fever lowers it by 20 mg. How much is left, and for whom?",
    "Who took office in 1931?",
]


def ask(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama whose head is made to end a text now and then."""
    path = tmp_path_factory.mktemp("tiny")
    tokenizer = build_tokenizer(texts=500)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.4)
        model.model.embed_tokens.weight.normal_(std=0.5)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def model(folder: str) -> LocalChatModel:
    return LocalChatModel(ModelRef(base=folder), device="cpu", batch_size=8, name="tiny")


async def outcome(model: LocalChatModel, text: str, sampling: Sampling) -> Completion | str:
    try:
        return await model.generate(ask(text), sampling)
    except ModelCallError as error:
        return error.kind


async def test_greedy_is_plain_generate_token_for_token(folder: str, model: LocalChatModel) -> None:
    assert isinstance(model, ChatModel) and model.name == "tiny"
    answers = await asyncio.gather(*(outcome(model, p, Sampling(max_tokens=40)) for p in PROMPTS))
    plain: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            out = plain.generate(input_ids=inputs["input_ids"], do_sample=False, max_new_tokens=40)
        new = out[0, inputs["input_ids"].shape[1] :]
        expected = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(answer, Completion)
        assert answer.text == expected
        assert answer.usage.input_tokens == inputs["input_ids"].shape[1] and answer.usage.output_tokens == len(new)
        assert answer.finish_reason == ("stop" if new[-1] == tokenizer.eos_token_id else "length")
        assert answer.latency_s > 0


async def test_a_seeded_sample_does_not_depend_on_its_batch(model: LocalChatModel) -> None:
    wanted = [Sampling(temperature=1.0, max_tokens=12 + s, seed=s, top_p=1.0 if s % 2 else 0.9) for s in range(4)]
    alone = [await outcome(model, PROMPTS[0], s) for s in wanted]
    others = [outcome(model, PROMPTS[i % 4], Sampling(temperature=0.7, max_tokens=9, seed=99 + i)) for i in range(7)]
    mixed = await asyncio.gather(*others, *(outcome(model, PROMPTS[0], s) for s in wanted))
    texts = [a.text if isinstance(a, Completion) else a for a in alone]
    assert [m.text if isinstance(m, Completion) else m for m in mixed[7:]] == texts
    assert len(set(texts)) == 4 and "local_failure" not in texts


async def test_without_a_seed_samples_differ(model: LocalChatModel) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=12)
    answers = await asyncio.gather(*(outcome(model, PROMPTS[0], sampling) for _ in range(4)))
    assert len({str(a) if isinstance(a, str) else a.text for a in answers}) > 1


async def test_finished_rows_leave_and_the_rest_is_unharmed(folder: str) -> None:
    """Very different max_tokens force compaction at several steps, with and without padding."""
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    decoder = Decoder(plain, [4], 0)
    prompts = [tuple(range(5, 5 + n)) for n in (3, 9, 9, 30)]
    rows = [Row(p, limit) for p in prompts for limit in (1, 7, 25)]
    together = decoder.decode(rows)
    for row, got in zip(rows, together, strict=True):
        [alone] = decoder.decode([row])
        assert got == alone
        assert got.generated <= row.max_tokens and got.stopped == (got.generated == len(got.tokens) + 1)


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -50.0]])
    rows = [Row((1,), 20_000, temperature=2.0, seed=1)]
    sampler = Sampler(torch.device("cpu"))
    sampler.add(rows)
    counts = torch.bincount(torch.cat([sampler.choose(logits) for _ in range(20_000)]), minlength=5) / 20_000
    torch.testing.assert_close(counts, torch.softmax(logits[0] / 2, -1), atol=0.015, rtol=0)


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    p = torch.tensor([[0.1, 0.5, 0.05, 0.35], [0.1, 0.5, 0.05, 0.35], [0.1, 0.5, 0.05, 0.35]])
    kept = nucleus(p, torch.tensor([[0.5], [0.6], [1.0]])) > 0
    assert kept.tolist() == [[False, True, False, False], [False, True, False, True], [True] * 4]


async def test_a_prompt_too_long_fails_alone(model: LocalChatModel) -> None:
    long, short = await asyncio.gather(
        outcome(model, "Velarin " * 300, Sampling(max_tokens=8)), outcome(model, PROMPTS[1], Sampling(max_tokens=8))
    )
    assert long == "too_long" and isinstance(short, Completion)
    with pytest.raises(ModelCallError, match=r"250 do not fit the model's window of 256 tokens"):
        await model.generate(ask(PROMPTS[0]), Sampling(max_tokens=250))


async def test_an_empty_text_is_an_error(folder: str, tmp_path: Path) -> None:
    mute = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        mute.lm_head.weight.zero_()  # all logits 0: argmax is token 0, the padding
    mute.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert await outcome(LocalChatModel(ModelRef(base=str(tmp_path))), "Why?", Sampling(max_tokens=3)) == "empty"


async def test_cancelled_callers_are_skipped_and_others_served(model: LocalChatModel) -> None:
    sampling = Sampling(max_tokens=12)
    tasks = [asyncio.create_task(model.generate(ask(PROMPTS[i % 4]), sampling)) for i in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(r, asyncio.CancelledError) for r in results[::2])
    assert all(isinstance(r, Completion) for r in results[1::2])


def test_several_event_loops_one_after_the_other(model: LocalChatModel) -> None:
    async def abandoned() -> None:
        asyncio.get_running_loop().create_task(model.generate(ask(PROMPTS[0]), Sampling(max_tokens=40)))
        await asyncio.sleep(0)

    answers = []
    for _ in range(2):
        answers.append(asyncio.run(model.generate(ask(PROMPTS[2]), Sampling(max_tokens=5))).text)
        asyncio.run(abandoned())
    assert answers[0] == answers[1]


async def test_closing_fails_what_waits_and_may_be_repeated(folder: str) -> None:
    model = LocalChatModel(ModelRef(base=folder), batch_size=1)
    tasks = [asyncio.create_task(outcome(model, PROMPTS[0], Sampling(max_tokens=200))) for _ in range(5)]
    await asyncio.sleep(0.02)
    await model.aclose()
    await model.aclose()
    results = await asyncio.gather(*tasks)
    assert results[-1] == "closed"
    assert await outcome(model, PROMPTS[0], Sampling(max_tokens=5)) == "closed"


async def test_a_failure_in_the_thread_reaches_every_caller(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LocalChatModel(ModelRef(base=folder))

    tried: list[int] = []

    def admit(rows: list[Row], _: object) -> torch.Tensor:
        tried.append(len(rows))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("no")
        raise RuntimeError("broken")

    monkeypatch.setattr(model._decoder._reader, "admit", admit)
    assert await asyncio.gather(*(outcome(model, p, Sampling(max_tokens=5)) for p in PROMPTS)) == ["local_failure"] * 4
    assert tried == [4, 2, 1, 1, 1, 1]


def test_a_missing_model_says_what_to_do(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, hint in (
        (str(tmp_path / "nothing"), "no such folder"),
        ("./nothing", "no such folder"),
        (str(tmp_path), "holds no model"),
        ("someone/no-such-model", "HF_HUB_OFFLINE"),
    ):
        with pytest.raises(ModelNotFoundError, match=hint):
            LocalChatModel(ModelRef(base=name))
    with pytest.raises(ModelNotFoundError, match="adapter_config"):
        LocalChatModel(ModelRef(base=folder, adapter=str(tmp_path)))


def test_pickled_weights_are_refused(folder: str, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((Path(folder) / "config.json").read_text())
    torch.save(AutoModelForCausalLM.from_pretrained(folder).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match="safetensors"):
        LocalChatModel(ModelRef(base=str(tmp_path)))


def test_a_tokenizer_without_a_template_gets_the_plain_one(folder: str) -> None:
    tokenizer = cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(folder))
    assert not ensure_chat_template(tokenizer)
    tokenizer.chat_template = None
    assert ensure_chat_template(tokenizer)
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "### user:\nWhy?\n### assistant:\n"
    assert tokenizer.apply_chat_template(turns, tokenize=False) == prompt + "So.<end>\n"
    tokenizer.chat_template = tokenizer.eos_token = None
    with pytest.raises(ConfigError):
        ensure_chat_template(tokenizer)


def test_importing_loads_neither_trl_nor_peft() -> None:
    code = "import sys, cowest.models.local; print([m for m in ('trl', 'peft', 'datasets') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
