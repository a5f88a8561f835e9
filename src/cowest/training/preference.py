"""Preference tuning of the weak model: DPO with the SFT model as the reference (paper, step 6).

    L = -log sigmoid(beta [log pi(y+|x)/pi_ref(y+|x) - log pi(y-|x)/pi_ref(y-|x)])  +  nll_weight * NLL(y+)

through TRL's DPOTrainer. The reference is the policy as it was before the first step: its log-probabilities are
computed once, before training, so the first loss is ln 2 and no second model is held. (Left to itself, TRL reloads the
reference of a fully trained model from the name it was loaded by, which can be the weights from before SFT.)

The NLL term is TRL's loss type ``sft``: the mean over all chosen completion tokens of the micro-batch (long drafts
weigh more; RPO, arXiv 2404.19733, divides each draft by its own length), so its size does not grow with the drafts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from datasets import Dataset
from peft import PeftModel
from pydantic import JsonValue
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined,unused-ignore]

from cowest.errors import StageError
from cowest.models.local import load_tokenizer
from cowest.protocols import Reporter
from cowest.recipe.config import AlignConfig
from cowest.training.checkpoints import Checkpoint, KeepCallback, kept_models
from cowest.training.common import (
    Folder,
    LogCallback,
    arguments,
    encode,
    fingerprint,
    load_for_training,
    new_adapter,
    quiet,
    release,
)
from cowest.types import ModelRef, PreferencePair


def train_preference(
    policy: ModelRef, pairs: Sequence[PreferencePair], settings: AlignConfig, out: Path, seed: int, reporter: Reporter
) -> list[Checkpoint]:
    """Align ``policy`` on ``pairs``; returns ``settings.checkpoints`` evenly spaced models, the last one included.

    Each is ``out/step-N/model`` (method full) or one ordinary adapter of the policy's base, ``out/step-N/adapter``
    (method lora), in which an SFT adapter of the policy has been trained further. Each step's loss, rewards and
    log-probabilities are in ``out/log.jsonl``. Resumes the same training from its last complete checkpoint, to the
    same weights.

    Raises StageError where no pair is left to train on or the loss diverges, and ModelNotFoundError.
    """
    started = time.perf_counter()
    folder = Folder(out)
    done = folder.open(fingerprint("align", policy, settings, pairs, seed))
    if done is not None:
        return kept_models(policy, settings, out)
    with quiet():
        tokenizer = load_tokenizer(policy)
        truncated, dropped = _count(tokenizer, pairs, settings.max_length)
        if dropped == len(pairs):
            raise StageError(f"align: none of {len(pairs)} pairs has a prompt shorter than max_length tokens")
        callback = LogCallback(folder, reporter, "align")
        keep = KeepCallback(out, tokenizer, settings)
        trainer = _trainer(policy, pairs, settings, folder, seed, tokenizer, [callback, keep])
        try:
            trainer.train(resume_from_checkpoint=folder.resume_from())
        finally:
            reporter.finish()
    del trainer
    release()
    folder.finish(callback.summary(len(pairs), truncated, dropped, started))
    return kept_models(policy, settings, out)


def _trainer(
    policy: ModelRef,
    pairs: Sequence[PreferencePair],
    settings: AlignConfig,
    folder: Folder,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    callbacks: list[TrainerCallback],
) -> DPOTrainer:
    with_nll = settings.nll_weight > 0
    special: dict[str, JsonValue] = {
        "beta": settings.beta,
        "loss_type": [settings.loss, "sft"] if with_nll else [settings.loss],
        "loss_weights": [1.0, settings.nll_weight] if with_nll else [1.0],
        "precompute_ref_log_probs": True,
        "disable_dropout": True,
    }
    trainer = DPOTrainer(
        model=load_for_training(policy, settings),
        args=arguments(DPOConfig, settings, folder, seed, 1, special),
        train_dataset=Dataset.from_list([p.model_dump(include={"prompt", "chosen", "rejected"}) for p in pairs]),
        processing_class=tokenizer,
        peft_config=new_adapter(policy, settings),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, where results go
    adapted = cast(PeftModel, trainer.model)
    if "ref" in getattr(adapted, "peft_config", {}):
        # TRL copied the SFT adapter as the reference; its log-probabilities are known now, and without the copy
        # checkpoints hold one adapter, as they would have to be resumed.
        adapted.delete_adapter("ref")
    return trainer


def _count(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair], max_length: int) -> tuple[int, int]:
    """How many pairs are cut to ``max_length``, and how many TRL drops because the prompt alone is that long."""
    prompts = [[m.model_dump() for m in pair.prompt] for pair in pairs]
    chosen = encode(tokenizer, prompts, [pair.chosen[-1].content for pair in pairs])
    rejected = encode(tokenizer, prompts, [pair.rejected[-1].content for pair in pairs])
    both = list(zip(chosen, rejected, strict=True))
    truncated = sum(max(len(a), len(b)) > max_length for (a, _), (b, _) in both)
    dropped = sum(min(start_a, start_b) >= max_length for (_, start_a), (_, start_b) in both)
    return truncated, dropped
