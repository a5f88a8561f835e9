from __future__ import annotations

import pytest
import torch

from cowest.models import precision
from cowest.models.precision import native_bfloat16


def test_a_device_counts_only_where_torch_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: frozenset({"amx_bf16"}))
    assert native_bfloat16(torch.device("cpu")) is torch.backends.mkldnn.is_available()
    assert native_bfloat16(torch.device("mps")) is False
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for capability, native in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _, found=capability: found)
        assert native_bfloat16(torch.device("cuda")) is native
