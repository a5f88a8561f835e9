"""The head at the positions that have a target, and nowhere else.

TRL's own head leaves the other positions out on CUDA only; on a CPU it computes a row of the vocabulary for every token of the
prompt, forwards and backwards, and the latter in float32 whatever the weights are. Here the rows of a few positions at a time are
made, folded into what the loss needs, and made again for the gradient, so that a long vocabulary costs little memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

LARGE: Final = 16_384
"""Words of the vocabularies from which on the head is worth this. Below, TRL's step stays as it is, number by number."""
AT_ONCE: Final = 1 << 22
"""Logits that are made at once: 16 MiB in float32, which malloc still takes from memory that the process has."""
# Configuration keys of models that change their logits after the head: TRL's own loss knows them.
HEAD_TWISTS: Final = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)


class Targets(NamedTuple):
    """What a head says of N targets: all of shape [N]. Gradients flow through ``log_probs`` alone."""

    log_probs: torch.Tensor
    entropy: torch.Tensor
    mean_logits: torch.Tensor
    is_top1: torch.Tensor


def causal_model(model: torch.nn.Module) -> PreTrainedModel:
    """The model with the head, out of its adapter's wrapper."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def plain_head(model: torch.nn.Module) -> bool:
    """Whether the logits are the head's output as it is, and the loss has no other term (a mixture's balance)."""
    config = causal_model(model).config.get_text_config()
    plain = all(getattr(config, key, None) in (None, 1, 1.0) for key in HEAD_TWISTS)
    return plain and not getattr(config, "output_router_logits", False)


def targets_only(model: torch.nn.Module, device: torch.device) -> bool:
    """Whether the head is computed here: a plain one of a large vocabulary, where TRL's kernel does not run."""
    return (
        device.type not in ("cuda", "xpu")
        and plain_head(model)
        and causal_model(model).config.get_text_config().vocab_size >= LARGE
    )


def at_targets(model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor) -> Targets:
    """The head of ``model`` on ``hidden`` states [N, H], each with its next token of ``targets`` [N]."""
    head = model.get_output_embeddings()
    weight, bias = cast(torch.Tensor, head.weight), cast("torch.Tensor | None", getattr(head, "bias", None))
    apply = cast(Callable[..., "tuple[torch.Tensor, ...]"], _AtTargets.apply)
    return Targets(*apply(hidden, weight, bias, targets))


class _AtTargets(torch.autograd.Function):
    """log softmax(h W^T + b)[target], with the logits made anew for the gradient: softmax minus the target's one, times W."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        kind = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        ctx.set_materialize_grads(False)
        parts, small = [], weight.to(ctx.dtype)
        for rows in _portions(hidden, weight):
            logits = _logits(hidden[rows], small, bias)
            mean, top = logits.mean(1), logits.argmax(1) == targets[rows]
            log_sum = logits.logsumexp(1)
            said = logits.gather(1, targets[rows, None])[:, 0] - log_sum
            probs = logits.sub(log_sum[:, None]).exp_()
            parts.append((said, log_sum - logits.mul_(probs).sum(1), mean, top, log_sum))
        *found, log_sum = (torch.cat(part) for part in zip(*parts, strict=True)) if parts else _nothing(hidden)
        ctx.save_for_backward(hidden, weight, bias, targets, log_sum)
        ctx.mark_non_differentiable(*found[1:])
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, log_sum = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        given = grads[0]
        if given is None:
            return None, None, None, None
        to_hidden = torch.zeros_like(hidden) if wants_hidden else None
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        to_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        small = weight.to(ctx.dtype)
        for rows in _portions(hidden, weight):
            logits = _logits(hidden[rows], small, bias)
            slope = logits.sub_(log_sum[rows, None]).exp_().neg_()
            slope.scatter_add_(1, targets[rows, None], torch.ones_like(slope[:, :1]))
            slope.mul_(given[rows, None])
            if to_bias is not None:
                to_bias += slope.sum(0)
            slope = slope.to(ctx.dtype)
            if to_hidden is not None:
                to_hidden[rows] = (slope @ small).to(hidden.dtype)
            if to_weight is not None:
                to_weight += slope.t() @ hidden[rows].to(ctx.dtype)
        return (
            to_hidden,
            None if to_weight is None else to_weight.to(weight.dtype),
            None if to_bias is None else to_bias.to(bias.dtype),
            None,
        )


def _portions(hidden: torch.Tensor, weight: torch.Tensor) -> list[slice]:
    """The rows that are looked at together."""
    size = max(1, AT_ONCE // len(weight))
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """In float32, as a tensor of its own, by a product in the dtype of ``weight``."""
    dtype = weight.dtype
    return torch.nn.functional.linear(hidden.to(dtype), weight, None if bias is None else bias.to(dtype)).float()


def _nothing(hidden: torch.Tensor) -> list[torch.Tensor]:
    none = hidden.new_zeros(0, dtype=torch.float32)
    return [none, none.clone(), none.clone(), none.bool(), none.clone()]
