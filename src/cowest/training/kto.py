"""KTO on single drafts, each to be written or not, with the SFT model as the reference (arXiv 2402.01306, equations 7 and 8).

    L = w_y [1 - sigmoid(beta (r - z))]  for a draft to write,  w_y [1 - sigmoid(beta (z - r))]  for one not to
    r = log pi(y|x)/pi_ref(y|x),  z = max(0, mean over the micro-batch of log pi(y'|x)/pi_ref(y'|x))

through TRL's KTOTrainer, where y' is a draft for another query. w_y is n / 2n_D and n / 2n_U, so that those to write weigh in all
what those not to write weigh, whichever are more; the first losses are 0.5 w_y, since pi is pi_ref and z is 0. Rows are put in a
random order once: TRL wants the order of its z kept. The reference's log-probabilities are computed before training, as for DPO.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast

from datasets import Dataset
from peft import LoraConfig
from pydantic import JsonValue
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import KTOConfig, KTOTrainer  # type: ignore[attr-defined,unused-ignore]

from cowest.errors import NothingToLearnError
from cowest.protocols import Reporter, Tracker
from cowest.recipe.config import AlignConfig
from cowest.run.progress import NOWHERE
from cowest.training.checkpoints import KeepCallback, kept_models
from cowest.training.common import Folder, LogCallback, arguments, fingerprint, new_adapter, release
from cowest.training.encoding import Cut, encode, fewer_turns, shortened
from cowest.training.ending import taught_end, tokenizer_for_training
from cowest.training.loop import load_within_memory, train_within_memory
from cowest.training.notices import quiet
from cowest.training.precision import settled
from cowest.training.preference import Row, settle
from cowest.training.referenced import ReferencedMixin
from cowest.training.weighting import WEIGHT, normalised
from cowest.types import Alignment, LabelledDraft, ModelRef

LEAST: Final = 2
"""Rows of a micro-batch, at the least: of one alone TRL could not estimate z."""


def train_kto(
    policy: ModelRef,
    drafts: Sequence[LabelledDraft],
    settings: AlignConfig,
    out: Path,
    seed: int,
    reporter: Reporter,
    tracker: Tracker = NOWHERE,
) -> Alignment:
    """Align ``policy`` on labelled drafts; the folder, the checkpoints and the errors are ``train_preference``'s.

    The counts are of rows: drafts. Raises NothingToLearnError where none is to be written, or all are.
    """
    started = time.perf_counter()
    folder = Folder(out)
    settings = settled(settings, policy.base)
    done = folder.open(fingerprint("kto", policy, settings, drafts, seed))
    if done is not None:
        return Alignment(checkpoints=kept_models(policy, settings, out), counts=done.data.counts("rows"))
    with quiet(lambda warning: reporter.info(f"align: {warning}")):
        tokenizer = tokenizer_for_training(policy, "align", reporter)
        loaded = load_within_memory(policy, settings, "align")
        said = [(draft.prompt, draft.completion[-1].content) for draft in drafts]
        end = taught_end(cast(PreTrainedModel, loaded.model), tokenizer, settings, said, policy.base, "align")
        rows, data = tokenize(tokenizer, drafts, settings, policy.base, end)
        data.tell(reporter, "align", "drafts", settings.max_length)
        balance(rows, settings)  # raises where one kind is missing
        callback = LogCallback(folder, reporter, "align", tracker)
        keep = KeepCallback(out, tokenizer, settings)
        lora, longest = (
            new_adapter(policy, settings),
            max(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows),
        )
        train_within_memory(
            loaded, settings, longest, 1, folder, "align", reporter,
            lambda model, fitting: kto_trainer(model, lora, rows, fitting, folder, seed, tokenizer, [callback, keep]),
        )  # fmt: skip
    release()
    folder.finish(callback.summary(data, started))
    return Alignment(checkpoints=kept_models(policy, settings, out), counts=data.counts("rows"))


def tokenize(
    tokenizer: PreTrainedTokenizerBase, drafts: Sequence[LabelledDraft], settings: AlignConfig, model: str, end: int
) -> tuple[list[Row], Cut]:
    """Rows of prompt_ids, completion_ids and label, cut to ``align.max_length``, and what that did to the drafts."""
    texts = [draft.completion[-1].content for draft in drafts]
    whole = [draft.prompt for draft in drafts]
    prompts = shortened(tokenizer, whole, [(text,) for text in texts], settings.max_length)
    encoded = encode(tokenizer, prompts, texts, model, end)
    kept = [
        (draft, tokens) for draft, tokens in zip(drafts, encoded, strict=True) if tokens.start < settings.max_length
    ]
    rows: list[Row] = [
        {"prompt_ids": ids[:start], "completion_ids": ids[start : settings.max_length], "label": draft.label}
        for draft, (ids, start) in kept
    ]
    if settings.weight == "margin" and kept:
        weights = normalised([abs(draft.worth - draft.baseline) for draft, _ in kept])
        for row, weight in zip(rows, weights, strict=True):
            row[WEIGHT] = weight
    cut = sum(len(tokens.ids) > settings.max_length for _, tokens in kept)
    less = fewer_turns(whole, prompts)
    return rows, Cut(items=len(drafts), shortened=less, cut=cut, lost=len(drafts) - len(kept))


def balance(rows: Sequence[Row], settings: AlignConfig) -> tuple[float, float]:
    """N / 2n_D and n / 2n_U. Raises NothingToLearnError where drafts of one kind are missing."""
    good = sum(row["label"] for row in rows)
    if not 0 < good < len(rows):
        kind = "to write" if good == 0 else "not to write"
        raise NothingToLearnError(
            f"align: of {len(rows)} labelled drafts within align.max_length = {settings.max_length} tokens none is one {kind}"
        )
    return len(rows) / (2 * good), len(rows) / (2 * (len(rows) - good))


class DraftTrainer(ReferencedMixin, KTOTrainer):  # type: ignore[misc,unused-ignore]
    """KTOTrainer on the rows of :func:`tokenize`."""


def mismatched(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows in a random order, each with the draft of the one before it as ``KL_completion_ids`` (y')."""
    order = list(rows)
    random.Random(f"cowest-kto/{seed}").shuffle(order)
    return [row | {"KL_completion_ids": order[i - 1]["completion_ids"]} for i, row in enumerate(order)]


def kto_trainer(
    model: PreTrainedModel,
    lora: LoraConfig | None,
    rows: Sequence[Row],
    settings: AlignConfig,
    folder: Folder,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    callbacks: list[TrainerCallback],
) -> DraftTrainer:
    """A trainer of ``model``, or of a new adapter ``lora`` of it, on the rows that :func:`tokenize` made."""
    good, bad = balance(rows, settings)
    special: dict[str, JsonValue] = {
        "beta": settings.beta,
        "desirable_weight": good,
        "undesirable_weight": bad,
        "precompute_ref_log_probs": True,
        "disable_dropout": True,
    }
    trainer = DraftTrainer(
        model=model,
        args=arguments(KTOConfig, _two_at_least(settings), folder, seed, 1, special),
        train_dataset=Dataset.from_list(mismatched(rows, seed)),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=callbacks,
    )
    settle(trainer)
    return trainer


def _two_at_least(settings: AlignConfig) -> AlignConfig:
    if settings.batch_size >= LEAST:
        return settings
    times = max(1, settings.gradient_accumulation // LEAST)
    return settings.model_copy(update={"batch_size": LEAST, "gradient_accumulation": times})
