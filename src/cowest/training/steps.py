"""Steps in which every row weighs the same, in the short last batch of an epoch as in a full one.

A trainer's loss is a mean over the step, so that the one row that is left at the end of an epoch would move the model like a
full batch. Here the gradient of a step with n rows, after clipping, is n / (batch_size * gradient_accumulation) of that mean's.
Within a step of several micro-batches, TRL's DPO loss is a mean of the micro-batches' means: there each counts by its rows.
The losses in the log stay means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Batch = dict[str, torch.Tensor]


class ShareCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Scales the gradients by the ``share`` of a full step's rows that this step has."""

    share: float = 1.0

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **_: object,
    ) -> None:
        """Called between the clipping of the gradients and the optimizer's step."""
        if self.share == 1 or model is None:
            return
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(self.share)


class EvenRowsMixin(Trainer):  # type: ignore[misc,unused-ignore]
    """For a Trainer whose batches hold ``SEQUENCES`` sequences a row."""

    SEQUENCES: int = 1

    def __init__(self, *, callbacks: Sequence[TrainerCallback] = (), **more: Any) -> None:
        self._share: Final = ShareCallback()
        self._step: list[int] = []  # rows of each micro-batch of the step under way
        super().__init__(callbacks=[*callbacks, self._share], **more)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        """The step's micro-batches, with note taken of their rows."""
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step = [self.rows_of(batch) for batch in found[0]]
        self._share.share = sum(self._step) / (self.args.train_batch_size * self.args.gradient_accumulation_steps)
        return cast("tuple[list[Batch], torch.Tensor | int | None]", found)

    def rows_of(self, batch: Batch) -> int:
        """How many rows of the data a micro-batch holds."""
        return len(batch["input_ids"]) // self.SEQUENCES

    def by_rows(self, mean: torch.Tensor, batch: Batch) -> torch.Tensor:
        """A micro-batch's mean, so scaled that the mean over the step's micro-batches is that over its rows."""
        even = self.rows_of(batch) * len(self._step) == sum(self._step)
        return mean if even or not self._step else mean * (self.rows_of(batch) * len(self._step) / sum(self._step))
