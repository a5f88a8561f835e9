from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from tests.training.conftest import END

from cowest.models.local import load_model, load_tokenizer
from cowest.recipe.config import AlignConfig
from cowest.training.common import Folder
from cowest.training.preference import pair_trainer, tokenize, weights_of
from cowest.types import ModelRef, PreferencePair

SETTINGS = AlignConfig(method="full", batch_size=4, learning_rate=1e-3, max_steps=1, device="cpu", beta=0.5)


def gradients(tiny: ModelRef, pairs: list[PreferencePair], weights: list[float] | None, out: Path) -> dict[str, Any]:
    """Of TRL's mean loss over all pairs in one batch, away from the reference, where every pair's slope differs."""
    model, tokenizer = load_model(tiny, device=torch.device("cpu"), dtype=torch.float32), load_tokenizer(tiny)
    rows, _ = tokenize(tokenizer, pairs, 512, "tiny", END, weights)
    trainer = pair_trainer(model, None, rows, SETTINGS, Folder(out), 0, tokenizer, [])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    batch = trainer.data_collator([dict(row) for row in cast(Dataset, trainer.train_dataset)])
    model.requires_grad_(True)
    trainer.compute_loss(model, batch).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
def test_a_weight_scales_its_pair_s_gradient_alone(
    large: bool, tiny: ModelRef, pairs: list[PreferencePair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr("cowest.training.head.LARGE", 1)
    some, given = pairs[:3], [0.5, 2.0, 0.0]
    together = gradients(tiny, some, given, tmp_path / "all")
    alone = [gradients(tiny, [pair], None, tmp_path / str(i)) for i, pair in enumerate(some)]
    assert together.keys() == alone[0].keys() and len(together) > 5
    for name, found in together.items():
        wanted = sum(w * one[name] for w, one in zip(given, alone, strict=True)) / 3
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


def test_what_a_pair_counts(pairs: list[PreferencePair]) -> None:
    one, two = pairs[0], pairs[1].model_copy(update={"chosen_gain": 3.0})
    assert weights_of([one, two], "even") is None
    assert weights_of([one, two], "margin") == pytest.approx([0.5, 1.5])
    people = one.model_copy(update={"weight": 3.0})
    assert weights_of([people, two], "even") == pytest.approx([1.5, 0.5])
    assert weights_of([people, two], "margin") is None  # 3 x 1 and 1 x 3
