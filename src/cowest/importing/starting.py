"""The recipe that an import writes: the data as it is now, a real pair to be named, and settings that fit the data's size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

BYTES_A_TOKEN: Final = 4
_INSTRUCTION: Final = 128
"""Tokens that instruction and chat format take beside a question."""


def write_recipe(
    path: Path,
    out: Path,
    source: str,
    rows: Mapping[str, int],
    labels: Sequence[str],
    sizes: Sequence[tuple[int, int]],
) -> None:
    """Write the recipe. ``sizes``: bytes of question with context, and of what is learned, of some rows."""
    train = rows["train"]
    asked, learned = (_near_longest([pair[i] for pair in sizes]) // BYTES_A_TOKEN for i in (0, 1))
    text = _TEMPLATE.format(
        source=json.dumps(source, ensure_ascii=False),
        name=json.dumps(_name(out), ensure_ascii=False),
        counts=" / ".join(f"{rows[s]:,}" for s in ("train", "validation", "test")),
        labels=f"  labels: {json.dumps(list(labels), ensure_ascii=False)}\n" if labels else "",
        epochs=min(10, max(3, -(-1600 // train))),
        length=min(4096, _up(asked + learned + _INSTRUCTION, 128)),
        queries=min(500, train),
        draft=min(1024, max(64, _up(learned * 3 // 2, 32))),
    )
    path.write_text(text, encoding="utf-8")


def _near_longest(sizes: Sequence[int]) -> int:
    return sorted(sizes)[int(0.99 * (len(sizes) - 1))]


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def _name(out: Path) -> str:
    """The folder's name, as far as it may be a run's."""
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in out.resolve().name).strip("-.")
    return kept or "imported"


_TEMPLATE: Final = """\
# Made by `cowest import` from {source}: {counts} rows (train / validation / test).
# Next: cowest validate THIS FILE (looks at the data), then name your models below and: cowest run THIS FILE
name: {name}
seed: 0

task:
  kind: jsonl
  train: train.jsonl
  validation: validation.jsonl
  test: test.jsonl
{labels}
weak: {{kind: local, model: Qwen/Qwen3-1.7B}}    # any causal LM on the hub, or a folder with safetensors
strong:                                    # or any local model; `cowest prices` lists what models cost
  kind: openai
  model: gpt-6-sol
  extra: {{reasoning_effort: none}}          # answers at once
  base_url: https://api.openai.com/v1
  api_key_env: OPENAI_API_KEY

sft: {{method: lora, epochs: {epochs}, batch_size: 8, gradient_accumulation: 2, learning_rate: 1.0e-4, max_length: {length}}}
draft: {{samples: 4, queries: {queries}, sampling: {{temperature: 1.0, max_tokens: {draft}}}}}
feedback: {{sampling: {{temperature: 0.0, max_tokens: 512}}}}
align: {{method: lora, batch_size: 8, learning_rate: 1.41e-5, beta: 0.1, checkpoints: 4, max_length: {length}}}
evaluate: {{draft: {{temperature: 0.0, max_tokens: {draft}}}}}
"""
