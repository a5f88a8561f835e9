"""From run directories to one HTML page: gather the records, hand them to ``cowest.report``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import JsonValue, ValidationError

from cowest.assembly.context import Context
from cowest.errors import DataError, MissingExtraError, StageError
from cowest.recipe.config import LabTaskConfig, RunConfig
from cowest.report.data import (
    AnswerView,
    CheckpointView,
    CurvePoint,
    GuardView,
    JudgingView,
    PipelineCounts,
    QueryView,
    RunReport,
    TaskReport,
    TrainingCurve,
)
from cowest.results import Results
from cowest.run.store import write_atomic
from cowest.scoring.scorer import MetricScorer, cut_score
from cowest.stages.answers import cases_of, outcomes_of, uptake
from cowest.stages.certified import guard_view, outdated
from cowest.stages.comparing import Judging
from cowest.stages.evaluate import compared_name, test_queries
from cowest.stages.learn import learned_from
from cowest.stages.loop import begun, taken
from cowest.stages.preferred import measured, preferred_outcomes
from cowest.stages.rewards import FEEDBACK
from cowest.systems.registry import STRONG
from cowest.training.objectives import as_online
from cowest.types import Feedback, Prediction, Score

_DROPPED = {
    "dropped_failed_draft": "the weak model gave no text",
    "dropped_cut_off_draft": "cut off at draft.sampling.max_tokens while the weak model still thought",
    "dropped_unscored": "no score: the strong model's call failed, or its text was cut off before an answer",
    "dropped_duplicate": "same text as an earlier draft of the query",
    "dropped_over_maximum": "more pairs than pairs.max_per_query",
    "queries_without_contrast": "queries whose drafts all helped alike",
}


def read_results(path: Path) -> Results:
    """``results.json``. Raises StageError when it is not there yet, DataError when it is damaged."""
    if not path.exists():
        raise StageError(f"{path}: not there yet; `cowest run` writes it when the evaluation is done")
    try:
        return Results.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path}: not results of this version ({error.error_count()} problems); delete it and run again"
        ) from None


@dataclass(frozen=True, slots=True)
class Written:
    """Where a run's outputs are, and its results by task ('' is the only task of a recipe)."""

    out: Path
    report: Path
    results: Mapping[str, Results]


async def write_results(config: RunConfig, contexts: Sequence[Context], out: Path) -> Written:
    """Write ``summary.json`` (several tasks) and the report."""
    results = {c.run.path.name if config.tasks else "": _results(c) for c in contexts}
    if config.tasks:
        write_atomic(out / "summary.json", json.dumps(summary_json(config.name, results), indent=2) + "\n")
    notes = ["These are tiny models on synthetic domains: they show the mechanism, not the paper's benchmarks."]
    lab = any(isinstance(c.config.task, LabTaskConfig) for c in contexts)
    return Written(out, await write_report(config, contexts, out, notes if lab else []), results)


def summary_json(name: str, results: Mapping[str, Results]) -> dict[str, JsonValue]:
    """``summary.json``: each task's metrics by system; the whole of it is in TASK/results.json."""
    tasks: dict[str, JsonValue] = {
        task: {
            "results": f"{task}/results.json",
            "systems": {s: {m: v.mean for m, v in r.metrics.items()} for s, r in found.systems.items()},
            "left_out": dict(found.left_out),
        }
        for task, found in results.items()
    }
    return {"schema": 1, "name": name, "tasks": tasks}


async def task_report(context: Context) -> TaskReport:
    """All that the page shows about one task."""
    results = _results(context)
    online = as_online(context.objective) is not None and context.weak.trainable
    gains = [f.gain for f in context.run.file(FEEDBACK if online else "feedback.jsonl", Feedback).load()]
    aligns = (
        context.weak.trainable and learned_from(context.config) is not None
    )  # a folder of an earlier recipe may be there
    found = taken(context) if aligns and context.path("align/selection.json").exists() else None
    chosen, folder = (None, "align") if found is None else (found.selection, found.round_.file("align"))
    trained: tuple[Literal["sft", "align"], ...] = (
        ("sft", "align") if aligns else ("sft",) if context.weak.trainable else ()
    )
    return TaskReport(
        results=results,
        curves=[
            TrainingCurve(stage=s, points=_curve(context.path(folder if s == "align" else s) / "log.jsonl"))
            for s in trained
        ],
        checkpoints=[
            CheckpointView(step=c.step, score=c.score, selected=chosen is not None and c.step == chosen.chosen)
            for c in (chosen.checkpoints if chosen else ())
        ],
        gains=[g for g in gains if g is not None],
        counts=_counts(results),
        judging=_judging(context),
        guard=_guard(context),
        queries=await _queries(context, list(results.systems)),
        main_metric=measured(context, test_queries(context))[0],
    )


def _guard(context: Context) -> GuardView | None:
    """The run's guard, where it is of the models beside which it would stand; where not, that is said."""
    why = outdated(context)
    if why is None:
        return guard_view(context)
    context.reporter.info(
        f"{context.label}the guard is left out of the report: {why}. `cowest guard {context.run.path}` brings it up to date."
    )
    return None


def _judging(context: Context) -> list[JudgingView]:
    """What judges that compare answers came to, round by round; a file of an earlier recipe may be there."""
    if not context.config.feedback.compare:
        return []
    found = []
    for round_ in begun(context):
        file = context.path(round_.file("judging.json"))
        if file.is_file():
            try:
                read = Judging.model_validate_json(file.read_bytes())
            except ValidationError:
                raise DataError(f"{file}: damaged; delete it, and `cowest run` makes it again") from None
            found.append(
                JudgingView.model_validate({**read.model_dump(), "number": round_.number, "metric": context.metric})
            )
    return found


