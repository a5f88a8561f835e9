"""The evenly spaced models of an alignment, of which one is chosen on validation queries."""

from __future__ import annotations

import re
from pathlib import Path

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from cowest.recipe.config import AlignConfig
from cowest.training.common import export
from cowest.types import Checkpoint, ModelRef


class KeepCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Saves the models to choose from."""

    def __init__(self, out: Path, tokenizer: PreTrainedTokenizerBase, settings: AlignConfig) -> None:
        self._out, self._tokenizer = out, tokenizer
        self._adapter, self._count = settings.method == "lora", settings.checkpoints

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **_: object,
    ) -> None:
        """Save the model where this step is one to keep."""
        if model is not None and state.global_step in kept_steps(state.max_steps, self._count):
            target = self._out / f"step-{state.global_step}" / ("adapter" if self._adapter else "model")
            export(model, self._tokenizer, self._adapter, target)


def kept_steps(total: int, count: int) -> list[int]:
    """``count`` evenly spaced steps of 1..total, the last included; fewer where there are fewer steps."""
    return sorted({max(1, round(total * i / count)) for i in range(1, count + 1)})


def kept_models(policy: ModelRef, settings: AlignConfig, out: Path) -> list[Checkpoint]:
    """What ``KeepCallback`` saved in ``out``, in the order of steps."""
    found = []
    for path in out.glob("step-*"):
        match = re.fullmatch(r"step-(\d+)", path.name)
        if match is None:
            continue
        adapter = settings.method == "lora"
        model = (
            ModelRef(base=policy.base, adapter=str(path / "adapter")) if adapter else ModelRef(base=str(path / "model"))
        )
        found.append(Checkpoint(step=int(match[1]), model=model))
    return sorted(found, key=lambda c: c.step)
