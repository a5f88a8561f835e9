"""How it is written down what the judges that compare answers came to: a row a judge and round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cowest.report.data import JudgeView, JudgingView
from cowest.report.naming import percent
from cowest.scoring.compare import ALWAYS
from cowest.scoring.powered import Agreement

HEADS: Final = (
    "Judge",
    "Pairs",
    "No verdict",
    "With a draft",
    "Alone",
    "Ties",
    "Shown first",
    "Agrees",
    "Kappa",
    "Opposite",
)
LEGEND: Final = (
    "Judges compare each answer made with a draft with the strong model's alone, in both orders. With a draft, alone: the answer "
    "that both orders prefer. Ties: in brackets those in which the preferred answer changed with its place. Shown first: of the "
    "verdicts for one answer, those for the one shown first; without position bias about half. Agrees: better, worse or equal as "
    "the references say, with the 95% Wilson interval; kappa takes chance off. Opposite: better for worse, or worse for better."
)


def rows(judging: Sequence[JudgingView]) -> list[list[str]]:
    """A row of text for each judge of each round, and one for several judges together."""
    made = []
    for one in judging:
        where = f", round {one.number}" if len(judging) > 1 else ""
        made += [_row(judge, f"{judge.model}{where}") for judge in one.judges]
        if len(one.judges) > 1:
            made.append([f"all judges{where}", *["—"] * 6, *_agreed(one.agreement)])
    return made


def _row(judge: JudgeView, name: str) -> list[str]:
    first = f"{percent(judge.first / judge.sided, 0)}% of {judge.sided:,}" if judge.sided else "—"
    counts = [f"{n:,}" for n in (judge.compared, judge.failed, judge.better, judge.worse)]
    return [name, *counts, f"{judge.ties:,} ({judge.inconsistent:,})", first, *_agreed(judge.agreement)]


def _agreed(found: Agreement | None) -> list[str]:
    if found is None or found.agree.share is None:
        return ["—"] * 3
    share = found.agree
    interval = f"[{percent(share.ci_low, 0)}, {percent(share.ci_high, 0)}]"
    kappa = "—" if found.kappa is None else f"{found.kappa:.2f}"
    return [f"{percent(share.share, 0)}% {interval} of {share.of:,}", kappa, f"{found.opposite:,}"]


def notes(judging: Sequence[JudgingView]) -> list[str]:
    """What is to be said beside the rows: equal answers, judges that hardly tell answers apart, the mean gain."""
    said = []
    for one in judging:
        where = f"Round {one.number}: " if len(judging) > 1 else ""
        if one.equal:
            said.append(
                f"{where}{one.equal:,} drafts after which the answer is that without a draft were not compared."
            )
        said += [
            f"{where}{judge.model} prefers {judge.always} in more than {ALWAYS:.0%} of its verdicts: it hardly tells answers apart."
            for judge in one.judges
            if judge.always is not None
        ]
        if (gain := one.gain) is not None:
            said.append(
                f"{where}Mean gain by {one.metric}: {gain.mean:+.3f} [{gain.ci_low:+.3f}, {gain.ci_high:+.3f}], from the "
                f"references of {gain.labelled:,} queries and the judges' word on {gain.judged:,} others."
            )
    return said
