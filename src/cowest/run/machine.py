"""What this machine has free, and how the C library hands memory back."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Final

GIB: Final = 1 << 30
MMAP_THRESHOLD: Final = 32 << 20  # the most that glibc takes
TRIM_THRESHOLD: Final = (1 << 31) - 1
TOP_PAD: Final = 64 << 20  # a thread's heap is not given back while it is smaller
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still take before the kernel kills one; None where the system does not tell.

    The least of what Linux calls available and what the limits of its control groups (versions 1 and 2) leave; on macOS the
    pages that are free, inactive or can be dropped. ``root`` is where ``proc`` and ``sys`` are.
    """
    if platform.system() == "Darwin":
        return _mac()
    found = [_available(root / "proc/meminfo"), *_groups(root)]
    known = [value for value in found if value is not None]
    return max(0, min(known)) if known else None


def _available(meminfo: Path) -> int | None:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", _text(meminfo), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _groups(root: Path) -> list[int | None]:
    """What the control groups of this process leave, from its own up to the root's; what the page cache holds can go."""
    found = list[int | None]()
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        base = root / ("sys/fs/cgroup" if controllers == "" else "sys/fs/cgroup/memory")
        limit, used = (
            ("memory.max", "memory.current")
            if controllers == ""
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        here = Path(path.lstrip("/"))
        for folder in (base / here, *(base / parent for parent in here.parents)):
            most, now = _text(folder / limit).strip(), _text(folder / used).strip()
            if most.isdigit() and now.isdigit():
                match = re.search(r"^(?:total_)?inactive_file (\d+)", _text(folder / "memory.stat"), re.MULTILINE)
                found.append(int(most) - int(now) + (int(match[1]) if match else 0))
    return found


def _mac() -> int | None:
    try:
        told = subprocess.run(["vm_stat"], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    size = re.search(r"page size of (\d+) bytes", told)
    pages = re.findall(r"Pages (?:free|inactive|purgeable|speculative):\s+(\d+)", told)
    return int(size[1]) * sum(map(int, pages)) if size and pages else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed for what comes next, where the C library is glibc; whether it does.

    By itself it gives every large block back to the kernel and asks for it again, page by page, in each step of a training.
    """
    libc = _glibc()
    if libc is None:
        return False
    settings = {
        _M_MMAP_THRESHOLD: MMAP_THRESHOLD,
        _M_TRIM_THRESHOLD: TRIM_THRESHOLD,
        _M_TOP_PAD: TOP_PAD,
    }
    return all([libc.mallopt(name, value) == 1 for name, value in settings.items()])


def give_freed_memory_back() -> None:
    """Hand what is freed and kept back to the kernel, for the next stage or another process."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError):  # Windows; macOS, musl
        return None
    return ctypes.CDLL(None) if glibc else None
