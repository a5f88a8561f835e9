"""The arithmetic of memory: what is estimated, and how a step is split to fit."""

from __future__ import annotations

import pytest

from cowest.models.shape import ModelShape
from cowest.recipe.config import AlignConfig, SftConfig, TrainingSettings
from cowest.training.memory import Need, fitted, micro_batches, narrowed, smaller, trained_weights, training_need

GIB = 1 << 30
SMOL = ModelShape(
    parameters=134_515_008, stored_bytes=2, layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_size=64,
    vocabulary=49_152,
)  # fmt: skip
SFT = SftConfig(batch_size=8, dtype="bfloat16")


def step(settings: TrainingSettings, rows: int, length: int = 470) -> int:
    need = training_need(SMOL, settings, length, 1, rows)
    return need.trained + need.step


def test_the_known_model_needs_about_what_it_was_seen_to_take() -> None:
    need = training_need(SMOL, SFT, 470, 1, 8)
    assert need.weights == pytest.approx(0.25 * GIB, rel=0.01)
    assert trained_weights(SMOL, SFT) == 4_884_480  # as PEFT counts a LoRA of rank 16 on all linear layers
    assert 2.5 * GIB < need.step < 5 * GIB


def test_full_training_holds_sixteen_bytes_a_weight_and_casts() -> None:
    full = training_need(SMOL, SFT.model_copy(update={"method": "full"}), 470, 1, 1)
    assert full == Need(4 * SMOL.parameters, 18 * SMOL.parameters, full.step, 1)


def test_a_step_that_fits_is_left_alone() -> None:
    settings, fit = fitted(SFT, SMOL, 470, 1, 20 * GIB, "sft")
    assert settings == SFT and fit.told is None and fit.missing is None


@pytest.mark.parametrize("rows", [4, 2, 1])
def test_a_step_is_split_evenly_with_as_many_rows_in_all(rows: int) -> None:
    settings, fit = fitted(SFT, SMOL, 470, 1, step(SFT, rows), "sft")
    assert (settings.batch_size, settings.gradient_accumulation) == (rows, 8 // rows)
    assert not settings.gradient_checkpointing
    assert fit.how == f"{8 // rows} micro-batches of {rows}" and fit.told is not None
    assert fit.told.startswith("sft: a step of batch_size 8 needs ") and "same gradient" in fit.told


def test_accumulation_of_the_recipe_is_kept() -> None:
    six = SFT.model_copy(update={"batch_size": 6, "gradient_accumulation": 2})
    settings, _ = fitted(six, SMOL, 470, 1, step(six, 2), "sft")
    assert (settings.batch_size, settings.gradient_accumulation) == (2, 6)


def test_what_does_not_fit_row_by_row_is_checkpointed_and_then_refused() -> None:
    one = step(SFT, 1)
    settings, fit = fitted(SFT, SMOL, 470, 1, one - 1, "sft")
    assert settings.gradient_checkpointing and fit.how is not None and fit.how.endswith("gradient checkpointing")
    kept, none = fitted(SFT, SMOL, 470, 1, 1, "sft")
    assert kept == SFT and none.told is None
    assert none.missing is not None and none.missing < one
    # Exactly what is missing is enough.
    assert fitted(SFT, SMOL, 470, 1, none.missing, "sft")[1].missing is None
    assert fitted(SFT, SMOL, 470, 1, none.missing - 1, "sft")[1].missing == none.missing


def test_dpo_with_an_nll_term_is_not_split() -> None:
    plain = AlignConfig(batch_size=8)
    assert list(micro_batches(plain)) == [8, 4, 2, 1]
    assert list(micro_batches(plain.model_copy(update={"nll_weight": 1.0}))) == [8]
    assert smaller(plain.model_copy(update={"nll_weight": 1.0})) is None


def test_halving_ends_at_one_row() -> None:
    found, sizes = SftConfig(batch_size=12), []
    while (less := smaller(found)) is not None:
        found = less
        sizes.append((found.batch_size, found.gradient_accumulation))
    assert sizes == [(6, 2), (3, 4), (1, 12)]


def test_on_a_processor_wide_batches_are_done_in_narrow_ones() -> None:
    found = narrowed(SFT, SMOL, 470, 1)
    assert (found.batch_size, found.gradient_accumulation) == (4, 2)
    assert narrowed(SFT, SMOL, 4000, 1).batch_size == 1
    assert narrowed(SFT, SMOL.model_copy(update={"vocabulary": 1024}), 470, 1) == SFT  # the lab's stay bit by bit
    kept = AlignConfig(batch_size=8, nll_weight=1.0)
    assert narrowed(kept, SMOL, 470, 2) == kept
