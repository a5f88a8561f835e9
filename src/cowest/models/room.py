"""How much memory is available on a device."""

from __future__ import annotations

import torch

from cowest.run.machine import free_memory

UNKNOWN = 4 * 2**30  # where the system does not say


def available_bytes(device: torch.device) -> int:
    """Bytes that could be allocated on ``device`` now: free memory of a GPU, else what the system (and a container) leaves."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = free_memory()
    return UNKNOWN if found is None else found
