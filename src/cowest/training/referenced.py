"""What the trainers share whose loss compares a model with its reference: DPO on pairs, KTO on single drafts."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from cowest.training.head import targets_only
from cowest.training.pair_forward import score_targets_only
from cowest.training.steps import Batch, EvenRowsMixin
from cowest.training.weighting import WeightedRowsMixin


class ReferencedMixin(EvenRowsMixin, WeightedRowsMixin):
    """For TRL's DPOTrainer (``SEQUENCES`` 2: the chosen and the rejected draft of a row) and KTOTrainer, on rows of token ids."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        # TRL would render the texts anew, and train where the prompt's tokens and the whole's first differ.
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        # The first that TRL asks of the model; the reference is scored as the policy will be, so that they begin equal.
        model = cast(PreTrainedModel, self.model)
        if targets_only(model, self.args.device):
            score_targets_only(model, pairs=self.SEQUENCES == 2)
        stock = cast(Callable[..., Dataset], super()._precompute_ref_logps)  # type: ignore[misc,unused-ignore]
        return stock(dataset, name, batch_size)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """TRL's loss, of which a micro-batch with fewer rows than the others is a smaller part."""
        stock, inputs = cast(Callable[..., torch.Tensor], super().compute_loss), self.weighted(inputs)
        return self.by_rows(stock(model, inputs, return_outputs, num_items_in_batch), inputs)
