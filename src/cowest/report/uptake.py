"""How it is written down what the strong model does with a draft: the same columns in terminal, report and table's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cowest.results import Share, Uptake
from cowest.systems.registry import STRONG

TITLE = "What the strong model does with a draft"


@dataclass(frozen=True, slots=True)
class Column:
    """One share: its name in files, its head on pages, what it is of what, and where it is found (None: not known)."""

    key: str
    head: str
    about: str
    of: Callable[[Uptake], Share | None]


def _solo(name: str) -> Callable[[Uptake], Share | None]:
    def found(uptake: Uptake) -> Share | None:
        share: Share | None = None if uptake.solo is None else getattr(uptake.solo, name)
        return share

    return found


COLUMNS: tuple[Column, ...] = (
    Column("copied", "copied", "its answer is the draft's", lambda u: u.copied),
    Column("same_alone", "same alone", "alone it gives the draft's answer, unseen", _solo("same_alone")),
    Column("follows", "follows", "takes the draft's answer where alone it gives another", _solo("follows")),
    Column("adopts", "adopts wrong", "a wrong draft's answer is its own", lambda u: u.adopts),
    Column("mends", "mends wrong", "right after a wrong draft", lambda u: u.mends),
    Column("keeps", "keeps right", "right after a right draft", lambda u: u.keeps),
    Column("helps", "helps", "right with the draft, of what it has wrong alone", _solo("helps")),
    Column(
        "helps_itself",
        "not by copying",
        "of those helped: the draft was wrong or named no answer",
        _solo("helps_itself"),
    ),
    Column("spoils", "spoils", "wrong with the draft, of what it has right alone", _solo("spoils")),
)

LEGEND = (
    "By the answers in the texts (classes to the letter, open answers as exact match compares them). "
    + "; ".join(f"{c.head}: {c.about}" for c in COLUMNS)
    + ". Answers that failed or were cut off are left out."
)


def columns(uptakes: Sequence[Uptake]) -> tuple[Column, ...]:
    """The columns that are known of some system: without the strong model alone there is nothing against it."""
    return tuple(c for c in COLUMNS if any(c.of(u) is not None for u in uptakes))


def percent_of(share: Share | None) -> str:
    """``71%``; ``-`` where there is no case."""
    return "-" if share is None or share.share is None else f"{100 * share.share:.0f}%"


def counts_of(share: Share | None) -> str:
    """``212/300``; nothing where it is not known."""
    return "" if share is None else f"{share.n}/{share.of}"


def interval_of(share: Share | None) -> str:
    """``65.2, 75.6``, the 95% interval in percent."""
    if share is None or share.ci_low is None or share.ci_high is None:
        return ""
    return f"{100 * share.ci_low:.1f}, {100 * share.ci_high:.1f}"


def notes(uptakes: Mapping[str, Uptake]) -> list[str]:
    """What is left out of the shares, and what cannot be told, a line for each system of which there is something to say."""
    found = []
    for name, u in uptakes.items():
        left = {
            "drafts name no answer": u.unread,
            "final texts name no answer, and count as wrong": u.no_answer,
            "final answers were cut off": u.cut,
            "calls failed": u.failed,
            f"answers of `{STRONG.name}` failed or were cut off": 0 if u.solo is None else u.solo.missing,
        }
        said = [f"{n} {what}" for what, n in left.items() if n]
        if said:
            found.append(f"{name}, {u.drafts} drafts: {'; '.join(said)}")
    if any(u.solo is None for u in uptakes.values()):
        found.append(f"{STRONG.name} is not among the systems, so that nothing is said against it alone")
    return found


def beyond(uptake: Uptake) -> str:
    """``+53.7 points [+47.0, +60.1]``: agreement with the draft beyond that without one; '' where it is not known."""
    c = None if uptake.solo is None else uptake.solo.beyond
    if c is None or c.diff is None or c.ci_low is None or c.ci_high is None:
        return ""
    return f"{100 * c.diff:+.1f} points [{100 * c.ci_low:+.1f}, {100 * c.ci_high:+.1f}]"
