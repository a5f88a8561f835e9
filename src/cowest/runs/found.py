"""Which runs lie under a folder, and how each stands. Cheap: no model, no data, no predictions are read, only small files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from cowest.errors import CowestError
from cowest.ledger.summary import summarise_ledger
from cowest.results import MetricValue, Results
from cowest.run.live import Live, read_live, working
from cowest.run.manifest import Manifest
from cowest.types import Record

State = Literal["running", "done", "stopped", "failed", "damaged", "not begun"]
_SKIPPED = {"sft", "align", "predictions", "rows", "guard", "data"}
_DEEPEST = 3  # a table's unit, point of the grid, variant


class Score(Record):
    """A system's mean of its task's first metric, as a fraction, with its 95% interval."""

    system: str
    metric: str
    value: MetricValue


class Found(Record):
    """A run or a table as its folder says it is.

    ``why`` says more of a state that is not good. ``task`` and the models are as the recipe calls them. ``scores`` by task ('' is
    the only one). ``usd`` is what was paid, None where nothing had a price; ``calls`` paid ones. ``stage`` and ``live`` are of now,
    or of when it was stopped. ``changed``: seconds since 1970. ``bytes``: what the folder takes on disk.
    """

    path: str
    name: str
    kind: Literal["run", "table"]
    state: State
    why: str = ""
    task: str = ""
    weak: str = ""
    strong: str = ""
    seed: int | None = None
    scores: Mapping[str, Sequence[Score]] = {}
    usd: float | None = None
    calls: int = 0
    budget_usd: float | None = None
    stage: str = ""
    live: Sequence[Live] = ()
    changed: float = 0.0
    bytes: int = 0

    @property
    def main(self) -> Sequence[tuple[str, Score]]:
        """(task, score) of the aligned collaboration in each task, or of what comes nearest to it."""
        order = ("collab_aligned", "collab")
        best = []
        for task, scores in self.scores.items():
            named = {score.system: score for score in scores}
            first = next((named[name] for name in order if name in named), None)
            if first is not None or scores:
                best.append((task, first or scores[-1]))
        return best


def runs_in(folder: Path) -> list[Path]:
    """The run and table directories under ``folder``, by name, or it alone where it is one; not those inside another."""
    if (folder / "recipe.yaml").is_file() and _has_run(folder):
        return [folder]
    found: list[Path] = []
    with suppress(OSError):
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            if entry.is_dir(follow_symlinks=True) and not entry.name.startswith("."):
                inner = Path(entry.path)
                found += [inner] if _is_run(inner) else _below(inner)
    return found


def _below(folder: Path) -> list[Path]:
    """Runs of a folder that keeps several, one level down."""
    with suppress(OSError):
        return [
            Path(e.path)
            for e in sorted(os.scandir(folder), key=lambda e: e.name)
            if e.is_dir() and _is_run(Path(e.path))
        ]
    return []


def _is_run(folder: Path) -> bool:
    return _has_run(folder) or (folder / "live.json").is_file()


def _has_run(folder: Path) -> bool:
    names = ("manifest.json", "live.json", "summary.json", "results.json", "ledger.sqlite", "answers.sqlite", "run.log")
    return (folder / "recipe.yaml").is_file() and (
        any((folder / name).is_file() for name in names) or next(manifests_in(folder), None) is not None
    )


def manifests_in(folder: Path, depth: int = 0) -> Iterator[Path]:
    """``manifest.json`` of every task, or of every variant of a table."""
    if (folder / "manifest.json").is_file():
        yield folder / "manifest.json"
        return
    if depth < _DEEPEST:
        with suppress(OSError):
            for entry in sorted(os.scandir(folder), key=lambda e: e.name):
                if (
                    entry.is_dir(follow_symlinks=False)
                    and entry.name not in _SKIPPED
                    and not entry.name.startswith(".")
                ):
                    yield from manifests_in(Path(entry.path), depth + 1)


def found(path: Path, size: bool = True) -> Found:
    """How the run in ``path`` stands. Never raises: what cannot be read is a state of its own."""
    try:
        return _found(path, size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError, CowestError) as error:
        return Found(
            path=str(path), name=path.name, kind="run", state="damaged", why=_line(error), changed=_changed(path)
        )


def _found(path: Path, size: bool) -> Found:
    recipe = _recipe(path)
    manifests = {file.parent: Manifest.model_validate_json(file.read_bytes()) for file in manifests_in(path)}
    table = _is_table(path, manifests)
    scores = _table_scores(path) if table else _scores(path, manifests)
    lives = [live for folder in _folders(path, manifests) if (live := read_live(folder)) is not None]
    state, why = _state(path, recipe, manifests, lives, table)
    usd, calls = _paid(path, recipe)
    running = [
        f"{_told(path, folder)}{name}"
        for folder, m in manifests.items()
        for name, s in m.stages.items()
        if s.status == "running"
    ]
    return Found(
        path=str(path),
        name=str(recipe.get("name", path.name)),
        kind="table" if table else "run",
        state=state,
        why=why,
        task=", ".join(_tasks(recipe)),
        weak=_model(recipe.get("weak")),
        strong=_model(recipe.get("strong")),
        seed=recipe.get("seed"),
        scores=scores,
        usd=usd,
        calls=calls,
        budget_usd=recipe.get("budget_usd"),
        stage=", ".join(running),
        live=lives,
        changed=_changed(path),
        bytes=disk_bytes(path) if size else 0,
    )


def _recipe(path: Path) -> Mapping[str, Any]:
    if not (path / "recipe.yaml").is_file():
        return {}  # a table that was stopped in its first unit, or a run that has only just begun
    read = yaml.load(
        (path / "recipe.yaml").read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    if not isinstance(read, dict):
        raise ValueError(f"{path / 'recipe.yaml'}: not a recipe")
    return read


def _is_table(path: Path, manifests: Mapping[Path, Manifest]) -> bool:
    return (path / "table.md").is_file() or any(len(folder.relative_to(path).parts) > 1 for folder in manifests)


def _folders(path: Path, manifests: Mapping[Path, Manifest]) -> list[Path]:
    """Where a process may say how far it is: the run, and its tasks or units."""
    return list(
        dict.fromkeys([path, *(path / folder.relative_to(path).parts[0] for folder in manifests if folder != path)])
    )


def _told(path: Path, folder: Path) -> str:
    parts = folder.relative_to(path).parts
    return f"{'/'.join(parts)} " if parts else ""


def _state(
    path: Path, recipe: Mapping[str, Any], manifests: Mapping[Path, Manifest], lives: Sequence[Live], table: bool
) -> tuple[State, str]:
    if any(working(folder) for folder in _folders(path, manifests)):
        return "running", ""
    last = max(lives, key=lambda live: live.updated, default=None)
    if last is not None and last.ended in ("failed", "budget"):
        return (
            ("failed", last.error or "")
            if last.ended == "failed"
            else ("stopped", last.error or "the budget is reached")
        )
    if _finished(path, recipe, manifests, table):
        return "done", ""
    if last is not None and last.ended is None:
        return "stopped", f"its process {last.pid} is gone"
    if not manifests:
        return "not begun", ""
    return "stopped", ""


def _finished(path: Path, recipe: Mapping[str, Any], manifests: Mapping[Path, Manifest], table: bool) -> bool:
    if any(stage.status == "running" for m in manifests.values() for stage in m.stages.values()):
        return False
    if table:
        return (path / "table.md").is_file()
    expected = [path / name for name in recipe.get("tasks") or {}] or [path]
    return all(folder in manifests and "evaluate" in manifests[folder].stages for folder in expected)


def _scores(path: Path, manifests: Mapping[Path, Manifest]) -> dict[str, list[Score]]:
    scores = {}
    for folder in manifests:
        file = folder / "results.json"
        if file.is_file():
            results = Results.model_validate_json(file.read_bytes())
            scores["/".join(folder.relative_to(path).parts)] = [
                Score(system=name, metric=metric, value=value)
                for name, system in results.systems.items()
                for metric, value in list(system.metrics.items())[:1]
            ]
    return scores


def _table_scores(path: Path) -> dict[str, list[Score]]:
    file = path / "results.json"
    if not file.is_file():
        return {}
    return {
        " ".join(filter(None, (table["task"], table["label"]))): [
            Score(system=name, metric=metric, value=MetricValue.model_validate(row["metrics"][metric]))
            for name, row in table["rows"].items()
            for metric in table["metrics"][:1]
        ]
        for table in json.loads(file.read_bytes())["tables"]  # its class brings all that makes tables
    }


def _paid(path: Path, recipe: Mapping[str, Any]) -> tuple[float | None, int]:
    ledger, name = path / "ledger.sqlite", None
    if recipe.get("ledger"):
        ledger, name = Path(recipe["ledger"]), recipe.get("name")  # shared with other runs
        ledger = ledger if ledger.is_absolute() else path / ledger
    if not ledger.is_file():
        return None, 0
    try:
        bill = summarise_ledger(ledger, name)
    except CowestError:  # damaged, or just being made
        return None, 0
    return bill.cost_usd, bill.paid_calls


def _tasks(recipe: Mapping[str, Any]) -> list[str]:
    return list(recipe.get("tasks") or {}) or ([_task(recipe["task"])] if isinstance(recipe.get("task"), dict) else [])


def _task(task: Mapping[str, Any]) -> str:
    return str(task.get("domain") or task.get("name") or task.get("kind") or "")


def _model(section: object) -> str:
    return (
        str(section.get("model") or section.get("name") or section.get("kind") or "")
        if isinstance(section, dict)
        else ""
    )


_TELLING = ("live.json", "results.json", "recipe.yaml", "manifest.json", "run.log")


def _changed(path: Path) -> float:
    """By what runs write: a reader of the ledger leaves traces in the folder, too."""
    newest = 0.0
    for file in (*(path / name for name in _TELLING), *manifests_in(path)):
        with suppress(OSError):
            newest = max(newest, file.stat().st_mtime)
    return newest


def disk_bytes(path: Path) -> int:
    """What the files under ``path`` take on disk; a file that has several names is counted once, links are not followed."""
    total, seen = 0, set[tuple[int, int]]()
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                stat = os.lstat(os.path.join(folder, name))
                if (stat.st_dev, stat.st_ino) not in seen:
                    seen.add((stat.st_dev, stat.st_ino))
                    total += stat.st_size
    return total


def _line(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        return f"{error.title}: {error.error_count()} problems"
    return " ".join(str(error).split())[:200]


def ago(seconds: float) -> str:
    """A time since 1970 as people say it: '3 min ago', '2026-11-26'."""
    passed = time.time() - seconds
    for limit, unit, word in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if passed < limit:
            return f"{max(0, passed) / unit:.0f} {word} ago"
    return time.strftime("%Y-%m-%d", time.localtime(seconds))
