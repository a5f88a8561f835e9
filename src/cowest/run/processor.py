"""Which instructions for bfloat16 this machine's processor has; nothing heavy is imported."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

CPUINFO: Final = Path("/proc/cpuinfo")
X86: Final = frozenset({"amx_bf16", "avx512_bf16"})  # Intel from Cooper Lake and Sapphire Rapids, AMD from Zen 4
ARM: Final = frozenset({"bf16"})  # Armv8.6: Neoverse V1 and N2, Graviton 3


@cache
def bfloat16_instructions(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Those for matrix products, as the kernel names them: ``/proc/cpuinfo`` on Linux, ``sysctl`` on macOS; else none."""
    if platform.system() == "Darwin":
        return frozenset({"FEAT_BF16"}) if _sysctl("hw.optional.arm.FEAT_BF16") == "1" else frozenset()
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):  # of the first core: x86's word, and Arm's
            return frozenset(value.split()) & (X86 if name.strip() == "flags" else ARM)
    return frozenset()


def _sysctl(name: str) -> str:
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
