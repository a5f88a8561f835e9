"""The paper's claims, judged by a table: collaboration beats each model alone, and alignment adds to it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final, Literal

from cowest.results import Comparison
from cowest.scoring.statistics import holm
from cowest.systems.registry import COLLAB, STRONG, WEAK
from cowest.types import Record

ALPHA: Final = 0.05
_ALIGNED: Final = "_aligned"
_COLLABORATIONS: Final = (COLLAB.name, "collab_cot", "collab_knowledge", "collab_direct")
"""The paper's own format first, where a table has several and no baseline says which is meant."""
Verdict = Literal["shown", "not shown", "opposite shown"]


class TableClaim(Record):
    """One claim in one task, or over all; ``p_holm`` is corrected over the claims there.

    ``verdict``: shown where the difference is above 0 and significantly so (two-sided, alpha 0.05), opposite shown where it is
    significantly below, not shown else, also where nothing could be compared.
    """

    where: str
    label: str
    claim: str
    comparison: Comparison
    p_holm: float | None
    verdict: Verdict


def judge_claims(
    where: str, label: str, rows: Collection[str], baseline: str, compared: Callable[[str, str], Comparison]
) -> list[TableClaim]:
    """The claims whose rows are there. ``compared`` gives the first row minus the second."""
    claims = list(_claims(rows, baseline))
    made = [compared(a, b) for _, a, b in claims]
    return [
        TableClaim(where=where, label=label, claim=text, comparison=c, p_holm=p, verdict=_verdict(c.diff, p))
        for (text, _, _), c, p in zip(claims, made, holm([c.p for c in made]), strict=True)
    ]


def _claims(rows: Collection[str], baseline: str) -> Iterator[tuple[str, str, str]]:
    """Of one collaboration: the baseline's draft format where it is one, so that nobody picks the best of several."""
    formats = sorted(_COLLABORATIONS, key=lambda name: name != baseline.removesuffix(_ALIGNED))
    plain = next((f for f in formats if f + _ALIGNED in rows), next((f for f in formats if f in rows), None))
    if plain is None:
        return
    aligned = plain + _ALIGNED
    best = aligned if aligned in rows else plain
    if STRONG.name in rows:
        yield "collaboration beats the strong model alone", best, STRONG.name
    if WEAK.name in rows:
        yield "collaboration beats the weak model alone", best, WEAK.name
    if aligned in rows and plain in rows:
        yield "alignment adds", aligned, plain


def _verdict(diff: float | None, p: float | None) -> Verdict:
    if not diff or p is None or p >= ALPHA:
        return "not shown"
    return "shown" if diff > 0 else "opposite shown"
