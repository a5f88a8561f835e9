"""vLLM and llama.cpp as managed engines, for real, with SmolLM2-135M-Instruct.

COWEST_MODELS_DIR has smollm2-135m.gguf; COWEST_VLLM_PYTHON and COWEST_LLAMA_PYTHON have vLLM and xllamacpp. They take minutes:
vLLM needs one and a half on two cores until it answers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import warnings
from pathlib import Path

import pytest
from tests.helpers import Log

from cowest.assembly.places import model_path
from cowest.engines.managed import managed
from cowest.models.local import LocalChatModel
from cowest.recipe.models import EngineOptions
from cowest.types import Completion, Message, ModelRef, Sampling

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1800)]
ASKED = tuple(
    (Message(role="user", content=f"What is the capital of {country}? Answer in a word."),)
    for country in ("France", "Spain", "Italy", "Japan")
)
GREEDY = Sampling(temperature=0.0, max_tokens=12, logprobs=0)
DRAWN = Sampling(temperature=1.0, max_tokens=12, seed=2**40 + 7)


def variable(name: str) -> Path:
    """What a variable names; unset, the test skips and warns."""
    named = os.environ.get(name)
    if not named:
        message = f"{name} is not set: the tests of real managed engines DO NOT RUN"
        warnings.warn(message, stacklevel=2)
        pytest.skip(message)
    return Path(named)


def gguf() -> Path:
    return variable("COWEST_MODELS_DIR") / "smollm2-135m.gguf"


def an_adapter(base: str, out: Path) -> str:
    """A LoRA adapter that changes what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.003)
    adapted.save_pretrained(str(out))
    return str(out)


async def in_process(ref: ModelRef) -> list[Completion]:
    model = LocalChatModel(ref, device="cpu", dtype="bfloat16")
    try:
        return list(await asyncio.gather(*(model.generate(asked, GREEDY) for asked in ASKED)))
    finally:
        await model.aclose()


def first(answers: list[Completion]) -> list[float]:
    """The log-probability of each answer's first token."""
    return [a.logprobs[0].logprob for a in answers if a.logprobs]


async def test_vllm_says_what_the_process_says_with_and_without_an_adapter(tmp_path: Path) -> None:
    python, base = variable("COWEST_VLLM_PYTHON"), model_path(str(gguf()))
    adapter, log = an_adapter(base, tmp_path / "adapter"), Log()
    options = EngineOptions(kv_cache_gib=1, max_model_len=1024)
    refs = [ModelRef(base=base), ModelRef(base=base, adapter=adapter)]
    expected = [await in_process(ref) for ref in refs]
    assert expected[0] != expected[1]
    async with managed("vllm", base, adapter=adapter, python=python, dtype="bfloat16", batch_size=8, options=options,
                       logs=tmp_path, reporter=log) as adapted:  # fmt: skip
        print(*log.lines, sep="\n")
        found = list(await asyncio.gather(*(adapted.generate(asked, GREEDY) for asked in ASKED)))
        print([a.text for a in found], [a.text for a in expected[1]])
        assert first(found) == pytest.approx(first(expected[1]), abs=0.1)
        assert sum(a.text == b.text for a, b in zip(found, expected[1], strict=True)) >= 2  # rounding turns a few
        assert [a.usage.input_tokens for a in found] == [a.usage.input_tokens for a in expected[1]]
        drawn = [(await adapted.generate(ASKED[0], DRAWN)).text for _ in range(2)]
        assert drawn[0] == drawn[1]
        server = adapted._server
        assert server is not None and server.pid is not None
        group = server.pid
        os.kill(group, signal.SIGKILL)  # the guard: the worst that can happen to it
        assert (await adapted.generate(ASKED[0], GREEDY)).text == found[0].text  # started and loaded again
        assert any("is started again" in line for line in log.lines)
        print(*log.lines, sep="\n")
        assert not members(group)
        group = server.pid
    assert not members(group)


async def test_llama_cpp_serves_a_gguf_file(tmp_path: Path) -> None:
    python, log = variable("COWEST_LLAMA_PYTHON"), Log()
    options = EngineOptions(kv_cache_gib=0.5, max_model_len=1024)
    async with managed("llamacpp", str(gguf()), python=python, device="cpu", batch_size=4, options=options, logs=tmp_path,
                       reporter=log) as opened:  # fmt: skip
        found = list(await asyncio.gather(*(opened.generate(asked, GREEDY) for asked in ASKED)))
        print(*log.lines, [a.text for a in found], sep="\n")
        assert "Paris" in found[0].text and all(a.usage.input_tokens > 5 and a.logprobs for a in found)
        drawn = [(await opened.generate(ASKED[0], DRAWN)).text for _ in range(2)]
        assert drawn[0] == drawn[1]
        assert opened._server is not None and opened._server.pid is not None
        group = opened._server.pid
    assert not members(group)


def members(group: int) -> list[int]:
    """The processes of a group that still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = entry.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of) == group and state != "Z":
            found.append(int(entry.parent.name))
    return found
