"""The test queries of a finished run as JSON lines, for other evaluation tools; and whether these agree with ``cowest run``.

    python queries.py export runs/lab medicine > queries.jsonl
    python queries.py compare runs/lab medicine collab_aligned inspect-logs lm-eval-out

``compare`` takes the system of ``cowest run`` that was served, and folders of Inspect's logs (``--log-format json``) and of
lm-eval's samples (``--log_samples``). A recipe with one task has ``""`` for the domain.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from cowest.assembly.build import build_task
from cowest.recipe.kept import kept_recipe
from cowest.run.store import JsonlFile
from cowest.types import Prediction


def export(run: Path, domain: str) -> None:
    """One line a query: id, input, target."""
    task = build_task(kept_recipe(run).by_task()[domain], domain)
    for example in task.examples("test"):
        print(json.dumps({"id": example.id, "input": example.input, "target": example.references[0]}))


def inspect_answers(folder: Path) -> Iterator[tuple[str, str, bool]]:
    """Id, text and verdict of each sample."""
    for log in sorted(folder.glob("*.json")):
        for sample in json.loads(log.read_text())["samples"]:
            verdict = next(iter(sample["scores"].values()))["value"]
            yield sample["id"], sample["output"]["choices"][0]["message"]["content"], verdict == "C"


def lm_eval_answers(folder: Path) -> Iterator[tuple[str, str, bool]]:
    """The same."""
    for log in sorted(folder.rglob("samples_*.jsonl")):
        for line in log.read_text().splitlines():
            sample = json.loads(line)
            yield sample["doc"]["id"], sample["resps"][0][0], sample["exact_match"] == 1.0


def compare(run: Path, domain: str, system: str, inspect: Path, lm_eval: Path) -> bool:
    """Print each tool's accuracy beside the run's, and on how many queries text and verdict are the run's own."""
    task = build_task(kept_recipe(run).by_task()[domain], domain)
    results = json.loads((run / domain / "results.json").read_text())
    told = results["systems"][system]["metrics"]["accuracy"]
    mine = {p.example_id: p for p in JsonlFile(run / domain / f"predictions/{system}.jsonl", Prediction).load()}
    right = {e.id: task.extract(mine[e.id].text or "", e) in e.references for e in task.examples("test")}
    print(f"{'cowest run':<12}accuracy {told['mean']:.4f}  n {told['n']}")
    same = True
    for name, answers in (("Inspect", inspect_answers(inspect)), ("lm-eval", lm_eval_answers(lm_eval))):
        rows = list(answers)
        texts = sum(text == mine[id_].text for id_, text, _ in rows)
        verdicts = sum(verdict == right[id_] for id_, _, verdict in rows)
        accuracy = sum(verdict for *_, verdict in rows) / max(1, len(rows))
        print(f"{name:<12}accuracy {accuracy:.4f}  n {len(rows)}  same text {texts}  same verdict {verdicts}")
        same = same and len(rows) == verdicts == told["n"]
    return same


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:] or ["", ""]
    if command == "export" and len(rest) == 1:
        export(Path(folder), rest[0])
    elif command == "compare" and len(rest) == 4:
        sys.exit(0 if compare(Path(folder), rest[0], rest[1], Path(rest[2]), Path(rest[3])) else 1)
    else:
        sys.exit(__doc__)
