"""Logits at targets only, prompts read once, batches split, memory that runs out: the numbers stay TRL's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tests.training.conftest import END, Ticker
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, SFTTrainer  # type: ignore[attr-defined,unused-ignore]
from trl import SFTConfig as TrlSftConfig  # type: ignore[attr-defined,unused-ignore]

from cowest.errors import StageError
from cowest.models.local import load_tokenizer
from cowest.models.shape import model_shape
from cowest.recipe.config import AlignConfig, SftConfig
from cowest.training import head, loop
from cowest.training.head import at_targets, targets_only
from cowest.training.memory import training_need
from cowest.training.pair_forward import can_share, pack, score_targets_only
from cowest.training.precision import share_inputs
from cowest.training.preference import PairTrainer, train_preference
from cowest.training.sft import LeanSftTrainer, SftRow, tokenize, train_sft
from cowest.types import ModelRef, PreferencePair

pytestmark = pytest.mark.slow
WORDS = 20_000  # a vocabulary that is large
CPU = torch.device("cpu")


def wide_model(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, tie_word_embeddings=True, **changes,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def numbers(count: int, start: int = 0) -> list[int]:
    return [100 + (start + 7 * i) % 9000 for i in range(count)]


def pair_rows() -> list[dict[str, list[int]]]:
    """Prompts and completions of other lengths each, the longer completion on either side, and one of a single token."""
    sizes = [(9, 5, 2), (4, 1, 6), (12, 3, 3)]
    return [
        {"prompt_ids": numbers(p, 11 * i), "chosen_ids": numbers(c, 50 + i), "rejected_ids": numbers(r, 90 + i)}
        for i, (p, c, r) in enumerate(sizes)
    ]


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys() and wanted
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_head_at_targets_is_the_head(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "AT_ONCE", 3 * WORDS)  # seven rows in three portions
    model = wide_model()
    if frozen:
        model.get_output_embeddings().weight.requires_grad_(False)
    hidden, targets = torch.randn(7, 32, requires_grad=True), torch.arange(7) * 1000
    found = at_targets(model, hidden, targets)
    logs = model.get_output_embeddings()(hidden).log_softmax(-1)
    said = logs[torch.arange(7), targets]
    torch.testing.assert_close(found.log_probs, said)
    torch.testing.assert_close(found.entropy, -(logs.exp() * logs).sum(-1))
    torch.testing.assert_close(found.mean_logits, model.get_output_embeddings()(hidden).mean(-1), atol=1e-6, rtol=1e-4)
    assert found.is_top1.tolist() == (logs.argmax(-1) == targets).tolist()
    weights = torch.linspace(-1, 2, 7)  # each target its own slope, as in DPO
    inputs = [hidden] if frozen else [hidden, model.get_output_embeddings().weight]
    ours = torch.autograd.grad((found.log_probs * weights).sum(), inputs)
    theirs = torch.autograd.grad((said * weights).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("adapter", [False, True])
def test_sft_of_a_large_vocabulary_has_trls_loss_and_gradient(tiny: ModelRef, tmp_path: Path, adapter: bool) -> None:
    data = [{"input_ids": numbers(n, n), "labels": [-100] * 4 + numbers(n, n)[4:]} for n in (9, 14, 6)]
    trainer = LeanSftTrainer(
        model=wide_model(),
        args=TrlSftConfig(
            str(tmp_path), use_cpu=True, bf16=False, report_to="none", dataset_kwargs={"skip_prepare_dataset": True}
        ),
        train_dataset=Dataset.from_list(data),
        processing_class=load_tokenizer(tiny),
        peft_config=LoraConfig(target_modules="all-linear", init_lora_weights=False) if adapter else None,
    )
    assert trainer.model is not None and targets_only(trainer.model, CPU)
    batch = trainer.data_collator(data)
    ours = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(17))
    theirs = SFTTrainer.compute_loss(trainer, trainer.model, dict(batch), num_items_in_batch=torch.tensor(17))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    close(gradients(trainer.model, ours), gradients(trainer.model, theirs))


def test_in_bfloat16_an_adapter_takes_the_layers_own_input(tiny: ModelRef, tmp_path: Path) -> None:
    data = [{"input_ids": numbers(n, n), "labels": [-100] * 4 + numbers(n, n)[4:]} for n in (9, 14, 6)]
    args = TrlSftConfig(
        str(tmp_path), use_cpu=True, bf16=True, report_to="none", dataset_kwargs={"skip_prepare_dataset": True}
    )
    trainer = LeanSftTrainer(
        model=wide_model().bfloat16(),
        args=args,
        train_dataset=Dataset.from_list(data),
        processing_class=load_tokenizer(tiny),
        peft_config=LoraConfig(target_modules="all-linear", init_lora_weights=False),
    )
    assert trainer.model is not None
    share_inputs(trainer.model)
    trainer.model.train()
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    batch = trainer.data_collator(data)
    ours = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(17))
    with trainer.accelerator.autocast():  # the Trainer has put it around the model's forward when it calls TRL's
        theirs = SFTTrainer.compute_loss(trainer, trainer.model, dict(batch), num_items_in_batch=torch.tensor(17))
    assert float(ours) == pytest.approx(float(theirs), abs=5e-3)
    found, wanted = gradients(trainer.model, ours), gradients(trainer.model, theirs)
    for name, value in wanted.items():
        assert float((found[name] - value).norm()) < 0.05 * float(value.norm()) + 1e-6, name


def pair_trainer(tiny: ModelRef, out: Path, kind: type, loss: list[str], **changes: Any) -> Any:
    return kind(
        model=wide_model(**changes),
        args=DPOConfig(
            str(out), use_cpu=True, bf16=False, report_to="none", loss_type=loss, disable_dropout=True,
            precompute_ref_log_probs=True,
        ),
        train_dataset=Dataset.from_list(pair_rows()),
        processing_class=load_tokenizer(tiny),
    )  # fmt: skip


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("loss", [["sigmoid"], ["ipo", "sft"], ["sigmoid_norm"]])
def test_dpo_behind_one_prompt_has_trls_loss_gradient_and_log(
    tiny: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: list[str], shared: bool
) -> None:
    changes = {} if shared else {"attn_implementation": "eager"}
    monkeypatch.setattr(PairTrainer, "_precompute_ref_logps", lambda self, dataset, *_: dataset)
    trainer = pair_trainer(tiny, tmp_path, PairTrainer, loss, **changes)
    batch = trainer.data_collator(pair_rows()) | {
        "ref_chosen_logps": torch.tensor([-50.0, -9.0, -31.0]),
        "ref_rejected_logps": torch.tensor([-21.0, -60.0, -29.0]),
    }
    told = list[dict[str, float]]()

    def step() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        trainer._metrics["train"].clear()
        trainer.model.train()
        found = DPOTrainer.compute_loss(trainer, trainer.model, dict(batch))
        slopes = gradients(trainer.model, found)
        told.append({k: v[0] for k, v in trainer._metrics["train"].items() if k != "num_tokens"})
        return found, slopes

    theirs, wanted = step()
    score_targets_only(trainer.model)
    assert can_share(trainer.model) is shared
    ours, found = step()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    close(found, wanted)
    assert told[0].keys() == told[1].keys()
    for name, value in told[0].items():
        assert told[1][name] == pytest.approx(value, abs=2e-4), name


def test_pairs_are_packed_so_that_neither_completion_sees_the_other(tiny: ModelRef, tmp_path: Path) -> None:
    trainer = pair_trainer(tiny, tmp_path, PairTrainer, ["sigmoid"])
    batch = trainer.data_collator(pair_rows())
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    packed = pack(batch["input_ids"], batch["attention_mask"], labels)
    assert packed is not None
    first = pair_rows()[0]
    assert packed.ids[0, :16].tolist() == first["prompt_ids"] + first["chosen_ids"] + first["rejected_ids"]
    assert packed.positions[0, :16].tolist() == [*range(14), 9, 10]
    seen = packed.mask[0, 0]
    assert not seen[14:16, 9:14].any() and seen[14:16, :9].all() and not seen[:9, 9:].any()
    assert packed.mask.any(-1).all()  # padding too sees something: a row of nothing would be no number
    assert packed.targets.tolist() == [i for r in pair_rows() for i in r["chosen_ids"]] + [
        i for r in pair_rows() for i in r["rejected_ids"]
    ]
    other = batch["input_ids"].clone()
    other[3, 2] += 1  # another prompt than its chosen half has
    assert pack(other, batch["attention_mask"], labels) is None


def test_sliding_windows_and_eager_attention_are_not_shared() -> None:
    assert can_share(wide_model())
    assert not can_share(wide_model(attn_implementation="eager"))
    model = wide_model()
    model.config.layer_types = ["sliding_attention", "full_attention"]
    assert not can_share(model)


def need_of(settings: SftConfig | AlignConfig, tiny: ModelRef, rows: int, length: int, sequences: int) -> int:
    shape = model_shape(tiny.base)
    assert shape is not None
    need = training_need(shape, settings, length, sequences, rows)
    return need.trained + need.step


def test_a_batch_that_does_not_fit_is_split_to_the_same_losses(
    tiny: ModelRef, rows: list[SftRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SftConfig(
        method="full", batch_size=4, max_steps=6, warmup_steps=0, device="cpu", checkpoint_every=1, learning_rate=1e-3
    )
    whole = train_sft(tiny, rows, config, tmp_path / "whole", 3, Ticker())
    longest = max(len(r["input_ids"]) for r in tokenize(load_tokenizer(tiny), rows, 1024, "tiny", END)[0])
    monkeypatch.setattr(loop, "memory_left", lambda _: need_of(config, tiny, 1, longest, 1))
    ticker = Ticker()
    split = train_sft(tiny, rows, config, tmp_path / "split", 3, ticker)
    assert split.counts == whole.counts
    assert len(ticker.told) == 1 and "4 micro-batches of 1, which is the same gradient" in ticker.told[0]
    assert losses(tmp_path / "split") == pytest.approx(losses(tmp_path / "whole"), abs=2e-4)
    # The split is no part of what was trained: asked with more memory, it is done.
    monkeypatch.setattr(loop, "memory_left", lambda _: None)
    again = Ticker()
    assert train_sft(tiny, rows, config, tmp_path / "split", 3, again) == split and again.starts == []


def losses(out: Path) -> list[float]:
    return [float(line.split('"loss": ')[1].split(",")[0].rstrip("}\n")) for line in (out / "log.jsonl").open()]


def test_what_cannot_fit_is_refused_before_a_step(
    tiny: ModelRef, rows: list[SftRow], pairs: list[PreferencePair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticker = Ticker()
    big = SftConfig(method="full", max_length=10_000, device="cpu")
    long = [rows[0].model_copy(update={"completion": "Answer: yes " * 400})]
    with pytest.raises(StageError, match=r"sft: a step with one row of up to [\d,]+ tokens needs .* sft\.method: lora"):
        monkeypatch.setattr(loop, "memory_left", lambda _: 2 << 20)
        train_sft(tiny, long, big, tmp_path / "a", 0, ticker)
    with pytest.raises(StageError, match=r"align: .* needs? .* are free: .*lower align\.max_length"):
        monkeypatch.setattr(loop, "memory_left", lambda _: 1 << 10)
        train_preference(tiny, pairs, AlignConfig(method="full", device="cpu"), tmp_path / "b", 0, ticker)
    assert ticker.starts == []


def out_of_memory_once(step: int, error: Callable[[], BaseException]) -> Callable[[Any], Any]:
    raised = list[int]()

    def training_step(self: Any, *args: Any, **more: Any) -> Any:
        if self.state.global_step == step and self.args.train_batch_size > 2:
            raised.append(self.args.train_batch_size)
            raise error()
        return SFTTrainer.training_step(self, *args, **more)

    return training_step


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        lambda: RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        MemoryError,
    ],
)
def test_memory_that_runs_out_halves_the_batch_and_goes_on(
    tiny: ModelRef, rows: list[SftRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception]
) -> None:
    config = SftConfig(
        batch_size=4, max_steps=5, warmup_steps=0, device="cpu", checkpoint_every=1, learning_rate=1e-3, dtype="float32"
    )
    train_sft(tiny, rows, config, tmp_path / "whole", 3, Ticker())
    monkeypatch.setattr(LeanSftTrainer, "training_step", out_of_memory_once(3, error), raising=False)
    ticker = Ticker()
    train_sft(tiny, rows, config, tmp_path / "cut", 3, ticker)
    [told] = ticker.told
    assert told.startswith("sft: memory ran out (") and "with 2 rows at a time in place of 4" in told
    assert ticker.starts == [("sft", 5, 0), ("sft", 5, 3)]
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=2e-4)


def test_memory_that_never_suffices_ends_in_words(
    tiny: ModelRef, rows: list[SftRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("none")

    monkeypatch.setattr(LeanSftTrainer, "training_step", fail, raising=False)
    config = SftConfig(batch_size=2, max_steps=2, device="cpu", dtype="float32")
    with pytest.raises(StageError, match=r"sft: memory ran out at one row a step \(none\)"):
        train_sft(tiny, rows, config, tmp_path, 3, Ticker())


def test_another_error_is_not_taken_for_memory(
    tiny: ModelRef, rows: list[SftRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(LeanSftTrainer, "training_step", fail, raising=False)
    with pytest.raises(RuntimeError, match="multiplied"):
        train_sft(tiny, rows, SftConfig(batch_size=2, max_steps=2, device="cpu"), tmp_path, 3, Ticker())


def test_the_first_loss_of_dpo_is_ln_2_where_prompts_are_shared(
    tiny: ModelRef, pairs: list[PreferencePair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "LARGE", 1)  # the tiny model's vocabulary counts as large
    config = AlignConfig(batch_size=4, max_steps=3, warmup_steps=0, device="cpu", learning_rate=1e-2)
    train_preference(tiny, pairs, config, tmp_path, 3, Ticker())
    found = losses(tmp_path)
    assert found[0] == pytest.approx(math.log(2), abs=1e-4) and found[2] < found[0]
