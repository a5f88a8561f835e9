"""Drafting throughput: LocalChatModel against plain ``model.generate`` at its best static batch size.

Both sample K drafts for the same lab prompts with the same settings on one thread, in interleaved runs; medians of
real new tokens (up to and including end-of-sequence, no padding) per second. ``generate`` gets the prompts in their
own order, K copies each, and keeps the best of its batch sizes. Without ``--model`` the lab's weak size is used with
random weights, which seldom stop by themselves: a trained model is the fairer test.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cowest.errors import ModelCallError
from cowest.lab.frames import LabFrames
from cowest.lab.tokenizer import build_tokenizer
from cowest.lab.worlds import make_world
from cowest.models.local import LocalChatModel, load_model, load_tokenizer
from cowest.recipe.config import WorldConfig
from cowest.types import Message, ModelRef, Sampling

Rate = tuple[int, float]  # real new tokens, seconds


def prompts_of(count: int) -> list[tuple[Message, ...]]:
    world = make_world("medicine", WorldConfig(seed=5, train=count, validation=1, test=1))
    return [LabFrames().draft(example) for example in world.splits["train"]]


def random_model(folder: Path) -> str:
    tokenizer = build_tokenizer(texts=2000)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Plain:
    """The peer: transformers' generate on fixed batches in the given order."""

    def __init__(self, path: str, prompts: list[tuple[Message, ...]], samples: int, max_tokens: int) -> None:
        ref = ModelRef(base=path)
        self._tokenizer = load_tokenizer(ref)
        self._model = load_model(ref, device=torch.device("cpu"), dtype=torch.float32)
        turns = [[m.model_dump() for m in p] for p in prompts for _ in range(samples)]
        self._generate = cast(Callable[..., torch.Tensor], self._model.generate)
        self._texts = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        self._max_tokens = max_tokens

    @torch.inference_mode()
    def run(self, batch: int) -> Rate:
        torch.manual_seed(0)
        tokens, start = 0, time.perf_counter()
        for i in range(0, len(self._texts), batch):
            inputs = self._tokenizer(
                self._texts[i : i + batch], return_tensors="pt", padding=True, add_special_tokens=False
            )
            inputs.pop("token_type_ids", None)
            out = self._generate(
                **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=self._max_tokens
            )
            new = out[:, inputs["input_ids"].shape[1] :]
            ended = (new == self._tokenizer.eos_token_id).cumsum(1)
            tokens += int(((ended - (new == self._tokenizer.eos_token_id).long()) == 0).sum())
            self._tokenizer.batch_decode(new, skip_special_tokens=True)
        return tokens, time.perf_counter() - start


async def ours(model: LocalChatModel, prompts: list[tuple[Message, ...]], samples: int, max_tokens: int) -> Rate:
    async def one(i: int, k: int) -> int:
        sampling = Sampling(temperature=1.0, max_tokens=max_tokens, seed=1000 * i + k)
        try:
            return (await model.generate(prompts[i], sampling)).usage.output_tokens
        except ModelCallError:
            return 0  # an empty draft: its one token is not counted

    start = time.perf_counter()
    counts = await asyncio.gather(*(one(i, k) for i in range(len(prompts)) for k in range(samples)))
    return sum(counts), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder with the lab's tokenizer; unset: random weights")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--samples", type=int, default=4, help="K, drafts a query")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64, help="of LocalChatModel; 64 is its default")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or random_model(Path(folder))
        prompts = prompts_of(args.prompts)
        plain = Plain(path, prompts, args.samples, args.max_tokens)
        model = LocalChatModel(ModelRef(base=path), device="cpu", batch_size=args.batch_size)
        sizes = (8, 16, 32, 64, 128, 256)
        runs: dict[str, list[Rate]] = {"ours": [], **{str(b): [] for b in sizes}}
        for _ in range(args.runs):
            for key in runs:
                mine = key == "ours"
                rate = asyncio.run(ours(model, prompts, args.samples, args.max_tokens)) if mine else plain.run(int(key))
                runs[key].append(rate)
                print(f"{key}: {rate[0] / rate[1]:.0f} tokens/s, {rate[1]:.2f} s", file=sys.stderr)
    report(runs, args.prompts * args.samples, args.json)


def report(runs: dict[str, list[Rate]], drafts: int, as_json: bool) -> None:
    speed = {key: statistics.median(tokens / seconds for tokens, seconds in rates) for key, rates in runs.items()}
    took = {key: statistics.median(seconds for _, seconds in rates) for key, rates in runs.items()}
    best = max((key for key in speed if key != "ours"), key=lambda key: speed[key])
    result = {
        "ours_tokens_per_s": round(speed["ours"]),
        "ours_drafts_per_s": round(drafts / took["ours"], 1),
        "generate_best_batch": int(best),
        "generate_tokens_per_s": round(speed[best]),
        "generate_drafts_per_s": round(drafts / took[best], 1),
        "ratio": round(speed["ours"] / speed[best], 3),
        "generate_by_batch": {key: round(value) for key, value in speed.items() if key != "ours"},
    }
    if as_json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:24} {value}")


if __name__ == "__main__":
    main()
