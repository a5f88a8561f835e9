"""How far a weak model has moved from the one that SFT left, measured on its own drafts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch

from cowest.models.local import load_model, load_tokenizer, resolve_device
from cowest.results import Drift
from cowest.training.common import release
from cowest.training.encoding import encode
from cowest.types import Message, ModelRef

MOST = 64
"""Drafts that are scored."""


def drift(
    policy: ModelRef,
    reference: ModelRef,
    drafts: Sequence[tuple[tuple[Message, ...], str]],
    max_length: int,
    device: str,
) -> Drift:
    """KL(policy || reference) in nats, estimated on ``drafts`` (prompt, text) that the policy has sampled at temperature 1.

    Each draft gives log policy(y|x) - log reference(y|x); that estimate is unbiased, and its standard error stands beside it.
    Evenly spaced ones of many are scored. Raises ModelNotFoundError, StageError.
    """
    some = [drafts[i * len(drafts) // min(len(drafts), MOST)] for i in range(min(len(drafts), MOST))]
    tokenizer = load_tokenizer(policy)
    prompts, texts = [prompt for prompt, _ in some], [text for _, text in some]
    rows = [
        (row.ids[:max_length], row.start)
        for row in encode(tokenizer, prompts, texts, policy.base, cast(int, tokenizer.eos_token_id))
        if row.start < max_length
    ]
    by_policy, by_reference = (_scored(ref, rows, device) for ref in (policy, reference))
    gaps = [a - b for a, b in zip(by_policy, by_reference, strict=True)]
    n, tokens = len(gaps), sum(len(ids) - 1 - start for ids, start in rows)
    if not n:
        return Drift(drafts=0, kl=None, se=None, kl_per_token=None)
    mean = sum(gaps) / n
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (n - 1)) if n > 1 else 0.0
    return Drift(drafts=n, kl=mean, se=spread / math.sqrt(n), kl_per_token=sum(gaps) / max(tokens, 1))


@torch.inference_mode()
def _scored(ref: ModelRef, rows: Sequence[tuple[list[int], int]], device: str) -> list[float]:
    """The log-probability of each completion without its closing token, in float32."""
    model = load_model(ref, device=resolve_device(device), dtype=torch.float32)
    found = []
    for ids, start in rows:
        end = len(ids) - 1  # the token that ends the turn was drawn for finished drafts alone
        tokens = torch.tensor([ids[:end]], device=model.device)
        logits = model(input_ids=tokens, use_cache=False).logits[0, start - 1 : -1].float()
        found.append(float(torch.log_softmax(logits, -1).gather(-1, tokens[0, start:, None]).sum()))
    del model
    release()
    return found
