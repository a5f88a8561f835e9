"""Both completions of a pair behind one reading of its prompt.

DPO scores the chosen and the rejected draft of one prompt, which is most of both sequences where a passage is read. Instead of two
rows of prompt and completion, a pair is one row: prompt, chosen, rejected, where the rejected tokens have the positions that they
would have behind the prompt, and do not see the chosen ones. What comes out is the same, up to the rounding of sums in another
order (masks as in tree attention, SpecInfer, arXiv 2305.09781).

This stands in for the model's forward as TRL calls it, ``model(input_ids, attention_mask, labels, fused_lm_head=True)``.
"""

from __future__ import annotations

import types
from typing import Any, Final, NamedTuple, cast

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

from cowest.training.head import Targets, at_targets, causal_model

PLAIN: Final = frozenset({None, "full_attention"})
"""Kinds of layers in which a token sees all before it."""


class Packed(NamedTuple):
    """B pairs as rows of T tokens: prompt, chosen, rejected, padding.

    ``ids`` and ``positions`` are [B, T], ``mask`` is [B, 1, T, T] (True: is seen); ``places`` are the row and column in it of each
    target's predecessor, [N] each, and ``targets`` [N] its token.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    places: tuple[torch.Tensor, torch.Tensor]
    targets: torch.Tensor


def score_targets_only(model: torch.nn.Module, pairs: bool = True) -> None:
    """Let ``model`` (with TRL's fused head) compute its head at targets only; the prompt of ``pairs`` is read once where it can."""
    causal = causal_model(model)
    stock, once = causal.forward, pairs and can_share(causal)

    def forward(self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, **given: Any) -> Any:
        if not fused_lm_head or args or given.get("labels") is None:
            return stock(*args, fused_lm_head=fused_lm_head, **given)
        ids, labels = given["input_ids"], given["labels"]
        packed = pack(ids, given["attention_mask"], labels) if once else None
        if packed is None:
            seen = self.base_model(input_ids=ids, attention_mask=given["attention_mask"], use_cache=False)
            places = (labels[:, 1:] != -100).nonzero(as_tuple=True)
            targets = labels[:, 1:][places]
        else:
            seen = self.base_model(
                input_ids=packed.ids, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
            )
            places, targets = packed.places, packed.targets
        return _output(at_targets(self, seen.last_hidden_state[places], targets), labels[:, 1:] != -100)

    causal.forward = types.MethodType(forward, causal)


def can_share(model: PreTrainedModel) -> bool:
    """Whether every layer takes a mask of its own as it is: full attention through PyTorch's, with rotary positions."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or [None]
    rotary = getattr(config, "rope_parameters", None) is not None
    return config._attn_implementation == "sdpa" and rotary and PLAIN.issuperset(kinds)


def pack(ids: torch.Tensor, attention: torch.Tensor, labels: torch.Tensor) -> Packed | None:
    """The pairs of TRL's batch: [2B, L], padded on the right, the chosen of each before the rejected of each.

    ``labels`` are -100 but on completions. None where the halves do not have the same prompts.
    """
    pairs, length = len(ids) // 2, ids.shape[1]
    lengths, wanted = attention.sum(1), labels != -100
    start = wanted.int().argmax(1)
    column = torch.arange(length, device=ids.device)
    prompt = column < start[:pairs, None]
    alike = bool((start[:pairs] == start[pairs:]).all()) and bool(
        (ids[:pairs] == ids[pairs:]).masked_fill(~prompt, True).all()
    )
    if 2 * pairs != len(ids) or not alike or not bool(wanted.any(1).all()) or int(start.min()) < 1:
        return None
    start, chosen, rejected = start[:pairs], lengths[:pairs], lengths[pairs:] - start[:pairs]
    whole = chosen + rejected
    place = torch.arange(int(whole.max()), device=ids.device).expand(pairs, -1)
    second = place >= chosen[:, None]
    behind = torch.where(second, place - chosen[:, None] + start[:, None], place)  # in its own sequence
    positions = behind.clamp(max=length - 1)
    row = torch.arange(pairs, device=ids.device)[:, None]
    packed = ids[row + second * pairs, positions]
    first = ~second & (place >= start[:, None])
    hidden = second[:, :, None] & first[:, None, :]  # the rejected do not see the chosen; nothing sees what is after it
    mask = (place[:, :, None] >= place[:, None, :]) & ~hidden
    of, at = wanted[:, 1:].nonzero(as_tuple=True)
    pair, late = of % pairs, of >= pairs
    column = torch.where(late & (at >= start[pair]), at - start[pair] + chosen[pair], at)
    return Packed(packed, positions, mask[:, None], (pair, column), labels[:, 1:][of, at])


def _output(found: Targets, wanted: torch.Tensor) -> FusedCausalLMOutput:
    """As TRL reads it: [2B, L - 1], zero where there is no target."""
    log_probs, entropy, mean_logits, top = (
        torch.zeros(wanted.shape, dtype=value.dtype, device=value.device).masked_scatter(wanted, value)
        for value in cast("tuple[torch.Tensor, ...]", found)
    )
    return FusedCausalLMOutput(
        loss=-log_probs.sum() / wanted.sum().clamp(min=1),
        log_probs=log_probs,
        entropy=entropy,
        mean_logits=mean_logits,
        is_top1=top,
        label_mask=wanted,
    )
