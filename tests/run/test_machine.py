from __future__ import annotations

import platform
from pathlib import Path

import pytest

from cowest.run.machine import free_memory, give_freed_memory_back, keep_freed_memory

pytestmark = pytest.mark.skipif(platform.system() == "Darwin", reason="reads /proc")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 32000 kB\nMemFree: 100 kB\nMemAvailable:   20000 kB\n"}


def test_without_groups_it_is_what_the_kernel_calls_available(tmp_path: Path) -> None:
    assert free_memory(write(tmp_path, MEMINFO)) == 20000 * 1024


def test_a_group_of_version_2_counts_with_its_parents(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/jobs/mine"
    root = write(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "0::/jobs/mine\n",
            f"{group}/memory.max": "max\n",
            f"{group}/memory.current": "7000000\n",
            "sys/fs/cgroup/jobs/memory.max": "9000000\n",
            "sys/fs/cgroup/jobs/memory.current": "8000000\n",
            "sys/fs/cgroup/jobs/memory.stat": "anon 1\ninactive_file 500000\n",
        },
    )
    assert free_memory(root) == 1_500_000


def test_a_group_of_version_1(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "5:cpu,cpuacct:/a\n3:memory:/a\n",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "6000000\n",
            "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "5000000\n",
            "sys/fs/cgroup/memory/a/memory.stat": "total_inactive_file 1000\n",
        },
    )
    assert free_memory(root) == 1_001_000


def test_what_is_over_its_limit_has_nothing_free_and_nothing_known_is_none(tmp_path: Path) -> None:
    over = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "10\n",
        "sys/fs/cgroup/memory.current": "11\n",
    }
    assert free_memory(write(tmp_path / "over", over)) == 0
    assert free_memory(tmp_path / "empty") is None


def test_this_machine_tells() -> None:
    assert (free_memory() or 0) > 1 << 20


def test_malloc_is_told_where_it_is_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    told = dict[int, int]()

    class Libc:
        def mallopt(self, name: int, value: int) -> int:
            told[name] = value
            return 1

        def malloc_trim(self, pad: int) -> int:
            told[0] = pad
            return 1

    monkeypatch.setattr("ctypes.CDLL", lambda _: Libc())
    monkeypatch.setattr("os.confstr", lambda _: "glibc 2.36", raising=False)
    assert keep_freed_memory() is True
    give_freed_memory_back()
    assert told == {-3: 32 << 20, -1: (1 << 31) - 1, -2: 64 << 20, 0: 0}
    for libc in (None, "musl"):
        monkeypatch.setattr("os.confstr", lambda _, found=libc: found, raising=False)
        told.clear()
        assert keep_freed_memory() is False
        give_freed_memory_back()
        assert told == {}
