"""``cowest lab study``: every domain on several world seeds, pooled over the seeds, with what the lab is to show.

Each (domain, seed) is an ordinary ``cowest run`` of the lab recipe in a process of its own with one thread (two processes with
two threads each would fight for two cores); killed and started again, it continues. Two claims are tested for each domain, on the
queries of all seeds: collaboration beats the better model alone, and alignment beats plain collaboration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import Field

from cowest.errors import ConfigError
from cowest.protocols import Reporter
from cowest.recipe.config import load_config
from cowest.recipe.shipped import packaged_recipe
from cowest.run.processes import Job, run_jobs
from cowest.run.store import write_atomic
from cowest.scoring.statistics import Outcome, compare, pool, summarise
from cowest.stages.evaluate import outcomes
from cowest.types import Comparison, MetricValue, Prediction, Record

ALPHA = 0.01


class Claim(Record):
    """One thing the lab is to show in a domain; ``holds`` when the difference is positive with p < 0.01."""

    claim: str
    comparison: Comparison
    holds: bool


class SeedResult(Record):
    """The main metric of each system in one world, and the alignment step that was chosen on validation queries."""

    seed: int
    means: dict[str, float | None]
    chosen_step: int
    seconds: float


class DomainStudy(Record):
    """One domain over all seeds."""

    domain: str
    metric: str
    seeds: list[SeedResult]
    pooled: dict[str, dict[str, MetricValue]]
    claims: list[Claim]


class Study(Record):
    """``study.json``."""

    schema_version: int = Field(default=1)
    seeds: list[int]
    domains: list[DomainStudy]

    @property
    def holds(self) -> bool:
        """Whether every claim holds in every domain."""
        return all(claim.holds for domain in self.domains for claim in domain.claims)


@dataclass(frozen=True, slots=True)
class Unit:
    """One run of the study."""

    domain: str
    seed: int
    recipe: Path
    out: Path


def parse_seeds(text: str) -> list[int]:
    """``11,12,13`` -> [11, 12, 13]. Raises ConfigError for anything else, and for a seed given twice."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds {text!r}: give whole numbers with commas, such as 11,12,13") from None
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds {text!r}: seeds must be distinct and not negative")
    return seeds


def _units(seeds: Sequence[int], domains: Sequence[str], out: Path, overrides: Sequence[str]) -> list[Unit]:
    """Write one single-domain recipe per run, from the packaged lab recipe."""
    base = yaml.safe_load(packaged_recipe("lab").read_text(encoding="utf-8"))
    tasks = base.pop("tasks")
    unknown = [d for d in domains if d not in tasks]
    if unknown:
        raise ConfigError(f"--domains: unknown domain {unknown[0]!r}; there are {', '.join(tasks)}")
    units = []
    for seed in seeds:
        for domain in domains:
            folder = out / f"{domain}-{seed}"
            recipe = out / "recipes" / f"{domain}-{seed}.yaml"
            content = {**base, "name": f"{domain}-{seed}", "seed": seed, "task": tasks[domain]}
            write_atomic(recipe, yaml.safe_dump(content, sort_keys=False))
            load_config(recipe, overrides)
            units.append(Unit(domain, seed, recipe, folder))
    return units


def run_study(
    seeds: Sequence[int], domains: Sequence[str], out: Path, jobs: int, overrides: Sequence[str], reporter: Reporter
) -> Study:
    """Run (or continue) all units, ``jobs`` at a time; write ``study.json`` and ``study.md``.

    Raises ConfigError for bad arguments, StageError with the log's path when a run fails.
    """
    units = _units(seeds, domains, out, overrides)
    sets = [word for override in overrides for word in ("--set", override)]
    runs = [
        Job(f"{u.domain}, seed {u.seed}", ("run", str(u.recipe), "--out", str(u.out), *sets), u.out / "run.log")
        for u in units
    ]
    run_jobs(runs, jobs, reporter)
    study = Study(seeds=list(seeds), domains=[_domain(d, [u for u in units if u.domain == d]) for d in domains])
    write_atomic(out / "study.json", study.model_dump_json(indent=2) + "\n")
    write_atomic(out / "study.md", study_markdown(study))
    return study


