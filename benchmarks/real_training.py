"""SFT and DPO of a really pretrained model: ours against TRL's trainers as they are, in tokens/s, peak memory and losses.

Each run is a process of its own, so that its peak is its own; runs of the sides alternate, and medians are compared. ``ours`` is
what ``cowest run`` does; ``trl`` is SFTTrainer and DPOTrainer with the same rows, batches, LoRA and precision, nothing added.
Processor time stands beside the wall clock: it is what a busy machine leaves comparable.

    python -m benchmarks.real_training MODEL_FOLDER --rows pairs.jsonl

For :mod:`benchmarks.real`: :func:`compare`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

Kind = Literal["sft", "dpo"]
Side = Literal["ours", "trl"]
SIDES: Final[tuple[Side, ...]] = ("ours", "trl")
RATE: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Run:
    """One training: ``tokens`` of prompts and completions in its steps, its seconds, and its highest memory.

    The time begins with the making of the trainer, in which DPO scores the reference.
    """

    kind: str
    side: str
    dtype: str
    tokens: int
    seconds: float
    user_s: float
    kernel_s: float
    peak_gib: float
    losses: list[float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Medians of the runs of both sides: ratios are ours to TRL's, of tokens for a second and of memory at its highest."""

    kind: str
    dtype: str
    ours: Run
    trl: Run
    speed: float
    speed_of_processor_time: float
    memory: float
    loss_difference: float


def compare(
    model: Path, rows: Path, kind: Kind, dtype: str, batch: int = 8, steps: int = 3, runs: int = 3
) -> Comparison:
    """Train ``model`` (a folder) for a few steps on ``rows``, as both sides, alternating.

    ``rows`` is a JSONL file of prompt, chosen and rejected (texts); SFT learns the chosen. Raises SystemExit with what a run
    printed where one fails.
    """
    found: dict[str, list[Run]] = {side: [] for side in SIDES}
    for i in range(runs):
        for side in SIDES if i % 2 == 0 else SIDES[::-1]:
            found[side].append(_apart(model, rows, kind, side, dtype, batch, steps))
    ours, trl = (_median(found[side]) for side in SIDES)
    spent = (ours.user_s + ours.kernel_s, trl.user_s + trl.kernel_s)
    return Comparison(
        kind=kind,
        dtype=dtype,
        ours=ours,
        trl=trl,
        speed=(ours.tokens / ours.seconds) / (trl.tokens / trl.seconds),
        speed_of_processor_time=(ours.tokens / spent[0]) / (trl.tokens / spent[1]),
        memory=ours.peak_gib / trl.peak_gib,
        loss_difference=max(abs(a - b) for a, b in zip(ours.losses, trl.losses, strict=True)),
    )


def _median(runs: Sequence[Run]) -> Run:
    """Each figure's median; tokens and losses are the same in all."""
    numbers = {name: median(getattr(r, name) for r in runs) for name in ("seconds", "user_s", "kernel_s", "peak_gib")}
    first = runs[0]
    return Run(first.kind, first.side, first.dtype, first.tokens, losses=first.losses, **numbers)


