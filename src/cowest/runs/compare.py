"""Two runs or more on the same queries: paired differences, the settings in which they differ, what each has paid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import JsonValue

from cowest.errors import ConfigError, DataError
from cowest.results import Comparison, MetricValue
from cowest.run.store import JsonlFile
from cowest.runs.found import Found, found, runs_in
from cowest.scoring.metrics import get_metric
from cowest.scoring.statistics import Outcome, compare, summarise
from cowest.stages.reporting import read_results
from cowest.types import Prediction, Record


class Side(Record):
    """One run's system on a task: its mean over all of its queries, and over those that it shares with the first run."""

    run: str
    system: str
    whole: MetricValue
    shared: MetricValue


class TaskComparison(Record):
    """The runs on one task's common queries, each against the first. ``only``: how many of each run's are not common."""

    task: str
    metric: str
    n: int
    only: Mapping[str, int]
    sides: Sequence[Side]
    differences: Sequence[Comparison]


class RunComparison(Record):
    """``settings``: by dotted key the value in each run, where they differ."""

    runs: Sequence[Found]
    tasks: Sequence[TaskComparison]
    settings: Mapping[str, Mapping[str, JsonValue]]


def compare_runs(paths: Sequence[Path], system: str | None = None) -> RunComparison:
    """Compare runs with the first of them, on the tasks and queries that all have.

    ``system``: of which the answers are compared; unset, in each run the aligned collaboration, or what comes nearest to it.
    Raises ConfigError for a folder that is no run, DataError for runs that have no task, metric or query in common.
    """
    if len(paths) < 2:
        raise ConfigError("name two runs or more; the others are compared with the first")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("a run is named twice; there is nothing to compare it with but itself")
    runs = [_run(path) for path in paths]
    names = _names(runs)
    tasks = _common([set(run.scores) for run in runs])
    if not tasks:
        told = "; ".join(
            f"{name}: {', '.join(t or run.task for t in run.scores) or run.state}" for name, run in names.items()
        )
        raise DataError(f"these runs have no task in common that has been evaluated ({told})")
    compared = [_task(names, task, system, runs[0].seed or 0) for task in tasks]
    return RunComparison(runs=runs, tasks=compared, settings=_settings(names))


def _run(path: Path) -> Found:
    if runs_in(path) != [path]:
        raise ConfigError(
            f"{path} is no run directory: it has no recipe.yaml with what it made beside it; `cowest runs` lists them"
        )
    run = found(path, size=False)
    if run.kind == "table":
        raise ConfigError(
            f"{path} is a table, which compares its rows itself ({path / 'table.md'}); name runs, or one of its variants"
        )
    if run.state == "damaged":
        raise DataError(f"{path}: {run.why}")
    return run


def _names(runs: Sequence[Found]) -> dict[str, Found]:
    """By folder name; by path where two are alike."""
    short = [Path(run.path).name for run in runs]
    return {(run.path if short.count(name) > 1 else name): run for name, run in zip(short, runs, strict=True)}


def _common(sets: Sequence[set[str]]) -> list[str]:
    return sorted(set.intersection(*sets))


def _task(names: Mapping[str, Found], task: str, system: str | None, seed: int) -> TaskComparison:
    metric = _metric(names, task)
    chosen = {name: _system(run, task, system) for name, run in names.items()}
    outcomes = {name: _outcomes(Path(run.path) / task, chosen[name], run) for name, run in names.items()}
    ids = _common([{o.example_id for o in rows} for rows in outcomes.values()])
    if not ids:
        raise DataError(f"{task or 'these runs'}: no query is in all of them; they were evaluated on other questions")
    common = frozenset(ids)
    _same_references(outcomes, common)
    kept = {name: [o for o in rows if o.example_id in common] for name, rows in outcomes.items()}
    labels = sorted({label for rows in kept.values() for o in rows for label in o.references})
    sides = [
        Side(
            run=name,
            system=chosen[name],
            whole=next(s.value for s in run.scores[task] if s.system == chosen[name]),
            shared=summarise([metric], labels, kept[name], seed)[metric],
        )
        for name, run in names.items()
    ]
    first, *others = names
    differences = [c for name in others for c in compare(metric, labels, name, kept[name], first, kept[first], seed)]
    only = {name: len(rows) - len(ids) for name, rows in outcomes.items()}
    return TaskComparison(task=task, metric=metric, n=len(ids), only=only, sides=sides, differences=differences)


