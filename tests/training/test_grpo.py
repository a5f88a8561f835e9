"""GRPO on a tiny model: its first loss by hand, its effect, and that a stopped one draws the same drafts again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import Ticker

from cowest.errors import NothingToLearnError
from cowest.models.local import load_model, load_tokenizer
from cowest.recipe.config import AlignConfig, SftConfig
from cowest.training import grpo
from cowest.training.grpo import order, train_grpo, varied
from cowest.training.objectives import Practice, Query
from cowest.training.sft import SftRow, train_sft
from cowest.types import Completion, Message, ModelRef, Sampling

pytestmark = pytest.mark.slow
SAMPLING = Sampling(temperature=1.0, max_tokens=12)
FULL = AlignConfig(
    objective="grpo", method="full", batch_size=2, group=4, learning_rate=1e-3, max_steps=6, warmup_steps=0, schedule="constant",
    checkpoint_every=2, checkpoints=2, device="cpu", max_length=128,
)  # fmt: skip
LORA = FULL.model_copy(update={"method": "lora", "learning_rate": 5e-3})
QUERIES = [
    Query(example_id=str(i), prompt=(Message(role="user", content=f"May a patient take {i} mg of Velarin?"),))
    for i in range(5)
]
Worth = Callable[[str], float | None]


class Spy:
    """A reward by the text alone that keeps what it was asked."""

    def __init__(self, worth: Worth) -> None:
        self._worth = worth
        self.seen: list[tuple[str, str]] = []
        self.means: list[float] = []

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[Completion], example_ids: Sequence[str]
    ) -> list[float | None]:
        values = [self._worth(done.text) for done in completions]
        self.seen += zip(example_ids, (done.text for done in completions), strict=True)
        known = [value for value in values if value is not None]
        self.means.append(sum(known) / len(known) if known else 0.0)
        return values


def letters(text: str) -> float:
    return sum(c in "aeiou" for c in text) / max(1, len(text))


def train(
    policy: ModelRef,
    out: Path,
    spy: Spy,
    settings: AlignConfig = FULL,
    ticker: Ticker | None = None,
    sampling: Sampling = SAMPLING,
) -> dict[str, int]:
    practice = Practice(QUERIES, sampling, spy)
    return train_grpo(policy, practice, settings, out, 1, ticker or Ticker()).counts


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=["full", "lora"])
def policy(
    request: pytest.FixtureRequest, tiny: ModelRef, rows: list[SftRow], tmp_path_factory: pytest.TempPathFactory
) -> ModelRef:
    settings = SftConfig(method=request.param, batch_size=8, learning_rate=1e-2, max_steps=6, device="cpu")
    return train_sft(tiny, rows, settings, tmp_path_factory.mktemp("sft"), 0, Ticker()).model


def settings_for(policy: ModelRef) -> AlignConfig:
    return LORA if policy.adapter else FULL


def test_the_first_loss_and_gradient_are_those_of_the_paper(
    policy: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, list[int]]] = []
    given: list[float | None] = []
    whole = grpo.Groups.__call__

    def spied(self: grpo.Groups, prompts: Sequence[str], completion_ids: Sequence[list[int]], **more: object) -> object:
        drawn.extend(zip(prompts, completion_ids, strict=True))
        values = whole(self, prompts, completion_ids, **more)  # type: ignore[arg-type]
        given.extend(values)
        return values

    monkeypatch.setattr(grpo.Groups, "__call__", spied)
    # Of the first group one has no reward: it takes no part, and the others' mean is theirs alone.
    first = iter([True])
    spy = Spy(lambda text: None if next(first, False) else letters(text))
    train(policy, tmp_path / "a", spy, settings_for(policy).model_copy(update={"max_steps": 1, "checkpoints": 1}))
    [row] = log(tmp_path / "a")

    model = load_model(policy, device=torch.device("cpu"), dtype=torch.float32, trainable=policy.adapter is not None)
    if policy.adapter is None:
        model.requires_grad_(True)
    tokenizer = load_tokenizer(policy)
    assert given[0] is None and len(given) == 8
    loss, tokens = torch.zeros(()), 0
    for start in (0, 4):
        scores = torch.tensor([v for v in given[start : start + 4] if v is not None])
        for (prompt, ids), value in zip(drawn[start : start + 4], given[start : start + 4], strict=True):
            advantage = 0.0 if value is None else float((value - scores.mean()) / (scores.std() + 1e-4))
            asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            logs = model(torch.tensor([asked + list(ids)])).logits[0, len(asked) - 1 : -1].log_softmax(-1)
            said = logs[torch.arange(len(ids)), torch.tensor(ids)]
            loss = loss - advantage * (said - said.detach()).exp().sum()  # the KL term is 0, and so is its gradient
            tokens += len(ids)
    (loss / tokens).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert row["loss"] == pytest.approx(float(loss.detach()) / tokens, abs=1e-5)
    assert row["grad_norm"] == pytest.approx(float(norm), rel=1e-3) and float(norm) > 0.01
    assert row["kl"] == pytest.approx(0.0, abs=1e-6)
    assert row["unscored"] == pytest.approx(1 / 8)


@pytest.fixture(scope="module")
def taught(tiny: ModelRef, rows: list[SftRow], tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    """A model that says yes as often as no."""
    settings = SftConfig(method="full", batch_size=8, learning_rate=1e-2, max_steps=60, device="cpu")
    return train_sft(tiny, rows, settings, tmp_path_factory.mktemp("taught"), 0, Ticker()).model


@pytest.mark.parametrize("settings", [FULL, LORA.model_copy(update={"learning_rate": 3e-2})], ids=["full", "lora"])
def test_what_is_rewarded_becomes_more(taught: ModelRef, settings: AlignConfig, tmp_path: Path) -> None:
    spy, steps = Spy(lambda text: float("yes" in text)), 20
    settings = settings.model_copy(update={"max_steps": steps, "beta": 0.01, "batch_size": 4})
    counts = train(taught, tmp_path / "a", spy, settings, sampling=Sampling(temperature=1.0, max_tokens=24))
    assert sum(spy.means[-4:]) / 4 > sum(spy.means[:4]) / 4 + 0.25, spy.means
    assert counts["groups"] == 4 * steps and counts["drafts_drawn"] == 16 * steps == len(spy.seen)
    assert log(tmp_path / "a")[-1]["kl"] > 1e-3  # to the policy before the first step


def test_a_stopped_training_draws_the_same_drafts_and_comes_to_the_same_weights(
    policy: ModelRef, tmp_path: Path
) -> None:
    settings, whole, cut = settings_for(policy), Spy(letters), Spy(letters)
    train(policy, tmp_path / "whole", whole, settings)
    with pytest.raises(KeyboardInterrupt):
        train(policy, tmp_path / "cut", cut, settings, Ticker(stop_at=5))
    torch.manual_seed(123)
    resumed, ticker = Spy(letters), Ticker()
    counts = train(policy, tmp_path / "cut", resumed, settings, ticker)
    assert ticker.starts == [("align", 6, 4)]
    assert cut.seen == whole.seen[: len(cut.seen)] and resumed.seen == whole.seen[4 * 8 :]
    assert counts["drafts_drawn"] == 48
    name = "adapter/adapter_model.safetensors" if policy.adapter else "model/model.safetensors"
    one, other = (load_file(tmp_path / run / "step-6" / name) for run in ("whole", "cut"))
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=0, atol=0)
    again = Spy(letters)
    assert train(policy, tmp_path / "cut", again, settings) == counts and not again.seen


def test_rewards_that_teach_nothing_end_it(tiny: ModelRef, tmp_path: Path) -> None:
    failing, ticker = Spy(lambda text: None), Ticker()
    with pytest.raises(NothingToLearnError, match="none of the first 64 drafts has a reward"):
        train(tiny, tmp_path / "a", failing, FULL.model_copy(update={"max_steps": 50}))
    assert len(failing.seen) == 64
    with pytest.raises(NothingToLearnError, match="in none of 24 groups"):
        train(tiny, tmp_path / "b", Spy(lambda text: 0.5), FULL.model_copy(update={"max_steps": 12}), ticker)
    assert sum("in the last 10 steps all drafts" in line for line in ticker.told) == 1


def test_a_prompt_without_room_for_a_draft_is_left_out(tiny: ModelRef, tmp_path: Path) -> None:
    with pytest.raises(NothingToLearnError, match=r"fit into align\.max_length = 14"):
        train(tiny, tmp_path / "a", Spy(letters), FULL.model_copy(update={"max_length": 14}))


def test_every_step_is_full_and_every_query_has_its_turn() -> None:
    steps = order(5, FULL.model_copy(update={"max_steps": None, "epochs": 2.0}), 1)
    assert [len(step) for step in steps] == [2] * 5
    flat = [i for step in steps for i in step]
    assert sorted(flat[:5]) == sorted(flat[5:]) == list(range(5)) and flat[:5] != flat[5:]


def test_a_group_varies_by_the_rewards_that_it_has() -> None:
    assert varied([0.0, 1.0, None]) and not varied([1.0, None, 1.0]) and not varied([None, None])


def test_a_new_adapter_on_a_full_model_and_an_adapter_merged_for_full_training(
    policy: ModelRef, tmp_path: Path
) -> None:
    settings = (FULL if policy.adapter else LORA).model_copy(update={"max_steps": 2, "checkpoints": 1})
    train(policy, tmp_path / "a", Spy(letters), settings)
    first, second = log(tmp_path / "a")
    assert first["kl"] == pytest.approx(0.0, abs=1e-6) and second["kl"] > 1e-6  # to the policy, adapter included
    assert (tmp_path / "a/step-2" / ("model" if policy.adapter else "adapter")).is_dir()