def _domain(domain: str, units: Sequence[Unit]) -> DomainStudy:
    from cowest.assembly.prepare import prepare
    from cowest.recipe.kept import kept_recipe
    from cowest.run.progress import QuietReporter
    from cowest.stages.evaluate import test_queries
    from cowest.stages.learn import selection
    from cowest.stages.reporting import read_results

    found: dict[str, dict[str, list[Outcome]]] = {}
    seeds: list[SeedResult] = []
    metrics: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    for unit in units:
        context = prepare(kept_recipe(unit.out), unit.out, QuietReporter(), offline=True)[0]
        results, queries = read_results(unit.out / "results.json"), test_queries(context)
        metrics, labels = context.task.metrics, context.task.labels
        for name in results.systems:
            predictions = context.run.file(f"predictions/{name}.jsonl", Prediction).load()
            found.setdefault(name, {})[str(unit.seed)] = outcomes(context, queries, predictions)
        seeds.append(
            SeedResult(
                seed=unit.seed,
                means={name: r.metrics[metrics[0]].mean for name, r in results.systems.items()},
                chosen_step=selection(context).chosen,
                seconds=round(sum(s.seconds for s in results.stages.values()), 1),
            )
        )
    pooled = {name: pool(groups) for name, groups in found.items()}
    values = {name: summarise(metrics, labels, rows, 0) for name, rows in pooled.items()}
    claims = _claims(metrics[0], labels, pooled, values)
    return DomainStudy(domain=domain, metric=metrics[0], seeds=seeds, pooled=values, claims=claims)


def _claims(
    metric: str, labels: tuple[str, ...], pooled: dict[str, list[Outcome]], values: dict[str, dict[str, MetricValue]]
) -> list[Claim]:
    better = max(("weak", "strong"), key=lambda name: values[name][metric].mean or 0.0)
    tested = [
        ("collaboration beats the better model alone", "collab", better),
        ("aligned collaboration beats the better model alone", "collab_aligned", better),
        ("alignment beats plain collaboration", "collab_aligned", "collab"),
    ]
    claims = []
    for text, a, b in tested:
        # Every test of the pair must agree: the claim stands on the largest p (exact McNemar and paired bootstrap).
        found = compare(metric, labels, a, pooled[a], b, pooled[b], 0)
        worst = max(found, key=lambda c: 1.0 if c.p is None else c.p)
        holds = worst.diff is not None and worst.diff > 0 and worst.p is not None and worst.p < ALPHA
        claims.append(Claim(claim=text, comparison=worst, holds=holds))
    return claims


def study_markdown(study: Study) -> str:
    """The study as Markdown tables: each world, the pooled means with intervals, the claims."""
    lines = []
    for d in study.domains:
        names = list(d.pooled)
        lines += [f"### {d.domain} ({d.metric}, %)", "", f"| seed | {' | '.join(names)} | chosen step | seconds |"]
        lines.append("|---" * (len(names) + 3) + "|")
        for s in d.seeds:
            cells = [_percent(s.means[n]) for n in names]
            lines.append(f"| {s.seed} | {' | '.join(cells)} | {s.chosen_step} | {s.seconds:.0f} |")
        cells = [_interval(d.pooled[n][d.metric]) for n in names]
        lines += [f"| pooled | {' | '.join(cells)} | | |", ""]
        for claim in d.claims:
            c = claim.comparison
            verdict = "holds" if claim.holds else "**does not hold**"
            lines.append(
                f"- {claim.claim}: {verdict} ({c.a} - {c.b}: {100 * (c.diff or 0):+.1f} points, p = {c.p:.2g}, {c.test}, n = {c.n})"
                if c.p is not None
                else f"- {claim.claim}: **not tested**"
            )
        lines.append("")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "not scored" if value is None else f"{100 * value:.1f}"


def _interval(value: MetricValue) -> str:
    if value.mean is None or value.ci_low is None or value.ci_high is None:
        return "not scored"
    return f"{100 * value.mean:.1f} [{100 * value.ci_low:.1f}, {100 * value.ci_high:.1f}]"
