"""Which devices multiply matrices in bfloat16 by themselves, so that it is faster there than float32 and not only smaller.

A processor without such instructions computes bfloat16 by converting to float32 and back, which is slower than float32.
"""

from __future__ import annotations

from typing import Final

import torch

from cowest.run.processor import bfloat16_instructions

AMPERE: Final = (8, 0)
"""The first CUDA capability with bfloat16 tensor cores."""


def native_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` has instructions for matrix products in bfloat16, and PyTorch here uses them.

    Of a CPU: AMX, AVX512-BF16 or Arm's BF16, behind oneDNN. Of a CUDA device: compute capability 8.0. Elsewhere False.
    """
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= AMPERE
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and bool(bfloat16_instructions())
