"""Which devices multiply matrices in bfloat16 by themselves, so that it is faster there than float32 and not only smaller.

A processor without such instructions computes bfloat16 by converting to float32 and back, which is slower than float32.
"""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

import torch

CPUINFO: Final = Path("/proc/cpuinfo")
X86: Final = frozenset({"amx_bf16", "avx512_bf16"})  # Intel from Cooper Lake and Sapphire Rapids, AMD from Zen 4
ARM: Final = frozenset({"bf16"})  # Armv8.6: Neoverse V1 and N2, Graviton 3
AMPERE: Final = (8, 0)
"""The first CUDA capability with bfloat16 tensor cores."""


def native_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` has instructions for matrix products in bfloat16, and PyTorch here uses them.

    Of a CPU: AMX, AVX512-BF16 or Arm's BF16, behind oneDNN. Of a CUDA device: compute capability 8.0. Elsewhere False.
    """
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= AMPERE
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and processor_has_bfloat16()


@cache
def processor_has_bfloat16(cpuinfo: Path = CPUINFO) -> bool:
    """What the kernel says of this machine's processor: ``/proc/cpuinfo`` on Linux, ``sysctl`` on macOS; else False."""
    if platform.system() == "Darwin":
        return _sysctl("hw.optional.arm.FEAT_BF16") == "1"
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):  # of the first core: x86's word, and Arm's
            return bool(set(value.split()) & (X86 if name.strip() == "flags" else ARM))
    return False


def _sysctl(name: str) -> str:
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
