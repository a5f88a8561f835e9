"""Run every benchmark: ``python -m benchmarks``; each prints its own table."""

from __future__ import annotations

import os
import subprocess
import sys

from cowest.assembly.places import model_path

COMMANDS = (
    ["benchmarks.demo"],
    ["benchmarks.drafting", "--model", model_path("lab:weak"), "--prompts", "128"],
    *([["benchmarks.retrieval"]] if "COWEST_DATA_DIR" in os.environ else []),  # it needs PubMedQA's file
    ["benchmarks.table_sharing"],
    ["benchmarks.throughput"],
)

if __name__ == "__main__":
    for command in COMMANDS:
        print(f"\n== python -m {' '.join(command[:1])}", flush=True)
        subprocess.run([sys.executable, "-m", *command], check=True)
