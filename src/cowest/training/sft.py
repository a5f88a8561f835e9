"""Supervised fine-tuning of the weak model: L = -log pi_w(y_hat | x), on the completion's tokens (paper, step 1).

TRL's SFTTrainer does it, with two departures for small models on a CPU, where its stock step takes about twice as long
as plain PyTorch: batches are grouped by length, and the loss is computed on the completion's positions only, without
the entropy and accuracy that TRL computes at every position of every step. Both leave the objective as it is. A short last
batch weighs by its rows (``steps.py``).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from datasets import Dataset
from peft import LoraConfig
from pydantic import JsonValue
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig as TrlSftConfig  # type: ignore[attr-defined,unused-ignore]
from trl import SFTTrainer  # type: ignore[attr-defined,unused-ignore]

from cowest.errors import StageError
from cowest.protocols import Reporter, Tracker
from cowest.recipe.config import SftConfig, TrainingSettings
from cowest.run.progress import NOWHERE
from cowest.training.common import (
    Folder,
    LogCallback,
    arguments,
    export,
    fingerprint,
    new_adapter,
    release,
)
from cowest.training.encoding import Cut, encode, fewer_turns, shortened
from cowest.training.ending import taught_end, tell_end, tokenizer_for_training
from cowest.training.head import at_targets, causal_model, plain_head, targets_only
from cowest.training.loop import load_within_memory, train_within_memory
from cowest.training.notices import quiet
from cowest.training.precision import settled
from cowest.training.steps import EvenRowsMixin
from cowest.types import Message, ModelRef, Record

LOGGING_STEPS = 10  # at most this many between rows of the log
GROUPED = 16  # batches that are drawn together and grouped by length


class TrainedModel(Record):
    """What SFT came to; ``counts`` are for the stage: rows that max_length cut or took."""

    model: ModelRef
    counts: dict[str, int]


class SftRow(Record):
    """(x, y_hat): what the weak model is asked, and what it should write."""

    prompt: tuple[Message, ...]
    completion: str


def train_sft(
    base: ModelRef,
    conversations: Sequence[SftRow],
    settings: SftConfig,
    out: Path,
    seed: int,
    reporter: Reporter,
    tracker: Tracker = NOWHERE,
) -> TrainedModel:
    """Tune ``base`` on ``conversations`` into ``out``; see ``training/common.py`` for the folder's contents.

    Resumes the same training from its last complete checkpoint, to the same weights. The model is the full one
    (``out/model``) or base and adapter (``out/adapter``); an adapter that ``base`` has is trained further.

    Raises StageError where no row is left to train on, the model could not be asked as it was trained (``encoding.py``), or
    the loss diverges; and ModelNotFoundError.
    """
    started = time.perf_counter()
    folder = Folder(out)
    trained = (
        ModelRef(base=str(out / "model"))
        if settings.method == "full"
        else ModelRef(base=base.base, adapter=str(out / "adapter"))
    )
    settings = settled(settings, base.base)
    done = folder.open(fingerprint("sft", base, settings, conversations, seed))
    if done is not None:
        return TrainedModel(model=trained, counts=done.data.counts("rows"))
    with quiet(lambda warning: reporter.info(f"sft: {warning}")):
        tokenizer = tokenizer_for_training(base, "sft", reporter)
        loaded = load_within_memory(base, settings, "sft")
        said = [(row.prompt, row.completion) for row in conversations]
        end = taught_end(cast(PreTrainedModel, loaded.model), tokenizer, settings, said, base.base, "sft")
        rows, data = tokenize(tokenizer, conversations, settings.max_length, base.base, end)
        data.tell(reporter, "sft", "rows", settings.max_length)
        if not rows:
            raise StageError(
                f"sft: none of {len(conversations)} rows has a token of its completion within sft.max_length = "
                f"{settings.max_length} tokens; raise it"
            )
        tell_end(tokenizer, end, reporter)
        callback = LogCallback(folder, reporter, "sft", tracker)
        lora, longest = new_adapter(base, settings), max(len(row["input_ids"]) for row in rows)
        trainer = train_within_memory(
            loaded, settings, longest, 1, folder, "sft", reporter,
            lambda model, fitting: lean_trainer(model, lora, rows, fitting, folder, seed, tokenizer, [callback]),
        )  # fmt: skip
        export(
            cast(PreTrainedModel, trainer.model),
            tokenizer,
            settings.method == "lora",
            Path(trained.adapter or trained.base),
        )
    del trainer
    release()
    folder.finish(callback.summary(data, started))
    return TrainedModel(model=trained, counts=data.counts("rows"))


def lean_trainer(
    model: PreTrainedModel,
    lora: LoraConfig | None,
    rows: list[dict[str, list[int]]],
    settings: TrainingSettings,
    folder: Folder,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    callbacks: list[TrainerCallback],
) -> LeanSftTrainer:
    """A trainer of ``model``, or of a new adapter ``lora`` of it, on the rows that :func:`tokenize` made."""
    special: dict[str, JsonValue] = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    trainer = LeanSftTrainer(
        model=model,
        args=arguments(TrlSftConfig, settings, folder, seed, _logging_steps(settings.checkpoint_every), special),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, where results go
    return trainer


def _logging_steps(checkpoint_every: int) -> int:
    """A divisor of ``checkpoint_every``: a row averages the steps since the last, and no resume may fall between."""
    return max(n for n in range(1, LOGGING_STEPS + 1) if checkpoint_every % n == 0)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[SftRow], max_length: int, model: str, end: int
) -> tuple[list[dict[str, list[int]]], Cut]:
    """Rows of input_ids and labels (-100 on the prompt), cut to ``max_length``, and what that did to them."""
    whole, texts = [row.prompt for row in conversations], [row.completion for row in conversations]
    prompts = shortened(tokenizer, whole, [(text,) for text in texts], max_length)
    encoded = encode(tokenizer, prompts, texts, model, end)
    kept = [tokens for tokens in encoded if tokens.start < max_length]
    rows = [
        {"input_ids": ids[:max_length], "labels": ([-100] * start + ids[start:])[:max_length]} for ids, start in kept
    ]
    cut = sum(len(tokens.ids) > max_length for tokens in kept)
    less = fewer_turns(whole, prompts)
    return rows, Cut(items=len(conversations), shortened=less, cut=cut, lost=len(encoded) - len(kept))


class LengthGroupedSampler(torch.utils.data.Sampler[int]):
    """Random batches of rows of similar length; a function of seed and epoch, so that a resumed run sees the same."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of each pass."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self._seed}/{self._epoch}")
        order = list(range(len(self._lengths)))
        rng.shuffle(order)
        block = self._batch_size * GROUPED
        batches: list[list[int]] = []
        for start in range(0, len(order), block):
            near = sorted(order[start : start + block], key=lambda i: self._lengths[i])
            batches += [near[i : i + self._batch_size] for i in range(0, len(near), self._batch_size)]
        # The one short batch stays last: the loader cuts the stream into batches again.
        short = batches.pop() if len(batches[-1]) < self._batch_size else []
        rng.shuffle(batches)
        return iter([i for batch in batches for i in batch] + short)


