"""Whether a model says in bfloat16 what it says in float32: what ``dtype: auto`` asks on a processor that has bfloat16.

Both read a few fixed texts. They agree when the distributions of the next token hardly differ: mean Kullback-Leibler divergence
at most ``MOST_KL`` nats (by Pinsker's inequality no event then differs in probability by more than 0.1 on average) and the
likeliest token is the same at ``LEAST_SAME`` of the places. What is left is rounding of the kind that another device or batch
brings, too, and no other text on average: so it is, like the device, no part of what identifies a run.

The float32 pass needs no second model in memory: each layer's weights are widened while it is at work.

A decision is kept by the contents of the weights (``precision/`` in the cache folder), so that a resumed run computes as before.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cowest.models.gguf import cache_folder
from cowest.run.identity import fingerprint, hash_model
from cowest.types import ModelRef

MOST_KL, LEAST_SAME = 0.02, 0.9
FEWEST = 50_000_000
"""Parameters below which a model stays in float32, where bfloat16 would save little. The lab's are such."""

TOKENS = 64  # of each text, at most
TEXTS = (
    "Question: Is a lower dose of the drug safe for patients whose kidneys do not work well? In a trial with 120 patients the "
    "lower dose was as effective, and side effects were rarer (4% against 11%). Answer: yes.",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / len(values)\n",
    "If it had not rained on Tuesday, the match would have been played in the old stadium, and the mayor would have opened it.",
    "A: I took my neighbour's parcel and did not tell her.\nB: You should bring it back today and say that you are sorry.\n",
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Mean divergence in nats, the share of places with the same likeliest token, and how many places were compared."""

    kl: float
    same: float
    places: int

    @property
    def enough(self) -> bool:
        """Within the tolerance. NaN is not."""
        return self.kl <= MOST_KL and self.same >= LEAST_SAME

    def __str__(self) -> str:
        return f"mean KL {self.kl:.4f} nats, same likeliest token at {self.same:.1%} of {self.places} places"


def texts_of(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The fixed texts as token ids."""
    return [list(tokenizer(text, add_special_tokens=True)["input_ids"])[:TOKENS] for text in TEXTS]


@torch.inference_mode()
def narrowed(model: PreTrainedModel, texts: list[list[int]]) -> Agreement:
    """Turn ``model``, as it was stored, into bfloat16 in place, and say how well that agrees with float32."""
    with _widened(model):
        wide = [_logprobs(model, text) for text in texts]
    narrow(model)
    kl, same, places = 0.0, 0, 0
    for text, before in zip(texts, wide, strict=True):
        after = _logprobs(model, text)
        kl += float((before.exp() * (before - after)).sum())
        same += int((before.argmax(-1) == after.argmax(-1)).sum())
        places += len(before)
    return Agreement(kl / places, same / places, places)


def narrow(model: PreTrainedModel) -> None:
    """bfloat16 in place, as a checkpoint is loaded in it: buffers, such as the frequencies of positions, stay in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


def _logprobs(model: PreTrainedModel, text: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([text], device=model.device), use_cache=False).logits[0]
    return torch.log_softmax(logits.float(), -1)


@contextmanager
def _widened(model: PreTrainedModel) -> Iterator[None]:
    """Every module computes with its own weights in float32; they are as before after each call."""
    kept: dict[int, list[tuple[torch.nn.Parameter, torch.Tensor]]] = {}

    def widen(module: torch.nn.Module, *_: Any) -> None:
        own = [(p, p.data) for p in module.parameters(recurse=False) if p.dtype != torch.float32]
        kept[id(module)] = own
        for parameter, stored in own:
            parameter.data = stored.float()

    def narrow(module: torch.nn.Module, *_: Any) -> None:
        for parameter, stored in kept.pop(id(module), []):
            parameter.data = stored

    modules = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    handles = [h for m in modules for h in (m.register_forward_pre_hook(widen), m.register_forward_hook(narrow))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in modules:
            narrow(module)


def _file(ref: ModelRef) -> Path:
    adapter = None if ref.adapter is None else hash_model(ref.adapter)
    key = fingerprint(hash_model(ref.base), adapter, torch.__version__, MOST_KL, LEAST_SAME)
    return cache_folder() / "precision" / f"{key}.json"


def decided(ref: ModelRef) -> Agreement | None:
    """What was found out about these weights before."""
    try:
        return Agreement(**json.loads(_file(ref).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def decide(ref: ModelRef, found: Agreement) -> None:
    """Keep it. Where nothing can be written, the next run looks again: with the same weights it finds the same."""
    file = _file(ref)
    partial = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(asdict(found)), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        logger.warning("%s: cannot be written (%s); whether bfloat16 agrees is looked at again next time", file, error)
