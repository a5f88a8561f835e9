"""A domain made for questions that come one after another: pupil -> teacher -> town -> year of founding.

Who cannot look a thing up for itself has to know the teacher before it can ask for the teacher's town. One question and its chain::

    How old was the town of Velmo's teacher in 95?
        Kasti taught Velmo. Kasti lived in Lopu. Lopu was founded in 34.      -> 61 years
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cowest.lab.domains import Fact, Question
from cowest.lab.names import invent_many, written_difference
from cowest.lab.worlds import STYLES, rationale, state
from cowest.recipe.config import WorldConfig
from cowest.types import Example

NAME: Final = "lineage"
LATEST: Final = (71, 99)
"""The years in which a question may be set; every town was founded before."""
LOOK_UPS: Final = 0.6
"""The share of training questions that ask for one fact, answered with it. The others are chains."""


@dataclass(frozen=True, slots=True)
class Link(Fact):
    """A fact whose value is the name in ``successor``, and no number."""

    @property
    def short(self) -> str:
        return f"{self.subject} {self.successor}"


@dataclass(frozen=True, slots=True)
class Lineage:
    """One world: who taught each pupil, where each teacher lived, when each town was founded, by subject."""

    taught: Mapping[str, Fact]
    lived: Mapping[str, Fact]
    founded: Mapping[str, Fact]

    @property
    def facts(self) -> tuple[Fact, ...]:
        return (*self.taught.values(), *self.lived.values(), *self.founded.values())

    def chain(self, start: str) -> tuple[Fact, ...]:
        """The facts from a pupil (three), a teacher (two) or a town (one) to the year."""
        found = list[Fact]()
        for facts in (self.taught, self.lived, self.founded):
            if start in facts:
                found.append(facts[start])
                start = facts[start].successor
        return tuple(found)


def invent_lineage(entities: int, rng: random.Random) -> Lineage:
    """A world of so many facts: half of pupils, a quarter each of teachers and towns, at least two of each."""
    few = max(2, entities // 4)
    many = max(3, entities - 2 * few)
    names = invent_many(rng, many + 2 * few)
    pupils, teachers, towns = names[:many], names[many : many + few], names[many + few :]
    taught = {p: _taught(p, rng.choice(teachers)) for p in pupils}
    lived = {t: _lived(t, rng.choice(towns)) for t in teachers}
    return Lineage(taught, lived, {t: _founded(t, rng.randint(30, 70)) for t in towns})


def _taught(pupil: str, teacher: str) -> Fact:
    return Link("taught", pupil, 0, (f"{teacher} taught {pupil}.", f"{pupil} was taught by {teacher}."), teacher)


def _lived(teacher: str, town: str) -> Fact:
    return Link("lived", teacher, 0, (f"{teacher} lived in {town}.", f"The town of {teacher} was {town}."), town)


def _founded(town: str, year: int) -> Fact:
    return Fact("founded", town, year, (f"{town} was founded in {year}.", f"The founding of {town} was in {year}."))


def look_ups(kind: str, subject: str) -> tuple[str, str]:
    """Two ways to ask for one fact."""
    return {
        "taught": (f"Who taught {subject}?", f"Who was the teacher of {subject}?"),
        "lived": (f"Where did {subject} live?", f"Which was the town of {subject}?"),
        "founded": (f"When was {subject} founded?", f"In which year was {subject} founded?"),
    }[kind]


def found(fact: Fact) -> str:
    """The answer to a look-up."""
    return fact.successor or f"year {fact.value}"


def look_up(fact: Fact, rng: random.Random) -> Question:
    """The question for one fact."""
    return Question(rng.choice(look_ups(fact.kind, fact.subject)), (fact,), "", found(fact))


def aged(chain: Sequence[Fact], year: int) -> Question:
    """How old the town at the end of a chain was in a year; raises ValueError for an empty chain."""
    if not chain:
        raise ValueError("a question needs a chain of facts")
    start, town = chain[0], chain[-1]
    of = {"taught": f"the town of {start.subject}'s teacher", "lived": f"the town of {start.subject}"}
    text = f"How old was {of.get(start.kind, start.subject)} in {year}?"
    return Question(text, tuple(chain), written_difference(year, town.value), f"{year - town.value} years")


def by_turns(facts: Iterable[Fact], count: int, rng: random.Random) -> list[Fact]:
    """So many facts, each as often as any other (but for one)."""
    deck, dealt = tuple(facts), list[Fact]()
    while len(dealt) < count:
        dealt += rng.sample(deck, len(deck))
    return dealt[:count]


def lineage_splits(settings: WorldConfig) -> Mapping[str, tuple[Example, ...]]:
    """The examples of a world. The same settings always give the same world.

    Training questions are look-ups of every fact, and chains, whose annotators write down the first fact or nothing: none has
    looked up the rest. With ``complete`` set, so many of them have, and wrote it all. Validation and test questions are chains of
    the same facts.

    Raises ValueError for a world that is too small for the questions asked of it.
    """
    rng = random.Random(f"cowest-world/{NAME}/{settings.seed or 0}")
    world = invent_lineage(settings.entities, rng)
    alone = max(round(settings.train * LOOK_UPS), len(world.facts))
    if alone > settings.train:
        raise ValueError(f"{settings.train} training questions do not reach all {alone} facts; raise 'train'")
    asked = [(start, year) for start in (*world.taught, *world.lived) for year in range(LATEST[0], LATEST[1] + 1)]
    sizes = {"train": settings.train - alone, "validation": settings.validation, "test": settings.test}
    if len(asked) < sum(sizes.values()):
        raise ValueError(f"a world this small has fewer than {sum(sizes.values())} distinct chains; raise 'entities'")
    rng.shuffle(asked)
    splits, whole = dict[str, tuple[Example, ...]](), settings.complete or 0.0
    for split, size in sizes.items():
        chains = [aged(world.chain(start), year) for start, year in asked[:size]]
        rows = [(q, rng.choices(STYLES, (whole, (1 - whole) / 2, (1 - whole) / 2))[0]) for q in chains]
        asked = asked[size:]
        if split == "train":
            rows += [(look_up(fact, rng), "complete") for fact in by_turns(world.facts, alone, rng)]
            rng.shuffle(rows)
        splits[split] = tuple(_written(f"{split}-{i:05d}", q, style, rng) for i, (q, style) in enumerate(rows))
    return splits


def _written(id_: str, question: Question, style: str, rng: random.Random) -> Example:
    text = state(question.facts[:1], rng) if style == "partial" else rationale(question, style, rng)[0]
    metadata = {"style": style, "facts": str(len(question.facts))}
    return Example(id=id_, input=question.text, references=(question.answer,), rationale=text, metadata=metadata)
