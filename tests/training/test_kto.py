from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tests.training.conftest import END, Ticker
from tests.training.test_preference import log, weights

from cowest.collaboration.labels import labels_of
from cowest.errors import NothingToLearnError
from cowest.models.local import load_model, load_tokenizer
from cowest.recipe.config import AlignConfig
from cowest.training.kto import mismatched, tokenize, train_kto
from cowest.types import LabelledDraft, ModelRef, PreferencePair

pytestmark = pytest.mark.slow
FULL = AlignConfig(
    objective="kto", method="full", batch_size=4, learning_rate=1e-3, max_steps=8, warmup_steps=0, schedule="constant",
    checkpoint_every=3, checkpoints=2, device="cpu",
)  # fmt: skip
SEED = 1


@pytest.fixture
def drafts(pairs: list[PreferencePair]) -> list[LabelledDraft]:
    """Twice as many to write as not to."""
    labelled = [one for pair in pairs for one in labels_of(pair)]
    return [one for i, one in enumerate(labelled) if one.label or i % 4 == 1]


def log_probs(ref: ModelRef, ids: list[int], start: int) -> float:
    model = load_model(ref, device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logs[i - 1, ids[i]]) for i in range(start, len(ids)))


@pytest.mark.parametrize("large", [False, True])
def test_the_losses_are_equation_7_of_kto(
    large: bool, tiny: ModelRef, drafts: list[LabelledDraft], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:  # as for a vocabulary of a real model: the head at targets only
        monkeypatch.setattr("cowest.training.head.LARGE", 1)
    settings = FULL.model_copy(update={"batch_size": len(drafts), "max_steps": 2, "learning_rate": 3e-3})
    before, _ = (c.model for c in train_kto(tiny, drafts, settings, tmp_path / "a", SEED, Ticker()).checkpoints)
    first, second = log(tmp_path / "a")
    assert first["loss"] == pytest.approx(0.5, abs=1e-5) and first["kl"] == pytest.approx(0, abs=1e-5)

    rows, _ = tokenize(load_tokenizer(tiny), drafts, settings, "tiny", END)
    good = sum(row["label"] for row in rows)
    ratios, elsewhere = list[float](), list[float]()
    for row in mismatched(rows, SEED):
        start = len(row["prompt_ids"])
        for which, to in (("completion_ids", ratios), ("KL_completion_ids", elsewhere)):
            ids = row["prompt_ids"] + row[which]
            to.append(log_probs(before, ids, start) - log_probs(tiny, ids, start))
    z = max(0.0, sum(elsewhere) / len(elsewhere))
    losses = []
    for row, r in zip(mismatched(rows, SEED), ratios, strict=True):
        n = good if row["label"] else len(rows) - good
        sign = 1 if row["label"] else -1
        losses.append(len(rows) / (2 * n) * (1 - 1 / (1 + math.exp(-0.1 * sign * (r - z)))))
    assert second["kl"] == pytest.approx(z, abs=1e-3)
    assert second["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert second["loss"] < 0.5


@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_moves_towards_drafts_to_write_and_away_from_the_others(
    method: str, tiny: ModelRef, drafts: list[LabelledDraft], tmp_path: Path
) -> None:
    rate = 1e-3 if method == "full" else 1e-2
    settings = FULL.model_copy(update={"method": method, "learning_rate": rate, "max_steps": 12})
    done = train_kto(tiny, drafts, settings, tmp_path / "a", SEED, Ticker())
    rows, _ = tokenize(load_tokenizer(tiny), drafts, settings, "tiny", END)

    def mean(ref: ModelRef, label: bool) -> float:
        of = [row for row in rows if row["label"] is label]
        return sum(log_probs(ref, r["prompt_ids"] + r["completion_ids"], len(r["prompt_ids"])) for r in of) / len(of)

    after = done.checkpoints[-1].model
    assert [c.step for c in done.checkpoints] == [6, 12] and (after.adapter is not None) == (method == "lora")
    assert mean(after, True) - mean(after, False) > mean(tiny, True) - mean(tiny, False) + 0.5
    assert done.counts == {"rows_cut": 0, "rows_lost": 0}
    assert not (tmp_path / "a/checkpoints").exists()


def test_a_killed_training_resumes_to_the_same_weights(
    tiny: ModelRef, drafts: list[LabelledDraft], tmp_path: Path
) -> None:
    whole = train_kto(tiny, drafts, FULL, tmp_path / "whole", SEED, Ticker()).checkpoints
    with pytest.raises(KeyboardInterrupt):
        train_kto(tiny, drafts, FULL, tmp_path / "cut", SEED, Ticker(stop_at=5))
    ticker = Ticker()
    resumed = train_kto(tiny, drafts, FULL, tmp_path / "cut", SEED, ticker).checkpoints
    assert ticker.starts == [("align", 8, 3)]
    for name, value in weights(whole[-1].model).items():
        torch.testing.assert_close(weights(resumed[-1].model)[name], value, rtol=0, atol=0)
    assert [r["loss"] for r in log(tmp_path / "cut")] == [r["loss"] for r in log(tmp_path / "whole")]


def test_one_row_at_a_time_is_trained_two_at_a_time(
    tiny: ModelRef, drafts: list[LabelledDraft], tmp_path: Path
) -> None:
    settings = FULL.model_copy(update={"batch_size": 1, "gradient_accumulation": 4, "max_steps": 2, "checkpoints": 1})
    train_kto(tiny, drafts, settings, tmp_path / "a", SEED, Ticker())
    assert len(log(tmp_path / "a")) == 2


@pytest.mark.parametrize(("label", "kind"), [(True, "not to write"), (False, "to write")])
def test_drafts_of_one_kind_are_nothing_to_learn_from(
    label: bool, kind: str, tiny: ModelRef, drafts: list[LabelledDraft], tmp_path: Path
) -> None:
    of = [one for one in drafts if one.label is label]
    with pytest.raises(NothingToLearnError, match=f"of {len(of)} labelled drafts .* none is one {kind}"):
        train_kto(tiny, of, FULL, tmp_path / "a", SEED, Ticker())


def test_the_margin_weighs_with_a_mean_of_one(tiny: ModelRef, drafts: list[LabelledDraft]) -> None:
    some = [drafts[0], drafts[1].model_copy(update={"worth": drafts[1].baseline - 1.5})]
    margins = [abs(one.worth - one.baseline) for one in some]
    settings = FULL.model_copy(update={"weight": "margin"})
    rows, _ = tokenize(load_tokenizer(tiny), some, settings, "tiny", END)
    assert [row["weight"] for row in rows] == pytest.approx([m * 2 / sum(margins) for m in margins])
    assert json.dumps(rows)  # plain numbers
