from __future__ import annotations

from pathlib import Path

import pytest

from cowest.run import processor
from cowest.run.processor import bfloat16_instructions


@pytest.mark.parametrize(
    ("text", "native"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 avx\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx2 avx512f bf16\n", False),  # no x86 flag is called so
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("Features\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_the_kernel_names_what_the_processor_has(tmp_path: Path, text: str, native: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert bool(bfloat16_instructions(tmp_path / "cpuinfo")) is native


def test_without_cpuinfo_there_is_none(tmp_path: Path) -> None:
    assert bool(bfloat16_instructions(tmp_path / "nothing")) is False


def test_a_mac_is_asked_through_sysctl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr(processor, "_sysctl", lambda name: "1" if name == "hw.optional.arm.FEAT_BF16" else "")
    assert bool(bfloat16_instructions(tmp_path / "unread")) is True
