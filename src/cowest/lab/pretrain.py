"""``cowest lab pretrain``: make the lab's strong model and weak base from nothing.

Ordinary Llama configurations, next-token loss on the whole conversation (the prompt at half weight: it makes copying emerge
sooner), Muon for the matrices and AdamW for the rest, a constant learning rate with a linear decay over the last quarter.
Resumable: a checkpoint holds model, optimizers and step, and the data stream is a function of the step.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cowest.lab.corpus import samples
from cowest.lab.sample import Sample
from cowest.lab.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from cowest.protocols import Reporter

BLOCK = 16  # batches that are drawn together and grouped by length
HELD_OUT_SEED = 1_000_003
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class Plan:
    """Size and schedule of one model; ``role`` is what it is trained on, ``learning_rate`` the peak of both optimizers.

    ``start`` is a shipped model of this size whose weights it begins with, '' for random ones.
    """

    name: str
    role: str
    hidden: int
    layers: int
    intermediate: int
    steps: int
    heads: int = 4
    batch: int = 64
    learning_rate: float = 3e-3
    warmup: int = 100
    decay_share: float = 0.25
    prompt_weight: float = 0.5
    seed: int = 0
    evaluate_every: int = 400
    start: str = ""


PLANS = {
    plan.name: plan
    for plan in (
        Plan("strong", "strong", hidden=128, layers=4, intermediate=384, steps=3200),
        Plan("strong-small", "strong", hidden=96, layers=3, intermediate=256, steps=2400),
        Plan("strong-tiny", "strong", hidden=64, layers=2, intermediate=160, steps=1200),
        Plan(
            "strong-asks",
            "strong-asks",
            hidden=96,
            layers=3,
            intermediate=256,
            steps=400,
            decay_share=0.2,
            evaluate_every=160,
            start="strong-small",
        ),
        Plan("weak", "weak", hidden=96, layers=3, intermediate=256, steps=1200),
        Plan("weak-small", "weak", hidden=64, layers=2, intermediate=160, steps=1200),
    )
}


def new_model(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A model of the plan's size, freshly initialised or with the weights of the model that it starts from."""
    torch.manual_seed(plan.seed)
    if plan.start:
        return LlamaForCausalLM.from_pretrained(WEIGHTS / plan.start, dtype=torch.float32)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=plan.hidden,
        intermediate_size=plan.intermediate,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True, slots=True)
class Batch:
    """``ids`` and ``weights`` are (batch, length); padding is on the right, with weight 0."""

    ids: torch.Tensor
    weights: torch.Tensor


def encode(sample: Sample, tokenizer: PreTrainedTokenizerFast, prompt_weight: float) -> tuple[list[int], list[float]]:
    """Token ids of the conversation with the loss weight of each."""
    messages = [m.model_dump() for m in sample.messages]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tail = tokenizer(f"{sample.reply}<end>", add_special_tokens=False)["input_ids"]
    return head + tail, [prompt_weight] * len(head) + [1.0] * len(tail)


def _collate(rows: list[tuple[list[int], list[float]]], pad: int) -> Batch:
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([i + [pad] * (width - len(i)) for i, _ in rows])
    weights = torch.tensor([w + [0.0] * (width - len(w)) for _, w in rows])
    return Batch(ids, weights)


def batches(plan: Plan, tokenizer: PreTrainedTokenizerFast, start: int) -> Iterator[Batch]:
    """The stream of batches from step ``start`` (a multiple of BLOCK) on."""
    stream = samples(plan.role, plan.seed, start * plan.batch)
    block = start // BLOCK
    while True:
        rows = [encode(s, tokenizer, plan.prompt_weight) for s in islice(stream, plan.batch * BLOCK)]
        rows.sort(key=lambda row: len(row[0]))
        grouped = [rows[i : i + plan.batch] for i in range(0, len(rows), plan.batch)]
        random.Random(block).shuffle(grouped)
        for group in grouped:
            yield _collate(group, tokenizer.pad_token_id)
        block += 1


