"""SmolLM2-135M, a really pretrained model, from its GGUF file through a whole run: trained, drafting, aligned, evaluated, served.

Tiny trainings on a handful of short questions: what is looked at is that the parts fit a real model, not how good it gets.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
import yaml
from pydantic import JsonValue
from tests.helpers import Log
from tests.server.loopback import Client
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

from cowest.assembly.places import model_path, model_source
from cowest.models.endpoint import make_app, serve
from cowest.models.local import LocalChatModel, load_model, load_tokenizer
from cowest.models.readers import SlotReader
from cowest.models.scripted import ScriptedChatModel
from cowest.pipeline import RunSummary, run
from cowest.recipe.config import config_from_dict
from cowest.run.store import JsonlFile
from cowest.server.app import Server
from cowest.server.auth import Keys
from cowest.server.opening import open_served
from cowest.server.runner import listening
from cowest.server.settings import Settings
from cowest.types import Draft, Message, ModelRef, Prediction, Sampling

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
FACTS = {
    "gold": "yes", "sand": "no", "iron": "yes", "milk": "no", "zinc": "yes", "wool": "no", "lead": "yes", "rice": "no"
}  # fmt: skip
ROWS: list[dict[str, JsonValue]] = [
    {"id": name, "input": f"Is {name} a metal?", "answer": answer, "choices": ["yes", "no"]}
    for name, answer in FACTS.items()
]
SPLITS = {"train": ROWS[:4], "validation": ROWS[4:6], "test": ROWS[6:]}
TOKENS = 8
TEXT = (
    "Mitochondria have a double membrane structure and use aerobic respiration to generate adenosine triphosphate, which is used "
    "throughout the cell as a source of chemical energy. The term was coined by Carl Benda in 1898."
)


def recipe(folder: Path, weak: str, strong_url: str) -> dict[str, JsonValue]:
    training: dict[str, JsonValue] = {"method": "lora", "batch_size": 2, "max_length": 128, "device": "cpu"}
    greedy: dict[str, JsonValue] = {"temperature": 0.0, "max_tokens": TOKENS}
    strong: dict[str, JsonValue] = {"kind": "openai", "model": "strong", "base_url": strong_url, "api_key_env": None}
    files: dict[str, JsonValue] = {split: str(folder / f"{split}.jsonl") for split in SPLITS}
    return {
        "name": "real",
        "seed": 3,
        "task": {"kind": "jsonl", "labels": ["yes", "no"], "instruction": "Answer yes or no.", **files},
        "weak": {"kind": "local", "model": weak, "device": "cpu", "batch_size": 8},
        "strong": strong,
        "sft": training | {"learning_rate": 2e-3, "max_steps": 8},
        "draft": {"format": "direct", "samples": 4, "sampling": {"temperature": 1.5, "max_tokens": TOKENS}},
        "align": training | {"learning_rate": 1e-4, "max_steps": 2, "checkpoints": 1, "selection_queries": 2},
        "evaluate": {"draft": greedy, "answer": greedy},
    }


def reply(messages: Sequence[Message], sampling: Sampling) -> str:
    """The strong model: right or wrong by a hash of what it is asked, so that some drafts help."""
    asked = messages[-1].content
    right = next(answer for name, answer in FACTS.items() if f"Is {name} a metal" in asked)
    even = hashlib.sha256(asked.encode()).digest()[0] % 2
    return f"Answer: {right if even else {'yes': 'no', 'no': 'yes'}[right]}"


@dataclass(frozen=True)
class Made:
    out: Path
    base: str
    summary: RunSummary
    log: Log

    def drafts(self) -> list[Draft]:
        return JsonlFile(self.out / "drafts.jsonl", Draft).load()

    def training_log(self, stage: str) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.out / stage / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def made(smollm: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One run, of which the tests look at the parts."""
    folder, log = tmp_path_factory.mktemp("real"), Log()
    for split, rows in SPLITS.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    async def go() -> RunSummary:
        async with serve(make_app(ScriptedChatModel(reply), model_name="strong")) as url:
            return await run(config_from_dict(recipe(folder, smollm, url)), folder / "run", log)

    summary = asyncio.run(go())
    return Made(folder / "run", model_path(smollm), summary, log)


def test_the_file_and_its_cache_agree(smollm: str) -> None:
    file, folder = Path(model_source(smollm)), model_path(smollm)
    assert file.suffix == ".gguf"
    direct = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).eval()
    kept = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tensors = direct.state_dict()
    assert kept.state_dict().keys() == tensors.keys()
    assert all(torch.equal(tensors[name].bfloat16().float(), tensor) for name, tensor in kept.state_dict().items())
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == TEXT
    with torch.inference_mode():
        ours, theirs = (model(ids).logits[0].log_softmax(-1) for model in (kept, direct))
    divergence = (theirs.exp() * (theirs - ours)).sum(-1).mean()  # KL, in nats a token
    assert divergence < 5e-4
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.95
    assert (
        -theirs[:-1].gather(1, ids[0, 1:, None]).mean() < 3.5
    )  # it knows English: a wrong layout would give about ln 49152 = 10.8


