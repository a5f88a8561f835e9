"""What a training needs of memory, and how its batch is split to fit what is free.

The sum, for a decoder of L layers with width H, inner width I and vocabulary V, in bytes; s is 4 in float32, 2 in bfloat16:

    weights      s for each (a full training in bfloat16 holds 4, and casts: 2 more)
    trained      16 for each weight that is trained: itself (a LoRA's own), its gradient, and AdamW's two averages
    activations  for each token of a micro-batch and layer 8 H + s (7 H + 4 I): what the backward pass reads again. With gradient
                 checkpointing s H, and one layer whole
    passing      the widest tensors that one layer's passes hold at once: 24 max(I, 2 H) for each token
    head         the rows of the vocabulary that are made at once

Of a step, times ``SAFE``: malloc keeps holes, families differ, others take memory
meanwhile (docs/training.md has measured peaks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from cowest.models.shape import ModelShape
from cowest.recipe.config import AlignConfig, TrainingSettings

SAFE: Final = 1.25
PROGRAM: Final = 1 << 30
"""Python with PyTorch, transformers and TRL, before any weights."""
LARGE_VOCABULARY: Final = 16_384
HEAD_BYTES: Final = 160 << 20
"""Of a head that is made a portion at a time (``head.py``)."""
WIDE: Final = 2048
"""Tokens of a micro-batch beyond which a processor gains no speed, and only memory is taken."""

S = TypeVar("S", bound=TrainingSettings)


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes: what a process holds before the first step, and what a step adds for each row of the micro-batch."""

    weights: int
    trained: int
    step: int
    rows: int

    @property
    def total(self) -> int:
        """All of it, beside the program itself."""
        return self.weights + self.trained + self.step


def bytes_of_weights(settings: TrainingSettings) -> int:
    """Of one weight as it is loaded for a training."""
    return 2 if settings.method == "lora" and settings.dtype == "bfloat16" else 4


def training_need(shape: ModelShape, settings: TrainingSettings, length: int, sequences: int, rows: int) -> Need:
    """What a training with micro-batches of ``rows`` needs, each of ``sequences`` sequences of ``length`` tokens together at most.

    ``settings.dtype`` is decided (not ``auto``).
    """
    size = 2 if settings.dtype == "bfloat16" else 4
    casts = shape.parameters * 2 if settings.method == "full" and size == 2 else 0
    tokens = rows * sequences * length
    layer = 8 * shape.hidden + size * (7 * shape.hidden + 4 * shape.intermediate)
    kept = tokens * shape.layers * layer
    if settings.gradient_checkpointing:
        kept = tokens * (shape.layers * size * shape.hidden + layer)
    passing = tokens * 24 * max(shape.intermediate, 2 * shape.hidden)
    small = shape.vocabulary < LARGE_VOCABULARY
    head = 16 * tokens * shape.vocabulary if small else HEAD_BYTES
    return Need(
        weights=shape.parameters * bytes_of_weights(settings),
        trained=16 * trained_weights(shape, settings) + casts,
        step=int(SAFE * (kept + passing + head)),
        rows=rows,
    )


def trained_weights(shape: ModelShape, settings: TrainingSettings) -> int:
    """How many weights the optimizer moves."""
    if settings.method == "full":
        return shape.parameters
    q, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    sides = 2 * (shape.hidden + q) + 2 * (shape.hidden + kv) + 3 * (shape.hidden + shape.intermediate)
    return shape.layers * settings.lora.r * sides


@dataclass(frozen=True, slots=True)
class Fit:
    """``how`` a step is split to fit, and the line that tells of it; ``missing``: bytes that one row needs, where nothing helps."""

    how: str | None = None
    told: str | None = None
    missing: int | None = None


def fitted(settings: S, shape: ModelShape, length: int, sequences: int, free: int, stage: str) -> tuple[S, Fit]:
    """The settings with a micro-batch that fits into ``free`` bytes, beside weights that are loaded: the gradient stays what it is.

    First fewer rows at a time, with as many more accumulated; then gradient checkpointing, which computes more and keeps less.
    """
    wanted = least = training_need(shape, settings, length, sequences, settings.batch_size)
    for checkpointing in sorted({settings.gradient_checkpointing, True}):
        tried = settings.model_copy(update={"gradient_checkpointing": checkpointing})
        for rows in micro_batches(settings):
            least = training_need(shape, tried, length, sequences, rows)
            if least.trained + least.step <= free:
                ways = [f"{settings.batch_size // rows} micro-batches of {rows}"] * (rows < settings.batch_size)
                ways += ["gradient checkpointing"] * (checkpointing and not settings.gradient_checkpointing)
                how = " and ".join(ways)
                told = (
                    f"{stage}: a step of batch_size {settings.batch_size} needs {gib(wanted.trained + wanted.step)} and "
                    f"{gib(free)} are free: done with {how}, which is the same gradient"
                )
                return _split(tried, rows), Fit(how=how, told=told) if how else Fit()
    return settings, Fit(missing=least.trained + least.step)


def narrowed(settings: S, shape: ModelShape, length: int, sequences: int) -> S:
    """On a processor: micro-batches of up to ``WIDE`` tokens, with as many more of them; small models are left as they are."""
    sizes = micro_batches(settings)
    if shape.vocabulary < LARGE_VOCABULARY:
        return settings
    return _split(settings, next((rows for rows in sizes if rows * sequences * length <= WIDE), sizes[-1]))


def micro_batches(settings: TrainingSettings) -> Sequence[int]:
    """Rows of micro-batches that fill ``batch_size`` evenly, the most first.

    Only all of them where the split would change the gradient: TRL's NLL term of DPO is a mean over a micro-batch.
    """
    whole = isinstance(settings, AlignConfig) and settings.nll_weight > 0 and settings.compares
    least = settings.batch_size if whole else 1
    return [rows for rows in range(settings.batch_size, least - 1, -1) if settings.batch_size % rows == 0]


def smaller(settings: S) -> S | None:
    """Micro-batches of half the rows, or fewer where that fills the batch evenly; None where there is no smaller one."""
    fits = [rows for rows in micro_batches(settings) if rows <= settings.batch_size // 2]
    return _split(settings, fits[0]) if fits else None


def _split(settings: S, rows: int) -> S:
    times = settings.batch_size // rows
    return settings.model_copy(
        update={"batch_size": rows, "gradient_accumulation": settings.gradient_accumulation * times}
    )


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / (1 << 30):.1f} GiB"
