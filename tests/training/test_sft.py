from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import END, Ticker
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig as TrlSftConfig  # type: ignore[attr-defined,unused-ignore]
from trl import SFTTrainer  # type: ignore[attr-defined,unused-ignore]

from cowest.errors import StageError
from cowest.models.local import load_model, load_tokenizer
from cowest.recipe.config import SftConfig
from cowest.training.common import COMPLETE, TrainingSummary
from cowest.training.encoding import Cut
from cowest.training.merge import merge
from cowest.training.sft import LeanSftTrainer, LengthGroupedSampler, SftRow, tokenize, train_sft
from cowest.types import Message, ModelRef

pytestmark = pytest.mark.slow
FULL = SftConfig(
    method="full", batch_size=4, learning_rate=3e-3, max_steps=14, warmup_steps=2, checkpoint_every=4, device="cpu"
)
LORA = FULL.model_copy(update={"method": "lora"})


def weights(ref: ModelRef) -> dict[str, torch.Tensor]:
    folder = Path(ref.adapter or ref.base)
    return load_file(folder / ("adapter_model.safetensors" if ref.adapter else "model.safetensors"))


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_full_training_learns_and_leaves_an_ordinary_model(
    tiny: ModelRef, rows: list[SftRow], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ticker = Ticker()
    out = tmp_path / "sft"
    settings = FULL.model_copy(update={"max_steps": 30, "max_length": 40, "checkpoint_every": 20})
    done = train_sft(tiny, rows, settings, out, 3, ticker)
    trained = done.model
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == ""
    assert trained == ModelRef(base=str(out / "model"))
    AutoModelForCausalLM.from_pretrained(trained.base, use_safetensors=True)
    assert AutoTokenizer.from_pretrained(trained.base).chat_template
    assert not (out / "checkpoints").exists()
    assert ticker.starts == [("sft", 30, 0)] and ticker.ticks == 30 and ticker.finished == 1
    steps = log(out)
    assert [row["step"] for row in steps] == [1, 10, 20, 30]
    assert steps[-1]["loss"] < steps[0]["loss"] - 1
    summary = TrainingSummary.model_validate_json((out / "summary.json").read_text())
    whole = tokenize(load_tokenizer(tiny), rows, 10**6, "tiny", END)[0]
    cut = sum(len(r["input_ids"]) > 40 for r in whole)
    assert 0 < cut < len(rows) and summary.data == Cut(items=len(rows), cut=cut)
    assert done.counts == {"rows_cut": cut, "rows_lost": 0}
    assert ticker.told == [f"sft: of 22 rows: {cut} cut; sft.max_length is 40 tokens, raise it to train on all"]
    assert summary.steps == 30 and summary.final_loss == steps[-1]["loss"]
    # Asked again, a finished training is not repeated; other settings start anew.
    again = Ticker()
    assert train_sft(tiny, rows, settings, out, 3, again) == done
    assert again.starts == []
    train_sft(tiny, rows, settings.model_copy(update={"max_steps": 1}), out, 3, again)
    assert again.ticks == 1


@pytest.mark.parametrize("settings", [FULL, LORA], ids=["full", "lora"])
def test_a_killed_training_resumes_to_the_same_weights(
    tiny: ModelRef, rows: list[SftRow], tmp_path: Path, settings: SftConfig
) -> None:
    whole = train_sft(tiny, rows, settings, tmp_path / "whole", 3, Ticker()).model
    # 22 rows in batches of 4 are 6 steps a pass: it is stopped within the second pass, after the checkpoint at 8.
    with pytest.raises(KeyboardInterrupt):
        train_sft(tiny, rows, settings, tmp_path / "cut", 3, Ticker(stop_at=10))
    torn = tmp_path / "cut/checkpoints/checkpoint-12"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    assert (tmp_path / "cut/checkpoints/checkpoint-8" / COMPLETE).is_file()
    ticker = Ticker()
    resumed = train_sft(tiny, rows, settings, tmp_path / "cut", 3, ticker).model
    assert ticker.starts == [("sft", 14, 8)] and ticker.ticks == 6
    expected, got = weights(whole), weights(resumed)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0)
    assert [(r["step"], r["loss"]) for r in log(tmp_path / "cut")] == [
        (r["step"], r["loss"]) for r in log(tmp_path / "whole")
    ]


