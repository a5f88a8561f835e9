"""Worlds: a seed invents a domain's facts and asks disjoint train, validation and test questions about them.

Training rationales vary in quality the way annotators do: each main entity belongs to one of three annotators (careful,
average, hurried), who write complete rationales, partial ones (one fact) or the bare answer in different proportions.
The SFT weak model learns all three; which of them *helps* the strong model is what alignment has to discover.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cowest.lab.domains import WORLD_DOMAINS, Domain, Fact, Question
from cowest.lab.names import invent_many
from cowest.recipe.config import WorldConfig
from cowest.types import Example

STYLES = ("complete", "partial", "answer_only")
ANNOTATORS: Mapping[str, tuple[float, float, float]] = {
    "careful": (0.75, 0.15, 0.10),
    "average": (0.42, 0.30, 0.28),
    "hurried": (0.20, 0.25, 0.55),
}


@dataclass(frozen=True, slots=True)
class World:
    """The examples of each split, and the share of facts that no training rationale states (0 by default)."""

    domain: Domain
    splits: Mapping[str, tuple[Example, ...]]
    unseen_facts: float


def state(facts: Sequence[Fact], rng: random.Random) -> str:
    """The facts as sentences, each in one of its phrasings, in random order."""
    sentences = [rng.choice(f.phrasings) for f in facts]
    rng.shuffle(sentences)
    return " ".join(sentences)


class Dealer:
    """Deals facts evenly: each kind has a shuffled deck that is refilled when it runs out."""

    def __init__(self, pools: Mapping[str, Sequence[Fact]], rng: random.Random) -> None:
        self._pools, self._rng = pools, rng
        self._decks: dict[str, list[Fact]] = {kind: [] for kind in pools}
        self._held: set[str] = set()

    def restart(self) -> None:
        self._held.clear()

    def __call__(self, kind: str) -> Fact:
        deck = self._decks[kind]
        for _ in range(3 * len(self._pools[kind]) + 3):
            if not deck:
                deck.extend(self._pools[kind])
                self._rng.shuffle(deck)
            fact = deck.pop()
            if fact.subject not in self._held:
                self._held.add(fact.subject)
                return fact
        raise ValueError(f"a question needs more facts of kind {kind!r} than the world has; raise 'entities'")


def invent_pools(domain: Domain, entities: int, rng: random.Random) -> dict[str, list[Fact]]:
    """The facts of a world by kind, at least three of each."""
    names = iter(invent_many(rng, entities + 3 * len(domain.kinds)))
    return {
        kind: [domain.fact(kind, next(names), rng) for _ in range(max(3, round(entities * share)))]
        for kind, share in domain.kinds.items()
    }


def _distinct(domain: Domain, dealer: Dealer, rng: random.Random, count: int) -> list[Question]:
    found: dict[str, Question] = {}
    for _ in range(20 * count + 100):
        if len(found) == count:
            return list(found.values())
        dealer.restart()
        question = domain.question(dealer, rng)
        found.setdefault(question.text, question)
    raise ValueError(f"a {domain.name} world this small has fewer than {count} distinct questions; raise 'entities'")


def rationale(question: Question, style: str, rng: random.Random) -> tuple[str | None, tuple[Fact, ...]]:
    """What an annotator of this style writes before the answer, and the facts it states."""
    if style == "answer_only":
        return None, ()
    facts = question.facts if style == "complete" else (rng.choice(question.facts),)
    return state(facts, rng), facts


def _style(settings: WorldConfig, annotator: str, rng: random.Random) -> str:
    weights = ANNOTATORS[annotator]
    if settings.complete is not None:
        weights = (settings.complete, (1 - settings.complete) / 2, (1 - settings.complete) / 2)
    return rng.choices(STYLES, weights)[0]


def make_world(domain_name: str, settings: WorldConfig) -> World:
    """Invent a world. The same settings always give the same world.

    Raises ValueError for an unknown domain, or for one too small for the questions asked of it.
    """
    if domain_name not in WORLD_DOMAINS:
        raise ValueError(f"unknown lab domain {domain_name!r}; there are {', '.join(WORLD_DOMAINS)}")
    domain = WORLD_DOMAINS[domain_name]
    rng = random.Random(f"cowest-world/{domain_name}/{settings.seed or 0}")
    pools = invent_pools(domain, settings.entities, rng)
    dealer = Dealer(pools, rng)
    sizes = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    questions = _distinct(domain, dealer, rng, sum(sizes.values()))
    annotators = {f.subject: rng.choice(list(ANNOTATORS)) for pool in pools.values() for f in pool}
    styles = [_style(settings, annotators[q.facts[0].subject], rng) for q in questions]
    _cover(questions[: settings.train], styles)
    splits: dict[str, tuple[Example, ...]] = {}
    seen: set[str] = set()
    start = 0
    for split, size in sizes.items():
        rows = []
        for i in range(start, start + size):
            example, stated = _example(domain, split, i - start, questions[i], styles[i], settings.noise, rng)
            rows.append(example)
            if split == "train":
                seen |= {f.subject for f in stated}
        splits[split] = tuple(rows)
        start += size
    asked = {f.subject for q in questions[settings.train :] for f in q.facts}
    return World(domain, splits, unseen_facts=len(asked - seen) / max(1, len(asked)))


def _cover(train: Sequence[Question], styles: list[str]) -> None:
    """Make the first training question about each fact complete, so that no fact stays unstated."""
    covered: set[str] = set()
    for i, question in enumerate(train):
        subjects = {f.subject for f in question.facts}
        if not subjects <= covered:
            styles[i] = "complete"
            covered |= subjects


def _example(
    domain: Domain, split: str, index: int, question: Question, style: str, noise: float, rng: random.Random
) -> tuple[Example, tuple[Fact, ...]]:
    text, stated = rationale(question, style, rng)
    reference = question.answer
    if split == "train" and domain.labels and rng.random() < noise:
        reference = rng.choice([label for label in domain.labels if label != reference])
    example = Example(
        id=f"{split}-{index:05d}",
        input=question.text,
        references=(reference,),
        choices=domain.labels,
        rationale=text,
        metadata={"style": style, "facts": str(len(question.facts))},
    )
    return example, stated