def _results(context: Context) -> Results:
    """``results.json``; what the strong model does with a draft is added to one of a version that did not say it."""
    results = read_results(context.path("results.json"))
    if any(system.uptake is not None for system in results.systems.values()):
        return results
    task, queries, seed = context.task, test_queries(context), context.config.seed
    predictions = {name: context.run.file(f"predictions/{name}.jsonl", Prediction).load() for name in results.systems}
    if any([p.example_id for p in rows] != [e.id for e in queries] for rows in predictions.values()):
        return results  # what is wrong with them is said where they are shown
    found = {name: outcomes_of(task, queries, rows) for name, rows in predictions.items()}
    alone = found.get(STRONG.name)
    systems = {
        name: system.model_copy(
            update={"uptake": uptake(task, cases_of(task, queries, rows, found[name], alone), seed, name)}
        )
        for (name, system), rows in zip(results.systems.items(), predictions.values(), strict=True)
    }
    return results.model_copy(update={"systems": systems})


def _curve(path: Path) -> list[CurvePoint]:
    if not path.exists():
        return []
    points = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        values = {k: float(v) for k, v in row.items() if k != "step" and isinstance(v, int | float)}
        points.append(CurvePoint(step=int(row["step"]), values=values))
    return points


def _counts(results: Results) -> list[PipelineCounts]:
    if "pairs" not in results.stages:
        return _online_counts(results)
    pairs = results.stages["pairs"].counts
    shown = [
        PipelineCounts(label="drafts", value=pairs.get("drafts", 0)),
        PipelineCounts(label="scored", value=pairs.get("scored", 0), note="distinct drafts with a gain"),
    ]
    shown += [
        PipelineCounts(label=key.replace("_", " "), value=pairs[key], note=_noted(key, why, pairs))
        for key, why in _DROPPED.items()
        if pairs.get(key)
    ]
    shown += [
        PipelineCounts(label=f"gain {sign}", value=pairs.get(f"gain_{sign}", 0))
        for sign in ("positive", "zero", "negative")
    ]
    if pairs.get("pairs_collected"):
        shown.append(
            PipelineCounts(label="collected", value=pairs["pairs_collected"], note="pairs from the feedback of users")
        )
    return [*shown, PipelineCounts(label="pairs", value=pairs.get("pairs", 0))]


def _online_counts(results: Results) -> list[PipelineCounts]:
    """Of an alignment on drafts of its own."""
    found = results.stages["align"].counts if "align" in results.stages else {}
    names = {
        "drafts_drawn": "in all steps",
        "drafts": "different ones",
        "refined": "by the strong model",
        "unscored": "no score: a call failed, or its text was cut off before an answer",
        "groups": "drafts of a query in a step",
        "groups_alike": "all their drafts worth the same",
    }
    return [PipelineCounts(label=k.replace("_", " "), value=found.get(k, 0), note=note) for k, note in names.items()]


def _noted(key: str, why: str, pairs: Mapping[str, int]) -> str:
    """Why records were dropped, with the reasons' counts where they are known."""
    part = {"dropped_unscored": "unscored_", "queries_without_contrast": "no_contrast_"}.get(key, "-")
    by = [f"{name.removeprefix(part).replace('_', ' ')} {n}" for name, n in pairs.items() if name.startswith(part)]
    return f"{why}: {', '.join(by)}" if by else why


async def _queries(context: Context, systems: Sequence[str]) -> list[QueryView]:
    predictions: Mapping[str, Mapping[str, Prediction]] = {
        name: {p.example_id: p for p in context.run.file(f"predictions/{name}.jsonl", Prediction).load()}
        for name in systems
    }
    scorer, views, preferred = MetricScorer(context.task, context.metric), [], _preferred(context, predictions)
    for example in test_queries(context):
        answers = {}
        for name in systems:
            p = predictions[name][example.id]
            score = await scorer.score(example, p.text)
            score = cut_score(score) if p.truncated else score
            if preferred is not None:
                score = Score(value=preferred[name][example.id], answer=score.answer)
            answers[name] = AnswerView(
                text=p.text, answer=score.answer, value=score.value, draft=p.draft, error=p.error or score.error
            )
        views.append(
            QueryView(
                example_id=example.id,
                input=example.input,
                turns=example.turns,
                context=example.context,
                references=example.references,
                answers=answers,
            )
        )
    return views


def _preferred(
    context: Context, predictions: Mapping[str, Mapping[str, Prediction]]
) -> dict[str, dict[str, float | None]] | None:
    """What judges say of each system's answers, by query, where they are what is measured."""
    queries = test_queries(context)
    if not context.judged(queries):
        return None
    rows = {name: [found[e.id] for e in queries] for name, found in predictions.items()}
    alone = rows[STRONG.name]
    return {
        name: {
            o.example_id: o.preferred for o in preferred_outcomes(context, compared_name(name), queries, mine, alone)
        }
        for name, mine in rows.items()
    }


async def write_report(config: RunConfig, contexts: Sequence[Context], out: Path, notes: Sequence[str]) -> Path:
    """Write ``out/report.html`` over all tasks of a run. Raises MissingExtraError without matplotlib."""
    try:
        from cowest.report.html import render
    except ImportError as error:
        raise MissingExtraError(f"the report needs {error.name}: pip install 'cowest[plots]'") from None
    page = RunReport(
        title=f"cowest: {config.name}",
        subtitle=f"weak {config.weak.model}, strong {getattr(config.strong, 'model', config.strong.kind)}, seed {config.seed}",
        tasks=[await task_report(context) for context in contexts],
        notes=list(notes),
    )
    target = out / "report.html"
    write_atomic(target, render(page))
    return target
