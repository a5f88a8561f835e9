"""A training within the memory that is free: looked at before the first step, and again where it runs out all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from transformers import PreTrainedModel

from cowest.errors import StageError
from cowest.models.local import resolve_device
from cowest.models.shape import model_shape
from cowest.protocols import Reporter
from cowest.recipe.config import TrainingSettings
from cowest.run.machine import free_memory, keep_freed_memory
from cowest.training.common import Folder, load_for_training, release
from cowest.training.memory import bytes_of_weights, fitted, gib, narrowed, smaller, trained_weights
from cowest.training.precision import share_inputs
from cowest.types import ModelRef

RETRIES: Final = 8
"""Halvings of a micro-batch after memory ran out."""
S = TypeVar("S", bound=TrainingSettings)


def memory_left(device: torch.device) -> int | None:
    """Bytes that a training on ``device`` can take; None where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory()


@dataclass(slots=True)
class Loaded:
    """A model to train, once; after that it is loaded anew. ``settings`` have their ``dtype`` decided."""

    ref: ModelRef
    settings: TrainingSettings
    model: PreTrainedModel | None

    def take(self) -> PreTrainedModel:
        """The model as ``ref`` has it. Nothing here holds it afterwards, so that its memory can be given back."""
        model, self.model = self.model, None
        return load_for_training(self.ref, self.settings) if model is None else model


def load_within_memory(ref: ModelRef, settings: TrainingSettings, stage: str) -> Loaded:
    """The model to train. ``settings`` have their ``dtype`` decided.

    Raises StageError where its weights alone do not fit what is free; and ModelNotFoundError.
    """
    shape, left = model_shape(ref.base), memory_left(resolve_device(settings.device))
    if shape is not None and left is not None:
        need = shape.parameters * bytes_of_weights(settings) + 16 * trained_weights(shape, settings)
        if need > left:
            raise StageError(
                f"{stage}: {ref.base} and what its training keeps need {gib(need)} of memory, and {gib(left)} are free: "
                + _advice(settings, stage)
            )
    keep_freed_memory()
    return Loaded(ref, settings, load_for_training(ref, settings))


def _advice(settings: TrainingSettings, stage: str) -> str:
    ways = [
        *(() if settings.method == "lora" else (f"set {stage}.method: lora",)),
        *(() if settings.dtype == "bfloat16" else (f"set {stage}.dtype: bfloat16",)),
        f"lower {stage}.max_length",
        "stop other programs (a served model holds its weights and its cache)",
    ]
    return ", or ".join(ways)


def train_within_memory(
    loaded: Loaded,
    settings: S,
    longest: int,
    sequences: int,
    folder: Folder,
    stage: str,
    reporter: Reporter,
    build: Callable[[PreTrainedModel, S], Any],
) -> Any:
    """Train what is ``loaded`` with the trainer that ``build`` makes of it and of settings whose steps fit; the trainer.

    ``longest`` tokens have the ``sequences`` of a row, each. Where memory runs out, the micro-batch is halved and the training goes
    on from its last checkpoint. Raises StageError where one row does not fit.
    """
    settings = _fitted(loaded.ref, settings, longest, sequences, stage, reporter)
    for _ in range(RETRIES + 1):
        trainer = None
        try:
            trainer = build(loaded.take(), settings)
            if settings.dtype == "bfloat16":
                share_inputs(trainer.model)
            trainer.train(resume_from_checkpoint=folder.resume_from())
            return trainer
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            if not _ran_out(error):
                raise
            less, why = smaller(settings), str(error).splitlines()[0] if str(error) else type(error).__name__
        finally:
            reporter.finish()
        del trainer
        release()
        if less is None:
            raise StageError(f"{stage}: memory ran out at one row a step ({why}): {_advice(settings, stage)}")
        reporter.info(
            f"{stage}: memory ran out ({why}): goes on from its last checkpoint with {less.batch_size} rows at a time in "
            f"place of {settings.batch_size}, which is the same gradient"
        )
        settings = less
    raise StageError(f"{stage}: memory ran out {RETRIES + 1} times: {_advice(settings, stage)}")


def _ran_out(error: BaseException) -> bool:
    """PyTorch's allocator of CPU memory raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _fitted(ref: ModelRef, settings: S, longest: int, sequences: int, stage: str, reporter: Reporter) -> S:
    shape, left = model_shape(ref.base), memory_left(resolve_device(settings.device))
    if shape is None or left is None:
        return settings
    if resolve_device(settings.device).type == "cpu":
        settings = narrowed(settings, shape, longest, sequences)
    found, fit = fitted(settings, shape, longest, sequences, left, stage)
    if fit.missing is not None:
        raise StageError(
            f"{stage}: a step with one row of up to {sequences * longest:,} tokens needs {gib(fit.missing)} of memory beside "
            f"the model's weights, and {gib(left)} are free: {_advice(settings, stage)}"
        )
    if fit.told is not None:
        reporter.info(fit.told)
    return found
