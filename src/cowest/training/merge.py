"""Export a weak model as one ordinary checkpoint: the adapter's update is added to the base's weights."""

from __future__ import annotations

from pathlib import Path

import torch

from cowest.models.local import load_model, load_tokenizer
from cowest.training.common import export
from cowest.training.notices import quiet
from cowest.types import ModelRef


def merge(ref: ModelRef, out: Path) -> ModelRef:
    """Write base and adapter, merged, with the tokenizer to ``out``, in the base's own dtype.

    An ``out`` that is there is replaced once the new one is complete. Raises ModelNotFoundError.
    """
    with quiet():
        model = load_model(ref, device=torch.device("cpu"), dtype=None)
        export(model, load_tokenizer(ref), adapter=False, target=out)
    return ModelRef(base=str(out))
