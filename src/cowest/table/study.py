"""``cowest lab study``: a table of the four systems over the lab's domains and several world seeds, and what it is to show.

Three claims are tested for each domain, on the queries of all seeds, and for all domains together: collaboration beats the better
model alone, before and after alignment, and alignment beats plain collaboration.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from cowest.errors import ConfigError
from cowest.protocols import Reporter
from cowest.recipe.config import RunConfig, load_config
from cowest.recipe.shipped import packaged_recipe
from cowest.recipe.table import TableConfig
from cowest.results import Comparison
from cowest.run.store import write_atomic
from cowest.scoring.statistics import Outcome, compare, summarise
from cowest.scoring.stratified import TaskOutcomes, compare_over_tasks, mean_over_tasks
from cowest.systems.registry import COLLAB, COLLAB_ALIGNED, STRONG, WEAK
from cowest.table.make import make_table
from cowest.table.plan import make_plan
from cowest.table.pooled import OVER_ALL
from cowest.table.results import by_seed
from cowest.table.write import markdown
from cowest.types import Record

ALPHA = 0.01


class Claim(Record):
    """One thing the lab is to show in a domain; ``holds`` when the difference is positive with p < 0.01."""

    claim: str
    comparison: Comparison
    holds: bool


class Study(Record):
    """``study.json``: the claims by domain, and ``over all tasks`` where there are several.

    The figures are in the table's ``results.json`` beside it.
    """

    schema_version: int = 2
    seeds: list[int]
    claims: dict[str, list[Claim]]

    @property
    def holds(self) -> bool:
        """Whether every claim holds in every domain, and over all."""
        return all(claim.holds for claims in self.claims.values() for claim in claims)


def parse_seeds(text: str) -> list[int]:
    """``11,12,13`` -> [11, 12, 13]. Raises ConfigError for anything else, and for a seed given twice."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds {text!r}: give whole numbers with commas, such as 11,12,13") from None
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds {text!r}: seeds must be distinct and not negative")
    return seeds


def study_recipe(seeds: Sequence[int], domains: Sequence[str], overrides: Sequence[str] = ()) -> RunConfig:
    """The packaged lab recipe as a table over seeds. Raises ConfigError for an unknown domain or setting."""
    lab = load_config(packaged_recipe("lab"), overrides)
    unknown = [d for d in domains if d not in lab.tasks]
    if unknown:
        raise ConfigError(f"--domains: unknown domain {unknown[0]!r}; there are {', '.join(lab.tasks)}")
    rows = tuple(spec.name for spec in (WEAK, STRONG, COLLAB, COLLAB_ALIGNED))
    table = TableConfig(rows=rows, seeds=tuple(seeds))
    return lab.model_copy(update={"name": "lab-study", "tasks": {d: lab.tasks[d] for d in domains}, "table": table})


def run_study(
    seeds: Sequence[int], domains: Sequence[str], out: Path, jobs: int, overrides: Sequence[str], reporter: Reporter
) -> tuple[Study, str]:
    """Run (or continue) the table, ``jobs`` units at a time; write its files, ``study.json`` and ``study.md``.

    Returns the study and its Markdown. Raises ConfigError for bad arguments, StageError where a unit fails.
    """
    plan = make_plan(study_recipe(seeds, domains, overrides))
    made = make_table(plan, out / "recipe.yaml", (), out, jobs, reporter)
    found = {p.task: claims(p.context.task.metrics[0], p.context.task.labels, p.pooled) for p in made.pools}
    if len(made.pools) > 1:
        found[OVER_ALL] = claims_over_tasks([by_seed(p) for p in made.pools])
    study = Study(seeds=list(seeds), claims=found)
    # The table's own verdicts are at another level, of other pairs; they are in table.md.
    text = markdown(made.results.model_copy(update={"claims": []})) + study_markdown(study)
    write_atomic(out / "study.json", study.model_dump_json(indent=2) + "\n")
    write_atomic(out / "study.md", text)
    return study, text


def claims(metric: str, labels: Sequence[str], found: Mapping[str, Sequence[Outcome]]) -> list[Claim]:
    """What is claimed of a domain, with the largest p of the pair's tests (exact McNemar and paired bootstrap)."""

    def mean(name: str) -> float | None:
        return summarise((metric,), labels, found[name], 0)[metric].mean

    def worst(a: str, b: str) -> Comparison:
        return max(compare(metric, labels, a, found[a], b, found[b], 0), key=lambda c: 1.0 if c.p is None else c.p)

    return _claims(found, mean, worst)


def claims_over_tasks(domains: Sequence[Mapping[str, TaskOutcomes]]) -> list[Claim]:
    """What is claimed of all domains together, on the systems that all have: their mean, each weighing the same."""
    found = {name: [domain[name] for domain in domains] for name in domains[0] if all(name in d for d in domains)}
    return _claims(
        found,
        lambda name: mean_over_tasks(found[name], 0).mean,
        lambda a, b: compare_over_tasks(a, found[a], b, found[b], 0).comparison,
    )


def _claims(
    there: Collection[str], mean: Callable[[str], float | None], compared: Callable[[str, str], Comparison]
) -> list[Claim]:
    better = max((WEAK.name, STRONG.name), key=lambda name: mean(name) or 0.0)
    tested = [
        ("collaboration beats the better model alone", COLLAB.name, better),
        ("aligned collaboration beats the better model alone", COLLAB_ALIGNED.name, better),
        ("alignment beats plain collaboration", COLLAB_ALIGNED.name, COLLAB.name),
    ]
    made = []
    for text, a, b in tested:
        if a not in there:
            continue  # nothing could be aligned, which the table says
        c = compared(a, b)
        holds = c.diff is not None and c.diff > 0 and c.p is not None and c.p < ALPHA
        made.append(Claim(claim=text, comparison=c, holds=holds))
    return made


def study_markdown(study: Study) -> str:
    """The claims as Markdown, domain by domain."""
    lines = []
    for domain, made in study.claims.items():
        lines += ["", f"### What is claimed: {domain}", ""]
        for claim in made:
            c, verdict = claim.comparison, "holds" if claim.holds else "**does not hold**"
            if c.p is None:
                lines.append(f"- {claim.claim}: **not tested**")
                continue
            said = f"{c.a} - {c.b}: {100 * (c.diff or 0):+.1f} points, p = {c.p:.2g}, {c.test}, n = {c.n}"
            lines.append(f"- {claim.claim}: {verdict} ({said})")
    return "\n".join(lines) + "\n"
