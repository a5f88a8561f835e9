"""Realistic synthetic reports: a lab-like world whose numbers on the page follow from its own queries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cowest.report.data import (
    AnswerView,
    CheckpointView,
    CurvePoint,
    PipelineCounts,
    QueryView,
    RunReport,
    TaskReport,
    TrainingCurve,
)
from cowest.results import Comparison, MetricValue, Results, StageResult, SystemResult
from cowest.types import Usage

RATES = {"weak": 0.66, "strong": 0.41, "collab": 0.79, "collab_aligned": 0.90}
NAMES = tuple(RATES)


def _queries(rng: np.random.Generator, n: int, labels: tuple[str, ...]) -> list[QueryView]:
    found = []
    for i in range(n):
        drug, illness = (
            rng.choice(["Velarin", "Tomoxil", "Karudan"]),
            rng.choice(["moran fever", "dusk palsy", "ketal gout"]),
        )
        limit, less, dose = int(rng.integers(40, 90)), int(rng.integers(5, 30)), int(rng.integers(10, 80))
        right = labels[int(rng.integers(len(labels)))]
        wrong = labels[(labels.index(right) + 1) % len(labels)]
        facts = f"The daily limit of {drug} is {limit} mg. {str(illness).capitalize()} lowers it by {less} mg."
        answers = {}
        for name, rate in RATES.items():
            ok = bool(rng.random() < rate)
            said = right if ok else wrong
            draft = None
            if name.startswith("collab"):
                draft = facts if ok else f"The daily limit of {drug} is {limit} mg. Answer: {wrong}"
            text = f"{facts} {limit} - {less} = {limit - less}. {dose} is compared with {limit - less}. Answer: {said}"
            answers[name] = AnswerView(text=text, answer=said, value=float(ok), draft=draft)
        if i % 97 == 13:
            answers["strong"] = AnswerView(text=None, error="timeout: no answer within 60 s")
        question = f"May a patient with {illness} take {dose} mg of {drug} a day?"
        context = "Doses are per day." if i % 3 == 0 else None
        found.append(
            QueryView(example_id=f"med-{i:04d}", input=question, context=context, references=(right,), answers=answers)
        )
    return found


def _metric(rng: np.random.Generator, values: list[float | None], shift: float = 0.0) -> MetricValue:
    known = np.array([v for v in values if v is not None]) - shift
    means = rng.choice(known, size=(400, known.size)).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return MetricValue(
        mean=float(known.mean()),
        ci_low=float(low),
        ci_high=float(high),
        n=known.size,
        n_failed=len(values) - known.size,
    )


def _comparison(rng: np.random.Generator, queries: list[QueryView], a: str, b: str, metric: str) -> Comparison:
    pairs = [(q.answers[a].value, q.answers[b].value) for q in queries]
    diffs = np.array([x - y for x, y in pairs if x is not None and y is not None])
    means = rng.choice(diffs, size=(400, diffs.size)).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    p = float(min(1.0, 2 * min((means <= 0).mean(), (means >= 0).mean()) + 1 / 400 * 0.1))
    return Comparison(
        a=a, b=b, metric=metric, diff=float(diffs.mean()), ci_low=float(low), ci_high=float(high), p=p,
        test="paired bootstrap", n=diffs.size,
    )  # fmt: skip


def _curves(rng: np.random.Generator) -> list[TrainingCurve]:
    sft = [
        CurvePoint(step=s, values={"loss": float(0.4 + 2.6 * np.exp(-s / 160) + rng.normal(0, 0.03))})
        for s in range(10, 601, 10)
    ]
    align = []
    for s in range(1, 41):
        chosen, rejected = -21 + 0.05 * s + rng.normal(0, 0.3), -19 - 0.35 * s + rng.normal(0, 0.3)
        margin = max(0.0, 0.05 * (s - 1) + rng.normal(0, 0.06))
        align.append(
            CurvePoint(
                step=s,
                values={
                    "loss": float(np.log1p(np.exp(-margin))),
                    "rewards/margins": float(margin),
                    "logps/chosen": float(chosen),
                    "logps/rejected": float(rejected),
                    "learning_rate": 5e-5,
                },
            )
        )
    return [TrainingCurve(stage="sft", points=sft), TrainingCurve(stage="align", points=align)]


def build_task(
    task: str = "medicine", seed: int = 0, n: int = 120, labels: tuple[str, ...] = ("yes", "no", "maybe")
) -> TaskReport:
    """Return one full task whose metrics, intervals and comparisons are computed from its queries."""
    rng = np.random.default_rng(seed)
    queries = _queries(rng, n, labels)
    values = {name: [q.answers[name].value for q in queries] for name in NAMES}
    systems = {
        name: SystemResult(
            metrics={"accuracy": _metric(rng, values[name]), "macro_f1": _metric(rng, values[name], 0.03)},
            usage=Usage(calls=n, input_tokens=n * 61, output_tokens=n * 40),
        )
        for name in NAMES
    }
    pairs = [(a, b) for i, a in enumerate(NAMES[::-1]) for b in NAMES[::-1][i + 1 :]]
    results = Results(
        name=f"lab/{task}",
        task=task,
        systems=systems,
        comparisons=[_comparison(rng, queries, a, b, m) for m in ("accuracy", "macro_f1") for a, b in pairs],
        stages={
            "sft": StageResult(counts={"examples": 1500}, seconds=71.3),
            "sample": StageResult(counts={"drafts": 2400}, seconds=8.8),
        },
    )
    return TaskReport(
        results=results,
        curves=_curves(rng),
        checkpoints=[
            CheckpointView(step=s, score=v, selected=s == 30)
            for s, v in ((10, 0.81), (20, 0.86), (30, 0.91), (40, 0.88))
        ],
        gains=[float(g) for g in rng.choice([-1.0, 0.0, 1.0], p=[0.12, 0.48, 0.40], size=2388)],
        counts=[
            PipelineCounts(label="Drafts sampled", value=2400, note="600 queries, 4 drafts each"),
            PipelineCounts(label="Scored", value=2388, note="12 dropped: no answer found in the refinement"),
            PipelineCounts(
                label="Queries with a pair to make", value=214, note="386 dropped: all four drafts had the same gain"
            ),
            PipelineCounts(label="Preference pairs", value=198, note="16 dropped as duplicates"),
        ],
        queries=queries,
        main_metric="accuracy",
    )


def build_report(tasks: int = 1, n: int = 120) -> RunReport:
    """Return a report of one or more tasks."""
    names = ("medicine", "counterfactuals", "ethics")[:tasks]
    return RunReport(
        title="Weak and strong together: the lab",
        subtitle="weak 0.4M parameters, strong 3.1M parameters; world seed 11; 2 November 2026",
        tasks=[build_task(name, seed=i, n=n) for i, name in enumerate(names)],
        notes=["Tiny models on synthetic domains: they show the mechanism, not the paper's benchmarks."],
    )


@pytest.fixture
def make_task() -> Callable[..., TaskReport]:
    """Return the builder of one synthetic task."""
    return build_task


@pytest.fixture
def make_report() -> Callable[..., RunReport]:
    """Return the builder of a synthetic report."""
    return build_report
