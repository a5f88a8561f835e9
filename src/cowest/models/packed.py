"""Linear layers whose weights stand in memory as the processor's bfloat16 instructions want them.

oneDNN otherwise brings them into that order again on every call, which for the few rows of a decoding step takes longer than the
product itself (measured: 1.3 to 2 times as long up to 16 rows). The order is made once, and the plain weights are dropped.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

KNOWN = frozenset({"llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "smollm3"})
"""Models whose code does nothing with a linear layer but call it."""

ROWS = 16  # for how many rows the order is chosen


class PackedLinear(torch.nn.Module):
    """Computes what ``linear`` does; for inference on a CPU alone."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._weight: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.data, ROWS)
        self._bias = None if linear.bias is None else linear.bias.data

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As torch.nn.Linear's."""
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return found


@torch.inference_mode()
def pack(model: PreTrainedModel) -> int:
    """Pack the linear layers of a bfloat16 model on a CPU, in place. How many were packed: 0 where it cannot be done."""
    if (
        model.device.type != "cpu"
        or model.dtype != torch.bfloat16
        or model.config.model_type not in KNOWN
        or not _works()
    ):
        return 0
    found = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear
    ]
    for parent, name, child in found:
        setattr(parent, name, PackedLinear(child))
        if child.weight is not model.get_input_embeddings().weight:
            del child.weight  # else the old one and the new one are in memory together until the end
    return len(found)


def _works() -> bool:
    """Whether this build of PyTorch has the operators (its compiler uses them), and they compute what they should."""
    x, linear = torch.randn(3, 32, dtype=torch.bfloat16), torch.nn.Linear(32, 16, dtype=torch.bfloat16)
    try:
        found = PackedLinear(linear)(x)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(found.float(), linear(x).float(), atol=0.05, rtol=0.05)
