"""What SFT and preference tuning share: arguments, resumable checkpoints, the log, and saving models atomically.

A training folder holds::

    training.json    the fingerprint of what is being trained (model, data, settings, seed)
    log.jsonl        one row a logged step: step, loss, learning_rate, ...
    checkpoints/     resumable states, the newest two; gone when the training is finished
    summary.json     written last: rows or pairs (how many, cut, lost), steps, seconds, final_loss
    model/ or adapter/ (SFT), step-N/model or step-N/adapter (alignment): ordinary checkpoints with their tokenizer

A folder whose fingerprint is another's is emptied of these and started anew; a finished one is returned as it is.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig
from pydantic import JsonValue
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from cowest.errors import StageError
from cowest.models.chat import turn_end
from cowest.models.local import end_ids, load_model, resolve_device
from cowest.protocols import Reporter, Tracker
from cowest.recipe.config import LoraSettings, TrainingSettings
from cowest.recipe.outcome import settings_of
from cowest.run.identity import fingerprint as values_fingerprint
from cowest.run.identity import hash_model
from cowest.run.machine import give_freed_memory_back
from cowest.training.encoding import Cut
from cowest.training.notices import quiet
from cowest.types import ModelRef, Record

METHOD = 2  # counts the changes of what the same settings and data are trained into
COMPLETE = "cowest-complete"  # a checkpoint has this file once all of it is on disk

Arguments = TypeVar("Arguments", bound=TrainingArguments)


class TrainingSummary(Record):
    """``summary.json``. ``data`` says how many items there were, and what max_length did to them.

    ``seconds`` is the wall-clock time of the process that finished the training, loading included; ``final_loss`` is
    the last one logged, None where nothing was.
    """

    data: Cut
    steps: int
    seconds: float
    final_loss: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Folder:
    """A training folder; see the module's docstring for its contents."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def open(self, fingerprint: str) -> TrainingSummary | None:
        """Make the folder ready for the training with this fingerprint; its summary if that is finished already."""
        self.path.mkdir(parents=True, exist_ok=True)
        marker = self.path / "training.json"
        known = _read_fingerprint(marker)
        if known != fingerprint:
            for name in ("checkpoints", "model", "adapter"):
                shutil.rmtree(self.path / name, ignore_errors=True)
            for step in self.path.glob("step-*"):
                shutil.rmtree(step, ignore_errors=True)
            self.log.unlink(missing_ok=True)
            self.summary.unlink(missing_ok=True)
            _write(marker, json.dumps({"fingerprint": fingerprint}))
        if not self.summary.is_file():
            return None
        return TrainingSummary.model_validate_json(self.summary.read_text(encoding="utf-8"))

    def finish(self, summary: TrainingSummary) -> None:
        """Write the summary, which marks the training as finished, and remove the resumable checkpoints."""
        _write(self.summary, summary.model_dump_json())
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def resume_from(self) -> str | None:
        """The newest complete checkpoint; incomplete ones are removed."""
        newest: tuple[int, Path] | None = None
        for path in self.checkpoints.glob("checkpoint-*"):
            if not (path / COMPLETE).is_file():
                shutil.rmtree(path, ignore_errors=True)
                continue
            step = int(path.name.rpartition("-")[2])
            if newest is None or step > newest[0]:
                newest = (step, path)
        return str(newest[1]) if newest else None


def _read_fingerprint(path: Path) -> str | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(value.get("fingerprint")) if isinstance(value, dict) else None


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def fingerprint(stage: str, ref: ModelRef, settings: TrainingSettings, rows: Iterable[Record], seed: int) -> str:
    """Hash of all that decides the outcome: settings that differ from their defaults, weights by their contents, and the rows."""
    given = settings_of("", settings)
    chosen = {name: value for name, value in given.values.items() if given.defaults.get(name, ...) != value}
    if chosen.get(".dtype") == "float32":
        del chosen[".dtype"]  # it was the default before there was another one to decide
    weights: list[JsonValue] = [None if name is None else hash_model(name) for name in (ref.base, ref.adapter)]
    digest = hashlib.sha256(values_fingerprint(stage, METHOD, seed, chosen, weights).encode())
    for row in rows:
        digest.update(row.model_dump_json().encode())
    return digest.hexdigest()


