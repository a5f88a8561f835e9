from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cowest.models import precision
from cowest.models.precision import native_bfloat16, processor_has_bfloat16


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
    assert processor_has_bfloat16(tmp_path / "cpuinfo") is native


def test_without_cpuinfo_there_is_none(tmp_path: Path) -> None:
    assert processor_has_bfloat16(tmp_path / "nothing") is False


def test_a_mac_is_asked_through_sysctl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr(precision, "_sysctl", lambda name: "1" if name == "hw.optional.arm.FEAT_BF16" else "")
    assert processor_has_bfloat16(tmp_path / "unread") is True


def test_a_device_counts_only_where_torch_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "processor_has_bfloat16", lambda: True)
    assert native_bfloat16(torch.device("cpu")) is torch.backends.mkldnn.is_available()
    assert native_bfloat16(torch.device("mps")) is False
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for capability, native in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _, found=capability: found)
        assert native_bfloat16(torch.device("cuda")) is native
