"""Engines on really pretrained models and PubMedQA's prompts: tokens/s of each, as ratios, beside what the processor can do.

    python -m benchmarks.real                                       both models, every engine that is here, and the trainings
    python -m benchmarks.real --only ours,generate --model smollm2-135m --queries 4 --tokens 16
    python -m benchmarks.real --runs 3 --json real.json             three interleaved rounds; medians

Two loads: ``unique``, one prompt a query; ``shared``, five for each of as many other queries (the strong model alone, and four
drafts to refine), which share instruction, abstract and question. A rate is new tokens a second, the reading of the prompts
included; every engine decodes greedily up to ``--tokens`` and stops where the model does. Each engine runs in a process of its
own, one after another, so that memory is freed.

  ours       LocalChatModel, as a recipe without further settings has it (``dtype: auto``)
  generate   transformers' model.generate in the same dtype, at the best of its batch sizes
  vllm       vLLM's server as its own command starts it, with prefix caching ($COWEST_VLLM_PYTHON: the Python that has it)
  managed    the same server, started by us, as ``engine: vllm`` does
  llamacpp   llama.cpp's server on the GGUF file ($COWEST_LLAMACPP_PYTHON: the Python that has xllamacpp)
  train      SFT and DPO of the smaller model against stock TRL: tokens/s, peak memory, losses (benchmarks/real_training.py)

COWEST_MODELS_DIR holds the models (GGUF), COWEST_DATA_DIR the folder pubmedqa. What is missing is said in a line. Other work on the
machine spoils absolute numbers and, less so, ratios: final figures want a quiet machine and ``--runs 3``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.real_engines import ENGINES, processor_limit
from cowest.assembly.places import model_path, model_source
from cowest.collaboration.prompts import DefaultFrames
from cowest.recipe.config import PubmedqaTaskConfig
from cowest.tasks.pubmedqa import load_pubmedqa
from cowest.types import Message

MODELS = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "qwen2.5-coder-1.5b": "Qwen/Qwen2.5-Coder-1.5B-Instruct",
}
TRAINED, TRAINING_ROWS = "smollm2-135m", 32
GOALS = {"unique": 1.5, "shared": 3.0}  # of ours over generate
PART_S = 3600  # for one engine on one model


def prompts(data: Path, queries: int) -> tuple[list[list[Message]], list[list[Message]]]:
    """One prompt a query; and five of each of as many other queries, which share what comes before the draft."""
    task = load_pubmedqa(PubmedqaTaskConfig(kind="pubmedqa", path=data / "pubmedqa"))
    frames = DefaultFrames(task.instruction)
    examples = list(task.examples("train"))[: 2 * queries]
    unique = [list(frames.solo(example)) for example in examples[:queries]]
    shared = []
    for n, example in enumerate(examples[queries:]):
        said = (example.rationale or "It is not known.").split(". ")
        drafts = [f"{'. '.join(said[: k + 1])}. Answer: {('yes', 'no', 'maybe', 'yes')[(n + k) % 4]}" for k in range(4)]
        shared += [list(frames.solo(example)), *(list(frames.refine(example, draft)) for draft in drafts)]
    return unique, shared


def measured(engine: str, work: dict[str, Any]) -> dict[str, Any]:
    """Run one engine in a process of its own. What it printed, or why there is nothing."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(work, file)
        file.flush()
        command = [sys.executable, "-m", "benchmarks.real_engines", engine, file.name]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PART_S, cwd=Path(__file__).parent.parent
            )
        except subprocess.TimeoutExpired:
            return {"missing": f"not done in {PART_S // 60} minutes"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    said = done.stderr.strip().splitlines()
    return {"missing": said[-1] if said else f"ended with exit code {done.returncode}"}


def table(model: str, rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Print medians and ratios of one model's rounds; returns what was printed."""
    rows: dict[str, Any] = {}
    print(f"\n{model}: new tokens/s (and / generate); seconds")
    print(f"{'engine':<10}{'unique':>20}{'shared prefixes':>22}   note")
    rates: dict[str, dict[str, float]] = {}
    for engine, runs in rounds.items():
        good = [run for run in runs if "missing" not in run]
        if not good:
            print(f"{engine:<10} not measured: {runs[-1]['missing']}")
            rows[engine] = runs[-1]
            continue
        rates[engine] = {
            part: statistics.median(run[part]["tokens"] / run[part]["seconds"] for run in good) for part in GOALS
        }
        rows[engine] = {"tokens_per_s": rates[engine], "runs": good}
    for engine, rate in rates.items():
        cells = []
        for part in GOALS:
            ratio = f"{rate[part] / rates['generate'][part]:.2f}x" if "generate" in rates else ""
            took = statistics.median(run[part]["seconds"] for run in rows[engine]["runs"])
            cells.append(f"{rate[part]:>8.1f} {ratio:>6} {took:>4.0f}s")
        print(f"{engine:<10}{cells[0]:>20}{cells[1]:>22}   {rows[engine]['runs'][-1].get('note', '')}")
    _goals(rates)
    if {
        "ours",
        "generate",
    } <= rates.keys():  # both compute in their own process: what other work takes from them is not counted
        work = {
            e: [statistics.median(r[part]["cpu_seconds"] for r in rows[e]["runs"]) for part in GOALS]
            for e in ("ours", "generate")
        }
        print(
            "CPU time, generate / ours: "
            + ", ".join(f"{p} {g / o:.2f}x" for p, o, g in zip(GOALS, *work.values(), strict=True))
        )
    return rows


def _goals(rates: dict[str, dict[str, float]]) -> None:
    if {"ours", "generate"} <= rates.keys():
        for part, goal in GOALS.items():
            ratio = rates["ours"][part] / rates["generate"][part]
            print(
                f"goal, {part}: ours >= {goal:g}x generate: {ratio:.2f}x, {'reached' if ratio >= goal else 'NOT reached'}"
            )
    if {"vllm", "managed"} <= rates.keys():
        for part in GOALS:
            ratio = rates["vllm"][part] / rates["managed"][part]
            print(
                f"goal, {part}: managed within 1.05x of bare: {ratio:.2f}x, {'reached' if ratio <= 1.05 else 'NOT reached'}"
            )


def training_rows(data: Path, count: int) -> list[dict[str, str]]:
    """Questions as a weak model reads them; their own long answers are chosen, the next question's rejected."""
    task = load_pubmedqa(PubmedqaTaskConfig(kind="pubmedqa", path=data / "pubmedqa"))
    frames, examples = DefaultFrames(task.instruction), list(task.examples("train"))[: count + 1]
    answers = [task.target(example) for example in examples]
    return [
        {"prompt": "\n\n".join(m.content for m in frames.draft(e)), "chosen": answers[i], "rejected": answers[i + 1]}
        for i, e in enumerate(examples[:count])
    ]


def trainings(model: str, rows: Sequence[dict[str, str]], runs: int) -> dict[str, Any]:
    """Print what benchmarks.real_training finds for one model; returns its lines."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
        file.flush()
        command = [
            sys.executable, "-m", "benchmarks.real_training", model_path(model), "--rows", file.name, "--runs", str(runs),
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    said = done.stdout.strip().splitlines()
    print("\n".join(said) if done.returncode == 0 else f"train: not measured: {done.stderr.strip().splitlines()[-1]}")
    return {"rc": done.returncode, "said": said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join([*ENGINES, "train"]), help="engines, with commas between them")
    parser.add_argument(
        "--model", default=",".join(MODELS), help=f"of {', '.join(MODELS)}, or any model; commas between them"
    )
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48, help="most new tokens a request")
    parser.add_argument("--runs", type=int, default=1, help="interleaved rounds")
    parser.add_argument("--json", type=Path, help="a file for everything that was measured")
    args = parser.parse_args()
    wanted = args.only.split(",")
    if unknown := set(wanted) - {*ENGINES, "train"}:
        parser.error(f"--only: no engine {', '.join(sorted(unknown))}; there are {', '.join([*ENGINES, 'train'])}")
    if "COWEST_DATA_DIR" not in os.environ:
        sys.exit("set COWEST_DATA_DIR to the folder that has pubmedqa with ori_pqal.json and test_ground_truth.json")
    data = Path(os.environ["COWEST_DATA_DIR"])
    unique, shared = prompts(data, args.queries)
    result: dict[str, Any] = {
        "queries": args.queries,
        "tokens": args.tokens,
        "load_average": os.getloadavg(),
        "models": {},
    }
    result["limit"] = limit = processor_limit()
    print(
        f"{args.queries} queries, {args.tokens} new tokens; load average {os.getloadavg()[0]:.1f}; {limit['note']}",
        flush=True,
    )
    for name in args.model.split(","):
        model = MODELS.get(name, name)
        engines = [engine for engine in wanted if engine != "train"]
        rounds: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
        work = {
            "folder": model_path(model), "source": model_source(model), "tokens": args.tokens,
            "unique": [[m.model_dump() for m in p] for p in unique], "shared": [[m.model_dump() for m in p] for p in shared],
        }  # fmt: skip
        for _ in range(args.runs if engines else 0):
            for engine in engines:
                rounds[engine].append(measured(engine, work))
                print(f"  {name} {engine}: {json.dumps(rounds[engine][-1])}", file=sys.stderr, flush=True)
        found = table(name, rounds) if engines else {}
        if "train" in wanted and name == TRAINED:
            print(f"\n{name}: trainings", flush=True)
            found["train"] = trainings(model, training_rows(data, TRAINING_ROWS), args.runs)
        result["models"][name] = found
        ours = found.get("ours", {}).get("runs")
        if ours:
            reached = statistics.median(run["prefill_flops"] for run in ours)
            print(
                f"reading prompts: {reached / 1e9:.0f} GFLOP/s, {reached / limit['flops']:.0%} of the processor's matrix product"
            )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
