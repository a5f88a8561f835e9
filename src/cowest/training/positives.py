"""SFT on good drafts alone: the control that isolates what the comparison with bad ones teaches, and rejection sampling.

    L = -log pi(y+|x)  over the distinct chosen drafts of the pairs (positives), or the best draft of each query (rejection)

It starts from the SFT model and sees the data, steps and learning rate of the alignment; only the objective differs. The paper has
neither.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel

from cowest.collaboration.labels import best_of_each
from cowest.errors import NothingToLearnError
from cowest.protocols import Reporter, Tracker
from cowest.recipe.config import AlignConfig
from cowest.run.progress import NOWHERE
from cowest.training.checkpoints import KeepCallback, kept_models
from cowest.training.common import Folder, LogCallback, fingerprint, new_adapter, release
from cowest.training.ending import taught_end, tokenizer_for_training
from cowest.training.loop import load_within_memory, train_within_memory
from cowest.training.notices import quiet
from cowest.training.precision import settled
from cowest.training.sft import SftRow, lean_trainer, tokenize
from cowest.types import Alignment, LabelledDraft, Message, ModelRef, PreferencePair, Record


def train_positives(
    policy: ModelRef,
    pairs: Sequence[PreferencePair],
    settings: AlignConfig,
    out: Path,
    seed: int,
    reporter: Reporter,
    tracker: Tracker = NOWHERE,
) -> Alignment:
    """Tune ``policy`` on the chosen drafts; the folder, the checkpoints and the errors are ``train_preference``'s.

    The counts are of rows: the distinct chosen drafts.
    """
    chosen = list(dict.fromkeys((p.prompt, p.chosen[-1].content) for p in pairs))
    return _train(policy, "positives", pairs, chosen, settings, out, seed, reporter, tracker)


def train_rejection(
    policy: ModelRef,
    drafts: Sequence[LabelledDraft],
    settings: AlignConfig,
    out: Path,
    seed: int,
    reporter: Reporter,
    tracker: Tracker = NOWHERE,
) -> Alignment:
    """Rejection sampling (RAFT, arXiv 2304.06767): SFT on the best draft of each query that has one to write.

    The same as :func:`train_positives` otherwise.
    """
    best = best_of_each(drafts)
    if not best:
        raise NothingToLearnError("no draft is worth more than its baseline")
    chosen = [(draft.prompt, draft.completion[-1].content) for draft in best]
    return _train(policy, "rejection", best, chosen, settings, out, seed, reporter, tracker)


def _train(
    policy: ModelRef,
    what: str,
    records: Sequence[Record],
    chosen: Sequence[tuple[tuple[Message, ...], str]],
    settings: AlignConfig,
    out: Path,
    seed: int,
    reporter: Reporter,
    tracker: Tracker,
) -> Alignment:
    """SFT on the ``chosen`` prompts and drafts, which follow from ``records``."""
    started = time.perf_counter()
    folder = Folder(out)
    settings = settled(settings, policy.base)
    done = folder.open(fingerprint(what, policy, settings, records, seed))
    if done is not None:
        return Alignment(checkpoints=kept_models(policy, settings, out), counts=done.data.counts("rows"))
    with quiet(lambda warning: reporter.info(f"align: {warning}")):
        tokenizer = tokenizer_for_training(policy, "align", reporter)
        loaded = load_within_memory(policy, settings, "align")
        rows, data = tokenize(
            tokenizer,
            [SftRow(prompt=prompt, completion=text) for prompt, text in chosen],
            settings.max_length,
            policy.base,
            taught_end(cast(PreTrainedModel, loaded.model), tokenizer, settings, chosen, policy.base, "align"),
        )
        data.tell(reporter, "align", "chosen drafts", settings.max_length)
        if not rows:
            raise NothingToLearnError(
                f"align: none of {len(chosen)} chosen drafts has a token within align.max_length = {settings.max_length} "
                "tokens; raise it"
            )
        callback = LogCallback(folder, reporter, "align", tracker)
        keep = KeepCallback(out, tokenizer, settings)
        lora, longest = new_adapter(policy, settings), max(len(row["input_ids"]) for row in rows)
        train_within_memory(
            loaded, settings, longest, 1, folder, "align", reporter,
            lambda model, fitting: lean_trainer(model, lora, rows, fitting, folder, seed, tokenizer, [callback, keep]),
        )  # fmt: skip
    release()
    folder.finish(callback.summary(data, started))
    return Alignment(checkpoints=kept_models(policy, settings, out), counts=data.counts("rows"))
