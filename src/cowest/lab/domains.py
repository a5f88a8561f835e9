"""Three synthetic domains that mirror the paper's: counterfactuals, medicine, ethics.

Each domain has invented *facts* that only the weak model is tuned on, and *questions* that need several of them and a
chain of general reasoning (arithmetic, comparison, thresholds). The strong model has learned the reasoning on
ever-fresh random worlds and knows no fact of any domain. One real row of each::

    If Velmo had opened 14 years later, how many years after Kasti would that be?
        Velmo opened in 34. Kasti opened in 31.                          -> 17 years
    May a patient with Kasti and Lopu take 45 mg of Velmo?
        Velmo is safe up to 82 mg. Kasti lowers limits by 17 mg. ...      -> no
    Someone did velmo to 6 people in a kasti. How serious is it?
        A velmo weighs 7. A kasti adds 12.                               -> warning
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cowest.lab.names import invent, written_comparison, written_difference, written_sum


@dataclass(frozen=True, slots=True)
class Fact:
    """``subject`` (a name of one kind), its number, and the phrasings that state it."""

    kind: str
    subject: str
    value: int
    phrasings: tuple[str, ...]
    successor: str = ""

    @property
    def short(self) -> str:
        """How the strong model notes it before it reasons: ``Velmo 34``, ``Kesu 45 Tarin``."""
        return f"{self.subject} {self.value} {self.successor}".rstrip()


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the facts it needs (in order of use), the written reasoning and the answer, all computed."""

    text: str
    facts: tuple[Fact, ...]
    reasoning: str
    answer: str


Pools = Mapping[str, Sequence[Fact]]


class Domain(Protocol):
    """A kind of world: how its facts are drawn and its questions are asked."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def kinds(self) -> Mapping[str, float]:
        """The kinds of fact, each with its share of the world's entities."""
        ...

    def fact(self, kind: str, subject: str, rng: random.Random) -> Fact: ...

    def question(self, draw: Draw, rng: random.Random) -> Question: ...


class Draw(Protocol):
    """Hands out facts of a kind, never the same one twice since the last ``restart``."""

    def restart(self) -> None: ...

    def __call__(self, kind: str) -> Fact: ...


@dataclass(frozen=True, slots=True)
class Counterfactuals:
    """What if a building had opened earlier or later? Open answers (a year, a span, a name)."""

    name: str = "counterfactuals"
    labels: tuple[str, ...] = ()

    @property
    def kinds(self) -> Mapping[str, float]:
        return {"opened": 0.6, "left": 0.4}

    def fact(self, kind: str, subject: str, rng: random.Random) -> Fact:
        year = rng.randint(30, 70)
        if kind == "opened":
            return Fact(
                kind, subject, year, (f"{subject} opened in {year}.", f"The opening of {subject} was in {year}.")
            )
        heir = invent(rng)
        phrasings = (f"{heir} followed mayor {subject} in {year}.", f"In {year} mayor {subject} gave way to {heir}.")
        return Fact(kind, subject, year, phrasings, heir)

    def question(self, draw: Draw, rng: random.Random) -> Question:
        built = draw("opened")
        shift, later = rng.randint(2, 28), rng.random() < 0.5
        moved = built.value + shift if later else built.value - shift
        scratch = written_sum(built.value, shift) if later else written_difference(built.value, shift)
        way = "later" if later else "earlier"
        kind = rng.random()
        if kind < 0.3:
            text = rng.choice(
                (
                    f"In which year would {built.subject} have opened, had it been {shift} years {way}?",
                    f"Had {built.subject} opened {shift} years {way}, which year would it have been?",
                )
            )
            return Question(text, (built,), scratch, f"year {moved}")
        if kind < 0.65:
            mayor = draw("left")
            one, two = rng.sample((mayor.subject, mayor.successor), 2)
            text = rng.choice(
                (
                    f"If {built.subject} had opened {shift} years {way}, was {one} or {two} mayor?",
                    f"Who was mayor, {one} or {two}, had {built.subject} opened {shift} years {way}?",
                )
            )
            answer = f"mayor {mayor.subject if moved < mayor.value else mayor.successor}"
            return Question(text, (built, mayor), f"{scratch}. {written_comparison(moved, mayor.value)}", answer)
        other = draw("opened")
        first, second = (moved, other.value) if moved >= other.value else (other.value, moved)
        text = rng.choice(
            (
                f"If {built.subject} had opened {shift} years {way}, how far from {other.subject} would that be?",
                f"How many years from {other.subject} would {built.subject} open, were it {shift} years {way}?",
            )
        )
        reasoning = f"{scratch}. {written_difference(first, second)}"
        return Question(text, (built, other), reasoning, f"{first - second} years")


