from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import END, Ticker
from transformers import AutoModelForCausalLM

from cowest.errors import StageError
from cowest.models.local import load_model, load_tokenizer
from cowest.recipe.config import AlignConfig, SftConfig
from cowest.training.checkpoints import kept_steps
from cowest.training.encoding import Cut, encode
from cowest.training.preference import tokenize, train_preference
from cowest.training.sft import SftRow, train_sft
from cowest.types import Message, ModelRef, PreferencePair

pytestmark = pytest.mark.slow
FULL = AlignConfig(
    method="full", batch_size=4, learning_rate=1e-3, max_steps=8, warmup_steps=0, schedule="constant",
    checkpoint_every=3, checkpoints=2, device="cpu",
)  # fmt: skip
LORA = FULL.model_copy(update={"method": "lora", "learning_rate": 5e-3})


@pytest.fixture(scope="module", params=["full", "lora"])
def policy(
    request: pytest.FixtureRequest, tiny: ModelRef, rows: list[SftRow], tmp_path_factory: pytest.TempPathFactory
) -> ModelRef:
    settings = SftConfig(method=request.param, batch_size=8, learning_rate=1e-2, max_steps=6, device="cpu")
    return train_sft(tiny, rows, settings, tmp_path_factory.mktemp("sft"), 0, Ticker()).model


def settings_for(policy: ModelRef) -> AlignConfig:
    return LORA if policy.adapter else FULL


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(ref: ModelRef) -> dict[str, torch.Tensor]:
    folder = Path(ref.adapter or ref.base)
    return load_file(folder / ("adapter_model.safetensors" if ref.adapter else "model.safetensors"))


def preference(ref: ModelRef, pairs: list[PreferencePair]) -> float:
    """Mean log pi(chosen) - log pi(rejected), computed from the saved model alone."""
    model = load_model(ref, device=torch.device("cpu"), dtype=torch.float32)
    tokenizer = load_tokenizer(ref)
    total = 0.0
    for pair in pairs:
        for reply, sign in ((pair.chosen, 1), (pair.rejected, -1)):
            [(ids, start)] = encode(tokenizer, [pair.prompt], [reply[0].content], "tiny", END)
            with torch.no_grad():
                logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            total += sign * sum(float(logs[i - 1, ids[i]]) for i in range(start, len(ids)))
    return total / len(pairs)


def test_first_loss_is_ln_2_and_the_policy_moves(policy: ModelRef, pairs: list[PreferencePair], tmp_path: Path) -> None:
    ticker = Ticker()
    checkpoints = train_preference(policy, pairs, settings_for(policy), tmp_path / "a", 1, ticker).checkpoints
    history = log(tmp_path / "a")
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert history[-1]["loss"] < history[0]["loss"] - 0.05
    assert [row["step"] for row in history] == list(range(1, 9))
    for row in history:
        assert {"logps/chosen", "logps/rejected", "rewards/margins", "rewards/accuracies", "learning_rate"} <= set(row)
    assert [c.step for c in checkpoints] == [4, 8] and ticker.ticks == 8
    before = preference(policy, pairs)
    values = [preference(c.model, pairs) for c in checkpoints]
    assert before < values[0] < values[1]
    # The saved model is the one whose log-probabilities were logged: the last margin is a step behind it.
    assert values[1] - before > history[-1]["rewards/margins"] / LORA.beta * 0.7
    assert not (tmp_path / "a/checkpoints").exists()


def test_checkpoints_are_ordinary_models(policy: ModelRef, pairs: list[PreferencePair], tmp_path: Path) -> None:
    settings = settings_for(policy).model_copy(update={"max_steps": 1, "checkpoints": 1})
    [only] = train_preference(policy, pairs, settings, tmp_path / "a", 1, Ticker()).checkpoints
    if policy.adapter is None:
        assert only.model == ModelRef(base=str(tmp_path / "a/step-1/model"))
        AutoModelForCausalLM.from_pretrained(only.model.base, use_safetensors=True)
        return
    assert only.model == ModelRef(base=policy.base, adapter=str(tmp_path / "a/step-1/adapter"))
    assert weights(only.model).keys() == weights(policy).keys()  # one adapter, no copy of the reference
    assert not any(path.is_dir() for path in (tmp_path / "a/step-1/adapter").iterdir())


