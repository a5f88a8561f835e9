"""Rows that count more than others in a loss that TRL takes the mean of.

A row's weight scales the gradient that comes back through its log-probabilities, which is the gradient of the weighted loss,
sum_i w_i L_i / n, whatever L is. The losses and rewards in the log stay TRL's, unweighted.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import torch
from datasets import Dataset
from transformers import Trainer

from cowest.training.head import causal_model
from cowest.training.steps import Batch

WEIGHT: Final = "weight"
"""The column of a row's weight."""


class _Scaled(torch.autograd.Function):
    """x, whose gradient is multiplied by ``weights`` [rows], row by row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weights)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (weights,) = ctx.saved_tensors
        return grads[0] * weights[:, None].to(grads[0].dtype), None


def normalised(weights: Sequence[float]) -> list[float]:
    """With a mean of 1, so that the learning rate keeps its meaning. Raises ValueError where none is above 0."""
    total = sum(weights)
    if total <= 0:
        raise ValueError("no row has a weight above 0")
    return [weight * len(weights) / total for weight in weights]


class WeightedRowsMixin(Trainer):  # type: ignore[misc,unused-ignore]
    """For a TRL trainer whose rows may have a column ``weight``, and whose batches hold ``SEQUENCES`` sequences a row."""

    SEQUENCES: int = 1

    def __init__(self, **more: Any) -> None:
        self._weights: torch.Tensor | None = None
        super().__init__(**more)
        if WEIGHT in cast(Dataset, self.train_dataset).column_names:
            self.data_collator = _with_weights(self.data_collator)
            self._weigh_gradients()

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        names = cast("list[str]", self._signature_columns)
        if WEIGHT not in names:
            names.append(WEIGHT)

    def weighted(self, batch: Batch) -> Batch:
        """The batch as TRL takes it; its weights are kept for the gradient that comes back."""
        weights = batch.get(WEIGHT)
        self._weights = None if weights is None else weights.repeat(self.SEQUENCES)
        return {name: value for name, value in batch.items() if name != WEIGHT}

    def _weigh_gradients(self) -> None:
        causal = causal_model(cast(torch.nn.Module, self.model))
        inner = causal.forward

        def forward(_: torch.nn.Module, *args: Any, **given: Any) -> Any:
            out = inner(*args, **given)
            weights = self._weights
            if weights is not None and torch.is_grad_enabled() and getattr(out, "log_probs", None) is not None:
                scaled = cast(Callable[..., torch.Tensor], _Scaled.apply)
                out.log_probs = scaled(out.log_probs, weights.to(out.log_probs.device))
            return out

        causal.forward = types.MethodType(forward, causal)


def _with_weights(collate: Callable[[list[dict[str, Any]]], Batch]) -> Callable[[list[dict[str, Any]]], Batch]:
    def together(rows: list[dict[str, Any]]) -> Batch:
        return collate(rows) | {WEIGHT: torch.tensor([row[WEIGHT] for row in rows], dtype=torch.float32)}

    return together