def _apart(model: Path, rows: Path, kind: Kind, side: Side, dtype: str, batch: int, steps: int) -> Run:
    command = [sys.executable, "-m", "benchmarks.real_training", str(model), "--rows", str(rows), "--one", kind, side]
    command += ["--dtype", dtype, "--batch", str(batch), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-4000:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def train_once(model: Path, rows: Path, kind: Kind, side: Side, dtype: str, batch: int, steps: int) -> Run:
    """One training in this process."""
    from transformers import TrainerCallback

    marks: list[tuple[float, float, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_train_end(self, *_: object, **__: object) -> None:
            marks.append(_now())

    examples = _examples(rows, batch * steps)
    with tempfile.TemporaryDirectory() as out:
        build, tokens = _prepared(model, examples, kind, side, dtype, batch, steps, Path(out))
        marks.append(_now())  # DPO's reference is scored when its trainer is built
        trainer = build()
        trainer.add_callback(Clock())
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    seconds, user_s, kernel_s = (after - before for before, after in zip(marks[0], marks[-1], strict=True))
    return Run(kind, side, dtype, tokens, seconds, user_s, kernel_s, peak_gib=peak_gib(), losses=losses)


def _now() -> tuple[float, float, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), used.ru_utime, used.ru_stime


def peak_gib() -> float:
    """The most memory that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 30 if sys.platform == "darwin" else 1 << 20)


def _examples(rows: Path, count: int) -> list[dict[str, str]]:
    with rows.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    if len(found) < count:
        raise SystemExit(f"{rows}: {len(found)} rows, and {count} are wanted: fewer --steps or --batch")
    return found[:count]


def _prepared(
    model: Path,
    examples: Sequence[dict[str, str]],
    kind: Kind,
    side: Side,
    dtype: str,
    batch: int,
    steps: int,
    out: Path,
) -> tuple[Callable[[], Any], int]:
    """What builds a trainer of either side, with the same steps of the same rows in the same order; and the tokens of those."""
    from torch.utils.data import SequentialSampler
    from trl import DPOTrainer, SFTTrainer  # type: ignore[attr-defined,unused-ignore]

    from cowest.models.local import load_tokenizer
    from cowest.models.shape import model_shape
    from cowest.recipe.config import AlignConfig, SftConfig
    from cowest.run.machine import keep_freed_memory
    from cowest.training.common import Folder, load_for_training, new_adapter
    from cowest.training.ending import taught_end
    from cowest.training.memory import narrowed
    from cowest.training.precision import share_inputs
    from cowest.training.preference import PairTrainer, pair_trainer
    from cowest.training.preference import tokenize as tokenize_pairs
    from cowest.training.sft import LeanSftTrainer, SftRow, lean_trainer, tokenize
    from cowest.types import Message, ModelRef, PreferencePair

    section = SftConfig if kind == "sft" else AlignConfig
    settings = section.model_validate(
        {
            "batch_size": batch, "max_steps": steps, "dtype": dtype, "device": "cpu", "warmup_steps": 0,
            "learning_rate": RATE, "checkpoint_every": 10_001, "max_length": 2048,
        }
    )  # fmt: skip
    ref = ModelRef(base=str(model))
    tokenizer, loaded = load_tokenizer(ref), load_for_training(ref, settings)
    prompts = [(Message(role="user", content=e["prompt"]),) for e in examples]
    end = taught_end(
        loaded, tokenizer, settings, list(zip(prompts, (e["chosen"] for e in examples), strict=True)), "", kind
    )
    ours_sft: Any = LeanSftTrainer  # Any: methods of these are replaced
    ours_dpo: Any = PairTrainer
    classes: tuple[Any, ...] = (ours_sft, SFTTrainer, ours_dpo, DPOTrainer)
    for one in classes:
        one._get_train_sampler = lambda self, dataset=None: SequentialSampler(dataset or self.train_dataset)
    if side == "ours":
        keep_freed_memory()
    if kind == "sft":
        told = [SftRow(prompt=p, completion=e["chosen"]) for p, e in zip(prompts, examples, strict=True)]
        data, _ = tokenize(tokenizer, told, settings.max_length, str(model), end)
        tokens = sum(len(row["input_ids"]) for row in data)
        if side == "trl":
            ours_sft.compute_loss = SFTTrainer.compute_loss
        make: Callable[..., Any] = lean_trainer
    else:
        pairs = [
            PreferencePair(
                example_id=str(i), prompt=p, chosen=(Message(role="assistant", content=e["chosen"]),),
                rejected=(Message(role="assistant", content=e["rejected"]),), chosen_gain=1.0, rejected_gain=0.0,
            )
            for i, (p, e) in enumerate(zip(prompts, examples, strict=True))
        ]  # fmt: skip
        data, _ = tokenize_pairs(tokenizer, pairs, settings.max_length, str(model), end)
        tokens = sum(2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in data)
        if side == "trl":
            ours_dpo._precompute_ref_logps = DPOTrainer._precompute_ref_logps
        make = pair_trainer

    shape, longest = (
        model_shape(str(model)),
        max(sum(map(len, row.values())) // (2 if kind == "sft" else 1) for row in data),
    )
    made = narrowed(settings, shape, longest, 1 if kind == "sft" else 2) if side == "ours" and shape else settings

    def build() -> Any:
        trainer = make(loaded, new_adapter(ref, settings), data, made, Folder(out), 0, tokenizer, [])
        trainer.args.logging_steps = 1
        if side == "ours" and dtype == "bfloat16":
            share_inputs(trainer.model)
        return trainer

    return build, tokens


def told(found: Comparison) -> Iterator[str]:
    """A comparison for people."""
    for run in (found.ours, found.trl):
        yield (
            f"{found.kind} {found.dtype} {run.side:4}: {run.tokens / run.seconds:6.0f} tokens/s, processor {run.user_s:.1f} s and "
            f"{run.kernel_s:.1f} s in the kernel, {run.peak_gib:.2f} GiB, losses {[round(x, 4) for x in run.losses]}"
        )
    yield (
        f"{found.kind} {found.dtype}: {found.speed:.2f} times TRL's tokens/s ({found.speed_of_processor_time:.2f} by processor "
        f"time), {found.memory:.2f} of its memory, losses within {found.loss_difference:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=Path, required=True, help="JSONL: prompt, chosen, rejected")
    parser.add_argument(
        "--one", nargs=2, metavar=("KIND", "SIDE"), help="one run, in this process: sft or dpo, ours or trl"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    if given.one is not None:
        kind, side = given.one
        print(
            json.dumps(asdict(train_once(given.model, given.rows, kind, side, given.dtype, given.batch, given.steps)))
        )
        return
    kinds: tuple[Kind, ...] = ("sft", "dpo")
    for kind in kinds:
        batch = given.batch if kind == "sft" else max(1, given.batch // 2)
        for line in told(compare(given.model, given.rows, kind, given.dtype, batch, given.steps, given.runs)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