@dataclass(frozen=True, slots=True)
class Medicine:
    """Is a dose safe for a patient with these conditions? yes (below the limit), maybe (at it), no (above it)."""

    name: str = "medicine"
    labels: tuple[str, ...] = ("yes", "no", "maybe")

    @property
    def kinds(self) -> Mapping[str, float]:
        return {"limit": 0.5, "lowers": 0.5}

    def fact(self, kind: str, subject: str, rng: random.Random) -> Fact:
        if kind == "limit":
            mg = rng.randint(55, 95)
            return Fact(kind, subject, mg, (f"{subject} is safe up to {mg} mg.", f"The limit of {subject} is {mg} mg."))
        mg = rng.randint(3, 22)
        return Fact(kind, subject, mg, (f"{subject} lowers limits by {mg} mg.", f"With {subject} take {mg} mg off."))

    def question(self, draw: Draw, rng: random.Random) -> Question:
        drug, conditions = draw("limit"), [draw("lowers")]
        if rng.random() < 0.4:
            conditions.append(draw("lowers"))
        safe, scratch = drug.value, []
        for condition in conditions:
            scratch.append(written_difference(safe, condition.value))
            safe -= condition.value
        answer = rng.choice(self.labels)
        distance = min(rng.randint(1, 15), safe - 1)
        dose = {"yes": safe - distance, "maybe": safe, "no": safe + distance}[answer]
        having = " and ".join(c.subject for c in conditions)
        text = rng.choice(
            (
                f"May a patient with {having} take {dose} mg of {drug.subject}?",
                f"Is {dose} mg of {drug.subject} safe for someone with {having}?",
            )
        )
        reasoning = ". ".join([*scratch, written_comparison(dose, safe)])
        return Question(text, (drug, *conditions), reasoning, answer)


@dataclass(frozen=True, slots=True)
class Ethics:
    """How serious is an act? Weight times people, plus what the circumstances add or take; five severity classes.

    With ``margin`` set, only totals at most that far from the border of two classes are asked about: a rough sum, which a small
    model learns from a thousand answers, then is not enough.
    """

    name: str = "ethics"
    labels: tuple[str, ...] = ("casual", "mild", "caution", "warning", "intervention")
    margin: int | None = None

    @property
    def kinds(self) -> Mapping[str, float]:
        return {"weighs": 0.5, "adds": 0.25, "removes": 0.25}

    def fact(self, kind: str, subject: str, rng: random.Random) -> Fact:
        if kind == "weighs":
            n = rng.randint(2, 9)
            return Fact(kind, subject, n, (f"{subject} weighs {n}.", f"The weight of {subject} is {n}."))
        n = rng.randint(2, 19)
        if kind == "adds":
            return Fact(kind, subject, n, (f"{subject} adds {n}.", f"During {subject} add {n}."))
        return Fact(kind, subject, n, (f"{subject} removes {n}.", f"During {subject} remove {n}."))

    def severity(self, total: int) -> str:
        """The class of a total: one for every 15 points."""
        return self.labels[min(total // 15, len(self.labels) - 1)]

    def _attempt(self, draw: Draw, rng: random.Random) -> tuple[Question, int]:
        draw.restart()
        act, people = draw("weighs"), rng.randint(2, 8)
        total = act.value * people
        scratch = [f"{act.value}*{people}={total}"]
        circumstances = [draw(rng.choice(("adds", "removes"))) for _ in range(1 if rng.random() < 0.6 else 2)]
        for c in circumstances:
            if c.kind == "adds":
                scratch.append(written_sum(total, c.value))
                total += c.value
            else:
                taken = min(c.value, total)
                scratch.append(written_difference(total, taken))
                total -= taken
        during = " and ".join(c.subject for c in circumstances)
        text = rng.choice(
            (
                f"Someone did {act.subject} to {people} people during {during}. How serious is it?",
                f"During {during}, {people} people suffered {act.subject}. How serious is that?",
            )
        )
        return Question(text, (act, *circumstances), ". ".join(scratch), self.severity(total)), total

    def question(self, draw: Draw, rng: random.Random) -> Question:
        """Classes are balanced by redrawing, at most 40 times (400 with a margin), towards a class drawn first."""
        wanted = rng.choice(self.labels)
        for _ in range(40 if self.margin is None else 400):
            question, total = self._attempt(draw, rng)
            if question.answer == wanted and total <= 99 and self._is_close(total):
                return question
        return question

    def _is_close(self, total: int) -> bool:
        borders = range(15, 15 * len(self.labels), 15)
        return self.margin is None or any(border - self.margin <= total < border + self.margin for border in borders)


DOMAINS: Mapping[str, Domain] = {d.name: d for d in (Counterfactuals(), Medicine(), Ethics())}
"""What the models are pretrained on."""

WORLD_DOMAINS: Mapping[str, Domain] = {**DOMAINS, "ethics": Ethics(margin=3)}
"""What worlds are made of: the same, but ethics asks about close calls only."""