def test_a_killed_alignment_resumes_to_the_same_weights(
    policy: ModelRef, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    settings = settings_for(policy)
    whole = train_preference(policy, pairs, settings, tmp_path / "whole", 1, Ticker()).checkpoints
    with pytest.raises(KeyboardInterrupt):
        train_preference(policy, pairs, settings, tmp_path / "cut", 1, Ticker(stop_at=5))
    ticker = Ticker()
    resumed = train_preference(policy, pairs, settings, tmp_path / "cut", 1, ticker).checkpoints
    assert ticker.starts == [("align", 8, 3)]
    assert [c.step for c in resumed] == [c.step for c in whole]
    for a, b in zip(whole, resumed, strict=True):
        for name, value in weights(a.model).items():
            torch.testing.assert_close(weights(b.model)[name], value, rtol=0, atol=0)
    assert [r["loss"] for r in log(tmp_path / "cut")] == [r["loss"] for r in log(tmp_path / "whole")]
    assert train_preference(policy, pairs, settings, tmp_path / "cut", 1, ticker).checkpoints == resumed
    assert len(ticker.starts) == 1


def test_the_nll_term_is_per_token_on_the_chosen(tiny: ModelRef, pairs: list[PreferencePair], tmp_path: Path) -> None:
    settings = FULL.model_copy(update={"max_steps": 1, "checkpoints": 1, "nll_weight": 0.5, "batch_size": len(pairs)})
    train_preference(tiny, pairs, settings, tmp_path / "a", 1, Ticker())
    [row] = log(tmp_path / "a")
    tokenizer = load_tokenizer(tiny)
    tokens = sum(
        len(ids) - start
        for ids, start in encode(
            tokenizer, [p.prompt for p in pairs], [p.chosen[0].content for p in pairs], "tiny", END
        )
    )
    nll = -row["logps/chosen"] * len(pairs) / tokens
    assert row["loss"] == pytest.approx(math.log(2) + 0.5 * nll, abs=1e-3)


def test_a_new_adapter_on_a_full_model_and_an_adapter_merged_for_full_training(
    policy: ModelRef, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    settings = (FULL if policy.adapter else LORA).model_copy(update={"max_steps": 1, "checkpoints": 1})
    [only] = train_preference(policy, pairs, settings, tmp_path / "a", 1, Ticker()).checkpoints
    assert log(tmp_path / "a")[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert (only.model.adapter is None) == (policy.adapter is not None)
    assert preference(only.model, pairs) > preference(policy, pairs)


def test_no_usable_pair_is_an_error(tiny: ModelRef, pairs: list[PreferencePair], tmp_path: Path) -> None:
    ticker = Ticker()
    with pytest.raises(
        StageError, match=r"none of 14 pairs .* align\.max_length = 8 tokens \(14 have a prompt as long, 0 are"
    ):
        train_preference(tiny, pairs, FULL.model_copy(update={"max_length": 8}), tmp_path / "a", 0, ticker)
    assert ticker.starts == []


def test_pairs_that_the_cut_makes_equal_are_dropped_and_each_loss_is_counted(
    tiny: ModelRef, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    def pair(id: str, ask: str, better: str, worse: str) -> PreferencePair:
        said = {
            "chosen": (Message(role="assistant", content=better),),
            "rejected": (Message(role="assistant", content=worse),),
        }
        return pairs[0].model_copy(update={"example_id": id, "prompt": (Message(role="user", content=ask),), **said})

    long = "The limit is 30 mg and the patient takes less than that. "
    mixed = [
        pair("whole", "Why?", "Answer: yes", "Answer: no"),
        pair("cut", "Why?", "Answer: yes. " + long * 3, "Answer: no"),
        pair("equal", "Why?", long * 3 + "Answer: yes", long * 3 + "Answer: no"),
        pair("same from the start", "Why?", "Answer: yes", "Answer: yes"),
        pair("lost", long * 4, "Answer: yes", "Answer: no"),
    ]
    kept, data = tokenize(load_tokenizer(tiny), mixed, 40, "tiny", END)
    assert data == Cut(items=5, cut=1, lost=1, equal=2)
    assert [len(r["prompt_ids"]) + len(r["chosen_ids"]) for r in kept][1] == 40
    ticker = Ticker()
    settings = FULL.model_copy(update={"max_length": 40, "max_steps": 1, "checkpoints": 1})
    done = train_preference(tiny, mixed, settings, tmp_path / "a", 0, ticker)
    assert done.counts == {"pairs_cut": 1, "pairs_lost": 1, "pairs_equal_after_cut": 2}
    assert ticker.told == [
        "align: of 5 pairs: 1 cut, 1 lost, 2 equal after the cut and dropped; "
        "align.max_length is 40 tokens, raise it to train on all"
    ]
    assert train_preference(tiny, mixed, settings, tmp_path / "a", 0, Ticker()) == done  # told again from the summary
    with pytest.raises(StageError, match="0 have a prompt as long, 2 are equal after the cut"):
        train_preference(tiny, mixed[2:4], settings, tmp_path / "b", 0, Ticker())


@pytest.mark.parametrize(
    ("total", "count", "steps"), [(40, 4, [10, 20, 30, 40]), (3, 5, [1, 2, 3]), (10, 3, [3, 7, 10]), (1, 1, [1])]
)
def test_kept_steps(total: int, count: int, steps: list[int]) -> None:
    assert kept_steps(total, count) == steps
