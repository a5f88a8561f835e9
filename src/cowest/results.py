"""What a run comes to, as ``results.json`` has it: systems, their scores and comparisons, stages, rounds."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from cowest.types import Record, Usage


class MetricValue(Record):
    """A metric's mean with its 95% bootstrap interval over ``n`` scored queries.

    ``n_failed``: their call failed. ``n_cut``: their answer was cut off at max_tokens before it came. Both have no score and
    are left out of the mean; ``mean_cut_wrong`` is the mean that counts the cut ones as wrong, None where none was cut.
    """

    mean: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    n_failed: int
    n_cut: int = 0
    mean_cut_wrong: float | None = None


class Share(Record):
    """``n`` of ``of`` cases with the 95% Wilson interval of their share; its values are None where there is no case."""

    n: int
    of: int
    share: float | None
    ci_low: float | None
    ci_high: float | None


class Comparison(Record):
    """System ``a`` minus system ``b`` on the queries that both answered (paired).

    ``a_cut`` and ``b_cut``: queries on which the system's answer was cut off at max_tokens before it came, and which are
    therefore left out. Where they differ, the comparison leaves out other queries for the one than for the other.
    """

    a: str
    b: str
    metric: str
    diff: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    test: str
    n: int
    a_cut: int = 0
    b_cut: int = 0


class AgainstSolo(Record):
    """What a draft changes, against the same strong model alone on the same query (:mod:`cowest.scoring.uptake`).

    Over queries on which both its answers can be told; ``missing`` could not, since alone it failed or was cut off. ``same_alone``:
    alone it says what the draft says anyway, on the queries of ``beyond``. ``beyond``: the answers that are the draft's, minus
    those that are so alone (paired): agreement beyond what there is without a draft. ``follows``: of the drafts that say
    otherwise than it does alone, those whose answer it takes. ``helps``: of what it has wrong alone, what is right with the draft;
    ``helps_itself``: of these, those whose draft was wrong or named no answer, so that copying did not do it. ``spoils``: of what
    it has right alone, what is wrong with the draft.
    """

    missing: int
    same_alone: Share
    beyond: Comparison
    follows: Share
    helps: Share
    helps_itself: Share
    spoils: Share


class Uptake(Record):
    """What a system's strong model does with the drafts that it is given, by the answers read out of the texts.

    ``drafts``: queries with a draft in their prediction; ``unread`` of these drafts name no answer. ``failed`` and ``cut`` are
    final answers that never came, left out of all shares; ``no_answer`` are whole texts without one, which count as wrong and as
    not the draft's. ``copied``: of drafts with an answer, those whose answer is the final one. ``adopts`` and ``mends``: of wrong
    drafts, those whose answer is the final one, and those after which it is right. ``keeps``: of right drafts, those after
    which it is right. ``solo``: None where the strong model alone was not evaluated on the same queries.
    """

    drafts: int
    unread: int
    failed: int
    cut: int
    no_answer: int
    copied: Share
    adopts: Share
    mends: Share
    keeps: Share
    solo: AgainstSolo | None = None


class SystemResult(Record):
    """One row of the results table. ``uptake``: None for a system without drafts, and in older results."""

    metrics: dict[str, MetricValue]
    usage: Usage
    uptake: Uptake | None = None


class StageResult(Record):
    """What a stage did: its counts (records made, reused, dropped and why) and the seconds it took.

    ``warnings``: what it noticed of its own records and said while it ran, one line each.
    """

    counts: dict[str, int]
    seconds: float
    warnings: tuple[str, ...] = ()


class Drift(Record):
    """KL(policy || SFT model) in nats, estimated on ``drafts`` of the policy: a draft, its standard error ``se``, and a token."""

    drafts: int
    kl: float | None
    se: float | None
    kl_per_token: float | None


class RoundResult(Record):
    """What one round of the loop took and gave.

    ``before`` and ``after``: the validation score of the collaboration with the best model before the round and with its best
    checkpoint. ``strong_calls`` and ``usage`` are those of its feedback that no earlier round had made; ``copied`` of its
    refined answers are the draft's own. ``drift`` is of the model that drafted; None where that is the SFT model.
    """

    number: int
    before: float | None
    after: float | None
    step: int
    taken: bool
    pairs: int
    queries_with_pairs: int
    strong_calls: int
    usage: Usage
    draft_words: float | None
    copied: Share
    drift: Drift | None = None
    ended: str | None = None


class Results(Record):
    """``results.json``, the stable contract of a run (docs/results.md).

    ``left_out``: systems that the recipe asks for and that are not there, with the reason. ``rounds``: none where the recipe
    has one; the last of them says why no other followed.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str
    task: str
    systems: dict[str, SystemResult]
    comparisons: list[Comparison]
    stages: dict[str, StageResult]
    left_out: dict[str, str] = Field(default_factory=dict)
    rounds: list[RoundResult] = Field(default_factory=list)

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
