"""Preference tuning of the weak model: DPO with the SFT model as the reference (paper, step 6).

    L = -log sigmoid(beta [log pi(y+|x)/pi_ref(y+|x) - log pi(y-|x)/pi_ref(y-|x)])  +  nll_weight * NLL(y+)

through TRL's DPOTrainer. The reference is the policy as it was before the first step: its log-probabilities are
computed once, before training, so the first loss is ln 2 and no second model is held. (Left to itself, TRL reloads the
reference of a fully trained model from the name it was loaded by, which can be the weights from before SFT.)

The NLL term is TRL's loss type ``sft``: the mean over all chosen completion tokens of the micro-batch (long drafts
weigh more; RPO, arXiv 2404.19733, divides each draft by its own length), so its size does not grow with the drafts.

A pair counts by its weight (``weighting.py``): its own (that of people's feedback), times its margin with ``align.weight: margin``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from datasets import Dataset
from peft import LoraConfig, PeftModel
from pydantic import JsonValue
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback
from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined,unused-ignore]

from cowest.errors import NothingToLearnError
from cowest.protocols import Reporter, Tracker
from cowest.recipe.config import AlignConfig
from cowest.run.progress import NOWHERE
from cowest.training.checkpoints import KeepCallback, kept_models
from cowest.training.common import (
    Folder,
    LogCallback,
    arguments,
    fingerprint,
    new_adapter,
    release,
)
from cowest.training.encoding import Cut, encode, fewer_turns, shortened
from cowest.training.ending import taught_end, tokenizer_for_training
from cowest.training.loop import load_within_memory, train_within_memory
from cowest.training.notices import quiet
from cowest.training.precision import settled
from cowest.training.referenced import ReferencedMixin
from cowest.training.weighting import WEIGHT, normalised
from cowest.types import Alignment, ModelRef, PreferencePair

Row = dict[str, Any]
"""Token ids by column, and perhaps a ``weight``."""


def train_preference(
    policy: ModelRef,
    pairs: Sequence[PreferencePair],
    settings: AlignConfig,
    out: Path,
    seed: int,
    reporter: Reporter,
    tracker: Tracker = NOWHERE,
) -> Alignment:
    """Align ``policy`` on ``pairs`` into ``settings.checkpoints`` evenly spaced models, the last one included.

    Each is ``out/step-N/model`` (method full) or one ordinary adapter of the policy's base, ``out/step-N/adapter``
    (method lora), in which an SFT adapter of the policy has been trained further. Each step's loss, rewards and
    log-probabilities are in ``out/log.jsonl``. Resumes the same training from its last complete checkpoint, to the
    same weights. The counts are of pairs.

    Raises StageError where no pair is left to train on, the model could not be asked as it was trained (``encoding.py``), or
    the loss diverges; and ModelNotFoundError.
    """
    started = time.perf_counter()
    folder = Folder(out)
    settings = settled(settings, policy.base)
    done = folder.open(fingerprint("align", policy, settings, pairs, seed))
    if done is not None:
        return Alignment(checkpoints=kept_models(policy, settings, out), counts=done.data.counts("pairs"))
    with quiet(lambda warning: reporter.info(f"align: {warning}")):
        tokenizer = tokenizer_for_training(policy, "align", reporter)
        loaded = load_within_memory(policy, settings, "align")
        said = [(pair.prompt, pair.chosen[-1].content) for pair in pairs]
        end = taught_end(cast(PreTrainedModel, loaded.model), tokenizer, settings, said, policy.base, "align")
        weights = weights_of(pairs, settings.weight)
        rows, data = tokenize(tokenizer, pairs, settings.max_length, policy.base, end, weights)
        data.tell(reporter, "align", "pairs", settings.max_length)
        if not rows:
            raise NothingToLearnError(
                f"align: none of {len(pairs)} pairs has two different drafts within align.max_length = {settings.max_length} "
                f"tokens ({data.lost} have a prompt as long, {data.equal} are equal after the cut); raise it"
            )
        callback = LogCallback(folder, reporter, "align", tracker)
        keep = KeepCallback(out, tokenizer, settings)
        lora, longest = new_adapter(policy, settings), max(map(_longest, rows))
        train_within_memory(
            loaded, settings, longest, 2, folder, "align", reporter,
            lambda model, fitting: pair_trainer(model, lora, rows, fitting, folder, seed, tokenizer, [callback, keep]),
        )  # fmt: skip
    release()
    folder.finish(callback.summary(data, started))
    return Alignment(checkpoints=kept_models(policy, settings, out), counts=data.counts("pairs"))


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    max_length: int,
    model: str,
    end: int,
    weights: Sequence[float] | None = None,
) -> tuple[list[Row], Cut]:
    """Rows of prompt_ids, chosen_ids and rejected_ids, cut to ``max_length`` together, and what that did to the pairs.

    ``weights``, one a pair, become the rows' column ``weight``.
    """
    whole = [pair.prompt for pair in pairs]
    good, bad = ([pair.chosen[-1].content for pair in pairs], [pair.rejected[-1].content for pair in pairs])
    prompts = shortened(tokenizer, whole, list(zip(good, bad, strict=True)), max_length)
    chosen, rejected = (encode(tokenizer, prompts, texts, model, end) for texts in (good, bad))
    rows, cut, lost, equal = list[Row](), 0, 0, 0
    for number, ((better, start), (worse, _)) in enumerate(zip(chosen, rejected, strict=True)):
        if start >= max_length:
            lost += 1
        elif better[:max_length] == worse[:max_length]:
            equal += 1
        else:
            cut += max(len(better), len(worse)) > max_length
            row: Row = {"prompt_ids": better[:start], "chosen_ids": better[start:max_length]}
            row["rejected_ids"] = worse[start:max_length]
            if weights is not None:
                row[WEIGHT] = weights[number]
            rows.append(row)
    return rows, Cut(items=len(pairs), shortened=fewer_turns(whole, prompts), cut=cut, lost=lost, equal=equal)


def weights_of(pairs: Sequence[PreferencePair], by: Literal["even", "margin"]) -> list[float] | None:
    """What each pair counts, with a mean of 1; None where all count alike."""
    found = [(1.0 if pair.weight is None else pair.weight) * (pair.margin if by == "margin" else 1.0) for pair in pairs]
    return None if len(set(found)) <= 1 else normalised(found)


def _longest(row: Row) -> int:
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


class PairTrainer(ReferencedMixin, DPOTrainer):  # type: ignore[misc,unused-ignore]
    """DPOTrainer on the rows of :func:`tokenize`."""

    SEQUENCES = 2  # of a pair: the chosen and the rejected one


def pair_trainer(
    model: PreTrainedModel,
    lora: LoraConfig | None,
    rows: list[Row],
    settings: AlignConfig,
    folder: Folder,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    callbacks: list[TrainerCallback],
) -> PairTrainer:
    """A trainer of ``model``, or of a new adapter ``lora`` of it, on the rows that :func:`tokenize` made."""
    with_nll = settings.nll_weight > 0
    special: dict[str, JsonValue] = {
        "beta": settings.beta,
        "loss_type": [settings.loss, "sft"] if with_nll else [settings.loss],
        "loss_weights": [1.0, settings.nll_weight] if with_nll else [1.0],
        "precompute_ref_log_probs": True,
        "disable_dropout": True,
    }
    trainer = PairTrainer(
        model=model,
        args=arguments(DPOConfig, settings, folder, seed, 1, special),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=callbacks,
    )
    settle(trainer)
    return trainer


def settle(trainer: Trainer) -> None:
    """A trainer that prints nothing to stdout, where results go, and holds one adapter.

    TRL copied the SFT adapter as the reference; its log-probabilities are known now, and without the copy checkpoints hold one
    adapter, as they would have to be resumed.
    """
    trainer.remove_callback(PrinterCallback)
    adapted = cast(PeftModel, trainer.model)
    if "ref" in getattr(adapted, "peft_config", {}):
        adapted.delete_adapter("ref")