def save_atomically(target: Path, save: Callable[[Path], None]) -> None:
    """``save`` into a folder beside ``target``, then rename it: ``target`` is whole or not there."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, adapter: bool, target: Path) -> None:
    """Save an ordinary checkpoint, or the one ordinary PEFT adapter, with its tokenizer and chat template.

    A checkpoint's generation config names the token that ends a turn, so that other programs stop there, too.
    """

    def save(folder: Path) -> None:
        if adapter:
            # PEFT would look the base up on the hub to decide about the embeddings, which are never trained here.
            model.save_pretrained(str(folder), selected_adapters=["default"], save_embedding_layers=False)
        else:
            _stop_at_turn_end(model, tokenizer)
            model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))

    with quiet():
        save_atomically(target, save)


def _stop_at_turn_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    config, end = model.generation_config, turn_end(tokenizer)
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if end is not None and end not in known:
        config.eos_token_id = end_ids(model, tokenizer)


def load_for_training(ref: ModelRef, settings: TrainingSettings) -> PreTrainedModel:
    """The model to train. method lora continues the adapter that ``ref`` has; method full merges it first.

    Weights are float32 (bfloat16 means autocast then), but for the frozen base of a LoRA in bfloat16.
    """
    small = settings.method == "lora" and settings.dtype == "bfloat16"
    model = load_model(
        ref,
        device=torch.device("cpu"),  # the Trainer moves it
        dtype=torch.bfloat16 if small else torch.float32,
        trainable=settings.method == "lora",
    )
    if settings.method == "full":
        model.requires_grad_(True)  # PEFT freezes what it merges into
    return model


def new_adapter(ref: ModelRef, settings: TrainingSettings) -> LoraConfig | None:
    """The LoRA to add; None where all weights are trained or ``ref`` brings an adapter to go on with."""
    if settings.method == "full" or ref.adapter is not None:
        return None
    lora: LoraSettings = settings.lora
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )


def arguments(
    kind: type[Arguments],
    settings: TrainingSettings,
    folder: Folder,
    seed: int,
    logging_steps: int,
    special: dict[str, JsonValue],
) -> Arguments:
    """TRL's configuration of ``kind`` from ours; ``special`` are the fields of this kind alone."""
    device = resolve_device(settings.device)
    names = {f.name for f in dataclasses.fields(kind)}
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    common: dict[str, JsonValue] = {
        "output_dir": str(folder.checkpoints),
        "use_cpu": device.type == "cpu",
        "bf16": settings.dtype == "bfloat16",
        checkpointing: settings.gradient_checkpointing,
        "dataloader_pin_memory": device.type == "cuda",
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps if settings.max_steps is not None else -1,
        **({"max_length": settings.max_length} if "max_length" in names else {}),
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_every,
        "save_total_limit": 2,
        "logging_steps": logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss that is not finite must be seen (LogCallback), not averaged away
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed % 2**32,
        "data_seed": seed % 2**32,
    }
    values: dict[str, Any] = {**common, **special}
    made = kind(**values)
    if made.device.type == "cuda":
        made._n_gpu = 1  # one process, one GPU: TRL refuses DataParallel
    return made


class LogCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Progress to the reporter, rows to log.jsonl, completion marks to the checkpoints."""

    def __init__(self, folder: Folder, reporter: Reporter, label: str, tracker: Tracker) -> None:
        self._folder, self._reporter, self._label, self._tracker = folder, reporter, label, tracker
        self.final_loss: float | None = None
        self.steps = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Rewrite the log from the resumed state: rows after its checkpoint will be written again."""
        rows = [row for row in state.log_history if "loss" in row]
        _write(self._folder.log, "".join(_line(row) for row in rows))
        self.final_loss = rows[-1]["loss"] if rows else None
        self._reporter.start(self._label, state.max_steps, state.global_step)

    def summary(self, data: Cut, started: float) -> TrainingSummary:
        """What a training that began at ``started`` (perf_counter) has come to."""
        seconds = time.perf_counter() - started
        return TrainingSummary(data=data, steps=self.steps, seconds=seconds, final_loss=self.final_loss)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Advance by one step."""
        self.steps = state.global_step
        self._reporter.advance()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Append the row. Raises StageError where the loss is not finite: what follows would be noise."""
        row = state.log_history[-1]
        if "loss" not in row:
            return
        if not math.isfinite(row["loss"]):
            raise StageError(
                f"the training diverged: the loss is {row['loss']} at step {row['step']}; lower learning_rate"
            )
        self.final_loss = row["loss"]
        with self._folder.log.open("a", encoding="utf-8") as file:
            file.write(_line(row))
        numbers = {name: float(v) for name, v in row.items() if name != "step" and isinstance(v, int | float)}
        self._tracker.log(self._label, numbers, int(row["step"]))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Mark the checkpoint as complete: the Trainer calls this after the last of its files."""
        (self._folder.checkpoints / f"checkpoint-{state.global_step}" / COMPLETE).touch()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Count the steps of a training that was resumed at its end."""
        self.steps = state.global_step


def _line(row: dict[str, float]) -> str:
    return json.dumps({"step": row["step"], **{k: v for k, v in row.items() if k != "step"}}) + "\n"


def release() -> None:
    """Give the memory of a finished trainer back before the next model is loaded."""
    gc.collect()
    give_freed_memory_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