def test_lora_moves_only_the_adapter_and_merges_to_the_same_logits(
    tiny: ModelRef, rows: list[SftRow], tmp_path: Path
) -> None:
    trained = train_sft(tiny, rows, LORA, tmp_path / "sft", 3, Ticker()).model
    assert trained.base == tiny.base and trained.adapter == str(tmp_path / "sft/adapter")
    assert json.loads((tmp_path / "sft/adapter/adapter_config.json").read_text())["r"] == LORA.lora.r
    assert all("lora_" in name for name in weights(trained))
    merged = merge(trained, tmp_path / "merged")
    ids = torch.arange(5, 25)[None]
    cpu = torch.device("cpu")
    apart = load_model(trained, device=cpu, dtype=None, trainable=True)
    plain = AutoModelForCausalLM.from_pretrained(merged.base)
    base = AutoModelForCausalLM.from_pretrained(tiny.base)
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, apart(ids).logits, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(plain(ids).logits, base(ids).logits, atol=1e-3)
    assert AutoTokenizer.from_pretrained(merged.base).chat_template


@pytest.mark.parametrize("adapter", [False, True])
def test_the_lean_loss_is_trls(tiny: ModelRef, rows: list[SftRow], tmp_path: Path, adapter: bool) -> None:
    from datasets import Dataset
    from peft import LoraConfig

    tokenizer = load_tokenizer(tiny)
    data, _ = tokenize(tokenizer, rows[:4], 512, "tiny", END)
    trainer = LeanSftTrainer(
        model=load_model(tiny, device=torch.device("cpu"), dtype=torch.float32),
        args=TrlSftConfig(
            str(tmp_path), use_cpu=True, bf16=False, report_to="none", dataset_kwargs={"skip_prepare_dataset": True}
        ),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        peft_config=LoraConfig(target_modules="all-linear", init_lora_weights=False) if adapter else None,
    )
    batch = trainer.data_collator(data)
    assert trainer._lean()
    for items in (None, torch.tensor(50)):
        assert trainer.model is not None
        ours = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=items)
        theirs = SFTTrainer.compute_loss(trainer, trainer.model, dict(batch), num_items_in_batch=items)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_labels_cover_the_completion_and_its_end_only(tiny: ModelRef, rows: list[SftRow]) -> None:
    tokenizer = load_tokenizer(tiny)
    [row], data = tokenize(tokenizer, rows[:1], 512, "tiny", END)
    kept = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(kept) == rows[0].completion + "<end>"
    assert data == Cut(items=1) and len(row["labels"]) == len(row["input_ids"])
    assert tokenize(tokenizer, rows[:1], 8, "tiny", END) == ([], Cut(items=1, lost=1))


def test_nothing_to_train_on_is_an_error(tiny: ModelRef, rows: list[SftRow], tmp_path: Path) -> None:
    ticker = Ticker()
    with pytest.raises(StageError, match=r"none of 22 rows .* sft\.max_length = 8 tokens"):
        train_sft(tiny, rows, FULL.model_copy(update={"max_length": 8}), tmp_path / "a", 0, ticker)
    assert ticker.starts == [] and ticker.told[0].startswith("sft: of 22 rows: 22 lost")
    with pytest.raises(StageError):
        train_sft(tiny, [], FULL, tmp_path / "b", 0, Ticker())


def test_divergence_is_an_error_not_a_model(tiny: ModelRef, rows: list[SftRow], tmp_path: Path) -> None:
    wild = FULL.model_copy(update={"learning_rate": 1e18, "warmup_steps": 0, "max_steps": 40})
    with pytest.raises(StageError, match="diverged"):
        train_sft(tiny, rows, wild, tmp_path / "a", 0, Ticker())
    assert not (tmp_path / "a/model").exists()


def test_the_sampler_is_a_permutation_of_similar_lengths() -> None:
    lengths = [i % 50 for i in range(1003)]
    sampler = LengthGroupedSampler(lengths, 8, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(1003)) and first == list(sampler)
    spans = [max(s) - min(s) for i in range(0, 1000, 8) if (s := [lengths[j] for j in first[i : i + 8]])]
    assert sum(spans) / len(spans) < 8
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_a_prompt_of_several_turns_is_kept(tiny: ModelRef) -> None:
    row = SftRow(
        prompt=(Message(role="system", content="Be brief."), Message(role="user", content="Why?")), completion="So."
    )
    [encoded], _ = tokenize(load_tokenizer(tiny), [row], 99, "tiny", END)
    assert load_tokenizer(tiny).decode(encoded["input_ids"]) == "<system>Be brief.<user>Why?<assistant>So.<end>"
