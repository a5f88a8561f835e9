from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.training.conftest import END, Ticker

from cowest.collaboration.labels import labels_of
from cowest.errors import NothingToLearnError
from cowest.models.local import load_model, load_tokenizer
from cowest.recipe.config import AlignConfig
from cowest.training.encoding import encode
from cowest.training.positives import train_positives, train_rejection
from cowest.types import ModelRef, PreferencePair

pytestmark = pytest.mark.slow
FULL = AlignConfig(
    objective="positives", method="full", batch_size=4, learning_rate=1e-3, max_steps=8, warmup_steps=0,
    schedule="constant", checkpoint_every=3, checkpoints=2, device="cpu",
)  # fmt: skip


def mean_logp(ref: ModelRef, pairs: list[PreferencePair], which: str) -> float:
    model = load_model(ref, device=torch.device("cpu"), dtype=torch.float32)
    tokenizer, total = load_tokenizer(ref), 0.0
    for pair in pairs:
        reply = getattr(pair, which)[-1].content
        [(ids, start)] = encode(tokenizer, [pair.prompt], [reply], "tiny", END)
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total += sum(float(logs[i - 1, ids[i]]) for i in range(start, len(ids))) / (len(ids) - start)
    return total / len(pairs)


def test_the_chosen_drafts_become_likelier_step_by_step(
    tiny: ModelRef, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    checkpoints = train_positives(tiny, [*pairs, pairs[0]], FULL, tmp_path / "a", 1, Ticker()).checkpoints
    assert [c.step for c in checkpoints] == [4, 8]
    values = [mean_logp(ref, pairs, "chosen") for ref in (tiny, *(c.model for c in checkpoints))]
    assert values[0] < values[1] < values[2]
    summary = json.loads((tmp_path / "a/summary.json").read_text())
    assert summary["data"]["items"] == len(pairs)  # a draft that two pairs prefer is learned once


def test_a_killed_training_goes_on_to_the_same_weights(
    tiny: ModelRef, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    whole = train_positives(tiny, pairs, FULL, tmp_path / "whole", 1, Ticker()).checkpoints
    with pytest.raises(KeyboardInterrupt):
        train_positives(tiny, pairs, FULL, tmp_path / "killed", 1, Ticker(stop_at=5))
    again = train_positives(tiny, pairs, FULL, tmp_path / "killed", 1, Ticker()).checkpoints
    for one, other in zip(whole, again, strict=True):
        a, b = Path(one.model.base, "model.safetensors"), Path(other.model.base, "model.safetensors")
        assert a.read_bytes() == b.read_bytes()


def test_lora_gives_an_adapter_of_the_same_base(tiny: ModelRef, pairs: list[PreferencePair], tmp_path: Path) -> None:
    lora = FULL.model_copy(update={"method": "lora", "learning_rate": 5e-3})
    checkpoints = train_positives(tiny, pairs, lora, tmp_path / "a", 1, Ticker()).checkpoints
    assert all(c.model.base == tiny.base and c.model.adapter for c in checkpoints)
    assert mean_logp(checkpoints[-1].model, pairs, "chosen") > mean_logp(tiny, pairs, "chosen")


def test_rejection_sampling_learns_the_best_draft_of_each_query(
    tiny: ModelRef, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    """The first loss is the mean of -log pi over the tokens of those drafts, computed here from the model alone."""
    drafts = [one for pair in pairs for one in labels_of(pair)]
    second = drafts[0].model_copy(
        update={"completion": drafts[1].completion, "worth": 0.9}
    )  # to write, and not the best
    settings = FULL.model_copy(update={"objective": "rejection", "batch_size": len(pairs)})
    done = train_rejection(tiny, [second, *drafts], settings, tmp_path / "a", 1, Ticker())
    summary = json.loads((tmp_path / "a/summary.json").read_text())
    assert summary["data"]["items"] == len(pairs)

    model, tokenizer, losses = (
        load_model(tiny, device=torch.device("cpu"), dtype=torch.float32),
        load_tokenizer(tiny),
        [],
    )
    for pair in pairs:
        [(ids, start)] = encode(tokenizer, [pair.prompt], [pair.chosen[-1].content], "tiny", END)
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [-float(logs[i - 1, ids[i]]) for i in range(start, len(ids))]
    first = json.loads((tmp_path / "a/log.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    last = done.checkpoints[-1].model
    assert mean_logp(last, pairs, "chosen") > mean_logp(tiny, pairs, "chosen") + 0.1
    with pytest.raises(NothingToLearnError, match="no draft is worth more"):
        train_rejection(tiny, [one for one in drafts if not one.label], settings, tmp_path / "b", 1, Ticker())
