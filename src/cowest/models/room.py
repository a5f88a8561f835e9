"""How much memory is available on a device."""

from __future__ import annotations

from pathlib import Path

import torch

UNKNOWN = 4 * 2**30  # where the system does not say
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def available_bytes(device: torch.device) -> int:
    """Bytes that could be allocated on ``device`` now: free memory of a GPU, else what the kernel (and a container) leaves."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = UNKNOWN
    try:
        for line in MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found = int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        most = int((CGROUP / "memory.max").read_text(encoding="ascii"))
        found = min(found, most - int((CGROUP / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no container, or "max"
        pass
    return max(found, 0)
