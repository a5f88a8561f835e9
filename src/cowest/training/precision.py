"""In which precision a training computes, and what that asks of an adapter."""

from __future__ import annotations

from typing import TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from cowest.models.local import resolve_device
from cowest.models.precision import native_bfloat16
from cowest.models.shape import stored_in_16_bits
from cowest.recipe.config import TrainingSettings

S = TypeVar("S", bound=TrainingSettings)


def settled(settings: S, base: str) -> S:
    """The settings with ``dtype: auto`` decided: bfloat16 for a LoRA on weights of 16 bits, where the device has it; else float32.

    Such a base loses nothing: it is used as it is stored; the adapter's own weights stay float32.
    """
    if settings.dtype != "auto":
        return settings
    may = settings.method == "lora" and stored_in_16_bits(base) is not False
    dtype = "bfloat16" if may and native_bfloat16(resolve_device(settings.device)) else "float32"
    return settings.model_copy(update={"dtype": dtype})


def share_inputs(model: torch.nn.Module) -> None:
    """Under autocast: hand an adapter the layer's own input, which autocast casts as it likes, and no float32 copy to be kept."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            setattr(module, "cast_input_dtype_enabled", False)  # noqa: B010 - PEFT does not declare it