class LeanSftTrainer(EvenRowsMixin, SFTTrainer):  # type: ignore[misc,unused-ignore]
    """SFTTrainer with the two departures of the module's docstring."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        rows = cast(Dataset, train_dataset if train_dataset is not None else self.train_dataset)
        lengths = [len(ids) for ids in rows["input_ids"]]
        return LengthGroupedSampler(
            lengths, self.args.train_batch_size * self.args.gradient_accumulation_steps, self.args.seed
        )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Mean next-token loss in nats over the batch's completion tokens."""
        large = targets_only(model, self.args.device)
        if return_outputs or not (large or self._lean()):
            stock = cast(Callable[..., torch.Tensor], super().compute_loss)
            return stock(model, inputs, return_outputs, num_items_in_batch)
        causal = causal_model(model)
        with (
            self.accelerator.autocast()
        ):  # the Trainer puts it around the forward of the whole, which is not called here
            hidden = causal.base_model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).last_hidden_state[:, :-1]
        labels = inputs["labels"][:, 1:]
        kept = labels != -100
        count = kept.sum() if num_items_in_batch is None else num_items_in_batch
        if large:
            with self.accelerator.autocast():
                found = at_targets(causal, hidden[kept], labels[kept])
            return -found.log_probs.sum() / count
        total = torch.nn.functional.cross_entropy(
            causal.get_output_embeddings()(hidden[kept]), labels[kept], reduction="sum"
        )
        return total / count

    def _lean(self) -> bool:
        """On one CPU in float32, for a model whose logits are its head's output. Elsewhere TRL's kernel is better."""
        return self.args.device.type == "cpu" and not self.args.bf16 and plain_head(cast(PreTrainedModel, self.model))