def _metric(names: Mapping[str, Found], task: str) -> str:
    metrics = {name: run.scores[task][0].metric for name, run in names.items()}
    if len(set(metrics.values())) > 1:
        told = ", ".join(f"{name}: {metric}" for name, metric in metrics.items())
        raise DataError(f"{task or 'these runs'}: they are measured otherwise ({told}), and cannot be compared")
    metric = next(iter(metrics.values()))
    get_metric(metric)  # one of an installed package has to be there
    return metric


def _system(run: Found, task: str, system: str | None) -> str:
    there = [score.system for score in run.scores[task]]
    if system is None:
        return dict(run.main)[task].system
    if system not in there:
        raise ConfigError(f"{run.path}: no system {system!r}; it has {', '.join(there)}")
    return system


def _outcomes(folder: Path, system: str, run: Found) -> list[Outcome]:
    file = next(
        (f for f in (folder / f"predictions/{system}.jsonl", folder / f"guard/rows/{system}.jsonl") if f.is_file()),
        None,
    )
    if file is None:
        raise DataError(
            f"{folder}: the answers of {system} are gone (predictions/{system}.jsonl); `cowest run` makes them again"
        )
    rows = JsonlFile(file, Prediction).load()
    if rows and all(row.references is None for row in rows):
        return _read_anew(folder, run, rows)
    return [_outcome(row) for row in rows]


def _outcome(row: Prediction) -> Outcome:
    cut = row.truncated and row.answer is None
    failed = row.text is None and not cut
    return Outcome(
        example_id=row.example_id, answer=row.answer, references=row.references or (), failed=failed, cut=cut
    )


def _read_anew(folder: Path, run: Found, rows: Sequence[Prediction]) -> list[Outcome]:
    """Of a run by an older version, whose files have texts alone: the answers are read out of them, which wants its data."""
    from cowest.assembly.prepare import prepare  # brings the whole of a run
    from cowest.recipe.kept import kept_recipe
    from cowest.run.progress import QuietReporter
    from cowest.stages.answers import outcomes_of
    from cowest.stages.evaluate import test_queries

    results = read_results(folder / "results.json")
    contexts = prepare(kept_recipe(Path(run.path)), Path(run.path), QuietReporter(), offline=True)
    context = next(c for c in contexts if c.run.path == folder)
    by_id = {e.id: e for e in test_queries(context)}
    if any(not example.references for example in by_id.values()):
        raise DataError(f"{folder}: {results.task} was told by judges, by whom queries of two runs cannot be compared")
    known = [row for row in rows if row.example_id in by_id]
    return outcomes_of(context.task, [by_id[row.example_id] for row in known], known)


def _same_references(outcomes: Mapping[str, Sequence[Outcome]], ids: frozenset[str]) -> None:
    """A query that is called the same has to be the same."""
    seen: dict[str, tuple[str, ...]] = {}
    for name, rows in outcomes.items():
        for row in rows:
            if row.example_id in ids and seen.setdefault(row.example_id, row.references) != row.references:
                raise DataError(
                    f"{name}: query {row.example_id} has other references than in the first run: other data under one name"
                )


_PLACES = frozenset({"name", "ledger"})


def _settings(names: Mapping[str, Found]) -> dict[str, dict[str, JsonValue]]:
    flat = {name: dict(_flat(_recipe(Path(run.path)))) for name, run in names.items()}
    keys = sorted({key for settings in flat.values() for key in settings})
    told = {key: {name: settings.get(key) for name, settings in flat.items()} for key in keys}
    return {
        key: values
        for key, values in told.items()
        if key not in _PLACES and any(value != next(iter(values.values())) for value in values.values())
    }


def _recipe(path: Path) -> Mapping[str, Any]:
    read = yaml.safe_load((path / "recipe.yaml").read_text(encoding="utf-8"))
    return read if isinstance(read, dict) else {}


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, JsonValue]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
