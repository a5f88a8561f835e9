"""What the demo's stages take: seconds, drafts/s, strong calls/s, training samples/s, peak memory.

    python -m benchmarks.demo [--domain medicine] [--seed 11] [--json]

Runs one domain of recipes/lab.yaml from nothing in a temporary folder, in a process of its own, and reads the manifest.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from cowest.recipe.shipped import packaged_recipe
from cowest.run.store import RunDir


def measure(domain: str, seed: int) -> dict[str, float]:
    """Run the domain once; rates are per second of the stage's wall time, model loading included."""
    recipe = yaml.safe_load(packaged_recipe("lab").read_text(encoding="utf-8"))
    recipe |= {"name": "bench", "seed": seed, "task": recipe.pop("tasks")[domain]}
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "bench.yaml", Path(folder) / "run"
        file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "cowest", "run", str(file), "--out", str(out)], check=True, stdout=subprocess.DEVNULL
        )
        wall = time.monotonic() - began
        stages = RunDir(out).manifest().stages
        sft = json.loads((out / "sft" / "summary.json").read_text(encoding="utf-8"))
        samples = sft["steps"] * recipe["sft"]["batch_size"]
    feedback = stages["feedback"]
    calls = feedback.counts["solo"] + feedback.counts["refined"] - feedback.counts["refined_by_shared_draft"]
    return {f"{name}_s": entry.seconds for name, entry in stages.items()} | {
        "whole_process_s": round(wall, 1),
        "sft_samples_per_s": round(samples / stages["sft"].seconds, 1),
        "drafts_per_s": round(stages["sample"].counts["drafts"] / stages["sample"].seconds, 1),
        "strong_calls_per_s": round(calls / feedback.seconds, 1),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", default="medicine")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.domain, args.seed)
    if args.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:<20} {value:>10}")


if __name__ == "__main__":
    main()