def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Weighted mean next-token loss in nats."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch.ids).logits
    # Shift the targets, not the logits: a sliced copy of the logits costs more than the whole forward pass's attention.
    targets, weights = batch.ids.roll(-1, 1).flatten(), batch.weights.roll(-1, 1)
    weights[:, -1] = 0.0
    weights = weights.flatten()
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="none")
    return (nll * weights).sum() / weights.sum()


def _optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _rate(plan: Plan, step: int) -> float:
    decay_from = plan.steps * (1 - plan.decay_share)
    factor = min(1.0, (step + 1) / plan.warmup)
    if step > decay_from:
        factor = max(0.02, (plan.steps - step) / (plan.steps - decay_from))
    return plan.learning_rate * factor


@torch.inference_mode()
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, role: str, count: int) -> dict[str, float]:
    """Share of exactly right answers on held-out random worlds, by kind of sample (greedy decoding)."""
    held_out = list(islice(samples(role, HELD_OUT_SEED), count))
    right: defaultdict[str, list[bool]] = defaultdict(list)
    model.eval()
    for start in range(0, count, 100):
        part = held_out[start : start + 100]
        prompts = [
            tokenizer.apply_chat_template(
                [m.model_dump() for m in s.messages], tokenize=False, add_generation_prompt=True
            )
            for s in part
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        out = model.generate(  # type: ignore[misc]
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=96, do_sample=False
        )
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for sample, text in zip(part, texts, strict=True):
            answer = re.split(r"Answer: ", text)[-1].strip()
            right[sample.kind].append(answer == sample.answer)
    model.train()
    return {kind: round(sum(hits) / len(hits), 4) for kind, hits in sorted(right.items())}


def pretrain(plan: Plan, out: Path, reporter: Reporter, on_log: Callable[[str], None] | None = None) -> Path:
    """Train ``plan``'s model and save it with its tokenizer under ``out/<name>``; continue where a killed run stopped.

    The log (``out/<name>.jsonl``) has loss, tokens, seconds and the accuracies by kind.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    model, state_file, log_file = new_model(plan, tokenizer), out / f"{plan.name}.pt", out / f"{plan.name}.jsonl"
    optimizers = _optimizers(model)
    step, tokens, spent = _restore(state_file, model, optimizers)
    reporter.start(f"pretrain {plan.name}", plan.steps, step)
    began, recent = time.monotonic() - spent, []
    for batch in batches(plan, tokenizer, step):
        if step >= plan.steps:
            break
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = _rate(plan, step)
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, tokens = step + 1, tokens + int((batch.weights > 0).sum())
        recent.append(loss.item())
        reporter.advance()
        if step % 40 == 0:
            row: dict[str, object] = {"step": step, "tokens": tokens, "seconds": round(time.monotonic() - began)}
            row["loss"], recent = round(sum(recent) / len(recent), 4), []
            if step % plan.evaluate_every == 0 or step == plan.steps:
                row["accuracy"] = accuracy(model, tokenizer, plan.role, 300)
            line = json.dumps(row)
            with log_file.open("a", encoding="utf-8") as handle:
                handle.write(line + "\n")
            if on_log:
                on_log(line)
        if step % (BLOCK * 10) == 0:
            _checkpoint(state_file, model, optimizers, step, tokens, time.monotonic() - began)
    reporter.finish()
    return _save(plan, model, tokenizer, out)


def _restore(file: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]) -> tuple[int, int, float]:
    if not file.exists():
        return 0, 0, 0.0
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["tokens"], state["seconds"]


def _checkpoint(
    file: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], step: int, tokens: int, seconds: float
) -> None:
    state: dict[str, object] = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    state |= {"step": step, "tokens": tokens, "seconds": seconds}
    partial = file.with_suffix(".part")
    torch.save(state, partial)
    partial.replace(file)


def _save(plan: Plan, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> Path:
    folder = out / plan.name
    model.generation_config.max_length = None
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    (folder / "plan.json").write_text(json.dumps(asdict(plan), indent=2) + "\n", encoding="utf-8")
    return folder