def test_the_run_says_which_file_stands_in(made: Made, smollm: str) -> None:
    assert f"weak: {smollm} from COWEST_MODELS_DIR: {Path(model_source(smollm)).name}" in made.log.lines


async def test_sft_teaches_it_to_stop_at_its_turns_end(made: Made) -> None:
    prompt = [Message(role="user", content="Is gold a metal? Answer yes or no.")]
    before = LocalChatModel(ModelRef(base=made.base), device="cpu")
    talks = await before.generate(prompt, Sampling(temperature=0.0, max_tokens=TOKENS))
    await before.aclose()
    assert talks.finish_reason == "length"  # as it comes, it goes on in sentences
    greedy = JsonlFile(made.out / "predictions/weak.jsonl", Prediction).load()
    assert greedy and all(p.text in ("Answer: yes", "Answer: no") and not p.truncated for p in greedy)


def test_it_drafts(made: Made) -> None:
    drafts = made.drafts()
    assert len(drafts) == 16 and all(d.text for d in drafts if d.error is None)
    assert any(not d.truncated for d in drafts)


def test_the_first_loss_of_dpo_is_ln_2(made: Made) -> None:
    rows = [row for row in made.training_log("align") if "loss" in row]
    assert rows[0]["step"] == 1 and rows[0]["loss"] == pytest.approx(
        math.log(2), abs=1e-2
    )  # bfloat16; a wrong reference gives 0.75


def test_the_adapter_loads_on_the_cached_base(made: Made) -> None:
    adapter = made.out / "sft" / "adapter"
    named = json.loads((made.out / "sft" / "model_ref.json").read_text())
    assert (named["base"], named["adapter"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "sft/adapter")
    ref = ModelRef(base=made.base, adapter=str(adapter))
    ids = torch.tensor([load_tokenizer(ref)("Is gold a metal?")["input_ids"]])
    cpu = torch.device("cpu")
    with torch.inference_mode():
        base, merged, apart = (
            load_model(which, device=cpu, dtype=torch.float32, trainable=trainable)(ids).logits
            for which, trainable in ((ModelRef(base=made.base), False), (ref, False), (ref, True))
        )
    assert torch.allclose(merged, apart, atol=1e-2) and not torch.allclose(merged, base, atol=0.1)


async def test_it_is_served_as_it_was_evaluated(made: Made) -> None:
    async with serve(make_app(ScriptedChatModel(reply), model_name="strong")) as url:
        kept = yaml.safe_load((made.out / "recipe.yaml").read_text())
        kept["strong"]["base_url"] = url  # the run's endpoint was on another port
        (made.out / "recipe.yaml").write_text(yaml.safe_dump(kept))
        opened = open_served(made.out, Settings())
        server = Server(opened.served, opened.settings, Keys(), opened.breakers)
        try:
            async with listening(server, "127.0.0.1", 0) as place, aiohttp.ClientSession() as session:
                client = Client(session, place, server)
                for system in ("weak", "collab", "collab_aligned"):
                    rows = JsonlFile(made.out / f"predictions/{system}.jsonl", Prediction).load()
                    for found in rows:
                        answer = await client.ask(
                            f"Is {found.example_id} a metal?",
                            model=f"real.{system}",
                            cowest={"details": True, "choices": ["yes", "no"]},
                        )
                        assert (answer.status, answer.text) == (200, found.text)
                        assert answer.json["cowest"].get("draft") == found.draft
        finally:
            await opened.aclose()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_prompts_share_what_they_begin_with_in_either_precision(smollm: str, dtype: str) -> None:
    """The engine checks a model before it trusts its own way of reading; rounding must not send a small model the slow way."""
    model = LocalChatModel(ModelRef(base=model_path(smollm)), device="cpu", dtype=dtype, batch_size=8)
    reader = model._decoder._reader
    assert isinstance(reader, SlotReader)
    asked = [(Message(role="user", content=f"{TEXT}\n\nQuestion {n}: who coined it?"),) for n in range(4)]
    answers = await asyncio.gather(*(model.generate(m, Sampling(temperature=0.0, max_tokens=4)) for m in asked))
    await model.aclose()
    assert reader.read_tokens < 0.6 * sum(answer.usage.input_tokens for answer in answers)
