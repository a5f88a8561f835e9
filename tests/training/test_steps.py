"""Steps in numbers: the gradient that the optimizer gets is a sum over rows, whichever batch they are in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from pydantic import JsonValue
from tests.training.conftest import END, Ticker
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cowest.models.local import load_model, load_tokenizer
from cowest.recipe.config import AlignConfig, SftConfig
from cowest.training.common import Folder, arguments, load_for_training
from cowest.training.preference import PairTrainer
from cowest.training.preference import tokenize as tokenize_pairs
from cowest.training.sft import LengthGroupedSampler, SftRow, lean_trainer, tokenize, train_sft
from cowest.types import ModelRef, PreferencePair

pytestmark = pytest.mark.slow
Grads = list[dict[str, torch.Tensor]]


class Watch(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Notes the gradients as the optimizer gets them."""

    def __init__(self) -> None:
        self.steps: Grads = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        model: torch.nn.Module = more["model"]
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def watched(trainer: Any) -> Grads:
    watch = Watch()
    trainer.add_callback(watch)  # after the trainer's own
    trainer.train()
    return watch.steps


def settings(kind: type, batch: int, accumulation: int) -> Any:
    # A learning rate of next to nothing: each step's gradient is then that of the untrained model.
    return kind(
        method="full", batch_size=batch, gradient_accumulation=accumulation, epochs=1, learning_rate=1e-12,
        warmup_steps=0, device="cpu",
    )  # fmt: skip


def sft_gradients(tiny: ModelRef, rows: list[dict[str, list[int]]], batch: int, accumulation: int, out: Path) -> Grads:
    config = settings(SftConfig, batch, accumulation)
    trainer = lean_trainer(
        load_for_training(tiny, config), None, rows, config, Folder(out), 0, load_tokenizer(tiny), []
    )
    trainer.args.max_grad_norm = 0.0
    return watched(trainer)


def pair_gradients(tiny: ModelRef, rows: list[dict[str, list[int]]], batch: int, accumulation: int, out: Path) -> Grads:
    from trl import DPOConfig  # type: ignore[attr-defined,unused-ignore]

    special: dict[str, JsonValue] = {
        "precompute_ref_log_probs": True,
        "disable_dropout": True,
        "loss_type": ["sigmoid"],
    }
    args = arguments(DPOConfig, settings(AlignConfig, batch, accumulation), Folder(out), 0, 1, special)
    args.max_grad_norm = 0.0
    return watched(
        PairTrainer(
            model=load_model(tiny, device=torch.device("cpu"), dtype=torch.float32).requires_grad_(True),
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=load_tokenizer(tiny),
        )
    )


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    scale = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-5 * scale, rtol=1e-3)


def total(steps: Grads, weights: list[float]) -> dict[str, torch.Tensor]:
    return {name: sum(w * s[name] for w, s in zip(weights, steps, strict=True)) for name in steps[0]}  # type: ignore[misc]


@pytest.mark.parametrize(("batch", "accumulation", "steps"), [(4, 1, 3), (2, 3, 2), (4, 3, 1), (16, 1, 1)])
def test_each_pair_weighs_the_same(
    tiny: ModelRef, pairs: list[PreferencePair], tmp_path: Path, batch: int, accumulation: int, steps: int
) -> None:
    rows, _ = tokenize_pairs(load_tokenizer(tiny), pairs[:9], 512, "tiny", END)
    alone = pair_gradients(tiny, rows, 1, 1, tmp_path / "alone")
    found = pair_gradients(tiny, rows, batch, accumulation, tmp_path / "found")
    assert (
        len(alone) == 9 and len(found) == steps
    )  # the last micro-batch of nine pairs is short, alone in its step or beside full ones
    close(total(found, [1.0] * steps), total(alone, [1 / (batch * accumulation)] * 9))


@pytest.mark.parametrize(("batch", "accumulation", "left"), [(4, 1, 1), (2, 2, 1), (3, 2, 3), (16, 1, 9)])
def test_a_short_step_of_rows_weighs_by_its_rows(
    tiny: ModelRef, rows: list[SftRow], tmp_path: Path, batch: int, accumulation: int, left: int
) -> None:
    data, _ = tokenize(load_tokenizer(tiny), rows[:9], 512, "tiny", END)
    found = sft_gradients(tiny, data, batch, accumulation, tmp_path / "found")
    sampler = LengthGroupedSampler([len(row["input_ids"]) for row in data], batch * accumulation, seed=0)
    last = [data[i] for i in list(sampler)[-left:]]
    [mean] = sft_gradients(tiny, last, left, 1, tmp_path / "last")
    close(found[-1], total([mean], [left / (batch * accumulation)]))


def test_the_share_is_taken_after_the_clipping(tiny: ModelRef, rows: list[SftRow], tmp_path: Path) -> None:
    data, _ = tokenize(load_tokenizer(tiny), rows[:9], 512, "tiny", END)
    config = settings(SftConfig, 8, 1)
    model = load_for_training(tiny, config)
    trainer = lean_trainer(model, None, data, config, Folder(tmp_path), 0, load_tokenizer(tiny), [])
    trainer.args.max_grad_norm = 1e-3  # far below any gradient here
    full, short = (torch.cat([g.flatten() for g in step.values()]).norm() for step in watched(trainer))
    assert float(full) == pytest.approx(1e-3, rel=1e-3) and float(short) == pytest.approx(1e-3 / 8, rel=1e-3)


def test_the_log_stays_a_mean(tiny: ModelRef, rows: list[SftRow], tmp_path: Path) -> None:
    one = settings(SftConfig, 8, 1).model_copy(update={"checkpoint_every": 1})
    train_sft(tiny, rows[:9], one, tmp_path, 0, Ticker())
    losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in (tmp_path / "log.jsonl").open()]
    assert len(losses) == 2 and losses[1] == pytest.approx(losses[0], rel=0.2)
