"""``cowest import`` beside pandas and datasets on the same work: read CSV, split without leaks, write three JSONL files.

    python -m benchmarks.importing [--rows 10000,100000,1000000] [--only ours,pandas,datasets]

Each is a process of its own, one after another in the same run; CPU time (imports included) and peak memory are the process's.
The others do less: equal questions together, classes alike; near-equal ones, ids, checks of every row and the recipe are ours.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORKERS = ("ours", "pandas", "datasets")


def make(path: Path, rows: int) -> None:
    """A CSV file with a question of 12 words, a context of 30, an answer out of three; one in fifty asked again."""
    random.seed(0)
    words = [f"w{i:05}" for i in range(20_000)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "question", "context", "label"))
        last: tuple[str, str] = ("", "")
        for i in range(rows):
            asked = " ".join(random.choices(words, k=12)), " ".join(random.choices(words, k=30))
            last = asked if i == 0 or random.random() > 0.02 else last
            writer.writerow((i, *last, random.choice(("yes", "no", "maybe"))))


def ours(source: Path, out: Path) -> None:
    from cowest.importing.importer import import_data

    import_data(source, out)


def pandas(source: Path, out: Path) -> None:
    """Groups shuffled by sample, 80 / 10 / 10 of each label's groups."""
    import pandas as pd

    rows = pd.read_csv(source)
    key = pd.factorize(rows["question"] + "\n" + rows["context"])[0]
    rows = rows.rename(columns={"question": "input", "label": "answer"})
    group = rows.assign(group=key).drop_duplicates("group")[["group", "answer"]].sample(frac=1, random_state=0)
    at = group.groupby("answer").cumcount() / group.groupby("answer")["group"].transform("size")
    side = pd.cut(at, [-1, 0.8, 0.9, 1], right=False, labels=False)
    rows["side"] = pd.Series(key).map(dict(zip(group["group"], side, strict=True))).to_numpy()
    for s, split in enumerate(("train", "validation", "test")):
        some = rows[rows["side"] == s].drop(columns="side")
        some.to_json(out / f"{split}.jsonl", orient="records", lines=True, force_ascii=False)


def datasets(source: Path, out: Path) -> None:
    """By ``load_dataset`` and ``train_test_split``, which keeps no groups, so equal questions are left out."""
    from datasets import load_dataset

    rows = load_dataset("csv", data_files=str(source), split="train", cache_dir=str(out / "cache"))
    seen: set[int] = set()

    def first(question: str, context: str) -> bool:
        key = hash((question, context))
        new = key not in seen
        seen.add(key)
        return new

    rows = rows.filter(first, input_columns=["question", "context"])
    rows = rows.rename_columns({"question": "input", "label": "answer"}).class_encode_column("answer")
    parts = rows.train_test_split(test_size=0.2, seed=0, stratify_by_column="answer")
    held = parts["test"].train_test_split(test_size=0.5, seed=0, stratify_by_column="answer")
    for split, part in (("train", parts["train"]), ("validation", held["train"]), ("test", held["test"])):
        part.to_json(out / f"{split}.jsonl", force_ascii=False)


def work(name: str, source: Path, out: Path) -> None:
    import resource

    began = time.perf_counter()
    {"ours": ours, "pandas": pandas, "datasets": datasets}[name](source, out)
    wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    written = sum(sum(1 for _ in (out / f"{s}.jsonl").open("rb")) for s in ("train", "validation", "test"))
    print(
        json.dumps(
            {
                "seconds": wall,
                "cpu": used.ru_utime + used.ru_stime,
                "peak_mib": used.ru_maxrss / 1024,
                "written": written,
            }
        )
    )


def measure(name: str, source: Path, folder: Path) -> dict[str, float]:
    out = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", "benchmarks.importing", "--work", name, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--only", default=",".join(WORKERS))
    parser.add_argument("--work", nargs=3, metavar=("NAME", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work[0], Path(given.work[1]), Path(given.work[2]))
        return
    print(f"{'rows':>9}  {'who':<9} {'seconds':>8} {'CPU s':>8} {'rows/CPU s':>10} {'peak MiB':>9} {'CPU to ours':>11}")
    for rows in map(int, given.rows.split(",")):
        with tempfile.TemporaryDirectory() as name:
            source = Path(name) / "rows.csv"
            make(source, rows)
            base = 0.0
            for who in given.only.split(","):
                found = measure(who, source, Path(name))
                base = base or found["cpu"]
                print(
                    f"{rows:>9}  {who:<9} {found['seconds']:>8.1f} {found['cpu']:>8.1f} {rows / found['cpu']:>10.0f} "
                    f"{found['peak_mib']:>9.0f} {found['cpu'] / base:>11.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
