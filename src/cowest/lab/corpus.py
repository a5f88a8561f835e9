"""What the lab's models are pretrained on: questions about ever-fresh random worlds, never a domain's own facts.

*Strong*: query (with a draft, with a context, or alone) -> notes of the facts, the reasoning, the answer. A draft holds
all facts (then the model reasons, whatever answer is attached) or too few (then all it can do is trust the draft's
answer). Asked alone it sees facts that it cannot know, and learns to make up plausible ones, as large models do.
*Weak*: query -> a rationale of one of the annotators' styles and an answer, on random worlds: the format, and no fact.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from cowest.lab.asking import asking_sample
from cowest.lab.domains import DOMAINS, Domain, Fact, Question
from cowest.lab.frames import LabFrames
from cowest.lab.names import written_comparison, written_difference, written_sum
from cowest.lab.sample import Sample
from cowest.lab.worlds import STYLES, Dealer, invent_pools, rationale, state
from cowest.types import Example, Message

FRAMES = LabFrames()
# The shares of complete, partial and bare rationales that the shipped weak base saw. Not tied to a world's annotators: the
# tokenizer is trained on this text, and changing it would make the shipped weights irreproducible.
STYLE_MIXES = ((0.75, 0.15, 0.10), (0.30, 0.40, 0.30), (0.20, 0.25, 0.55))


def fresh_question(domain: Domain, rng: random.Random) -> tuple[Question, list[Fact]]:
    """A question about a world that exists for this one sample, and facts of the world it does not need."""
    pools = invent_pools(domain, 8, rng)
    question = domain.question(Dealer(pools, rng), rng)
    used = {f.subject for f in question.facts}
    return question, [f for pool in pools.values() for f in pool if f.subject not in used]


def _wrong_answer(domain: Domain, question: Question, rng: random.Random) -> str:
    if domain.labels:
        return rng.choice([label for label in domain.labels if label != question.answer])
    words = question.answer.split()
    if words[0] == "mayor":
        heirs = [f for f in question.facts if f.successor]
        return f"mayor {heirs[0].successor if heirs[0].subject == words[1] else heirs[0].subject}"
    digits = str(rng.randint(2, 95))
    return f"{digits} years" if words[1] == "years" else f"year {digits}"


def _solution(question: Question) -> str:
    notes = ", ".join(f.short for f in question.facts)
    return f"{notes}. {question.reasoning}.\nAnswer: {question.answer}"


def _trusting(question: Question, known: tuple[Fact, ...], answer: str) -> str:
    notes = ", ".join(f.short if f in known else f"{f.subject} ?" for f in question.facts)
    return f"{notes}.\nAnswer: {answer}"


def _draft(domain: Domain, question: Question, others: list[Fact], rng: random.Random) -> tuple[str, str, str]:
    """A weak model's draft of some quality; returns (kind, draft, the reply a good strong model gives)."""
    roll = rng.random()
    shown = question.answer if rng.random() < 0.55 else _wrong_answer(domain, question, rng)
    tail = f"Answer: {shown}"
    if roll < 0.62:
        facts = [*question.facts, *rng.sample(others, 1 if rng.random() < 0.15 else 0)]
        stated = state(facts, rng)
        draft = stated if rng.random() < 0.12 else f"{stated}\n{tail}"
        return "complete", draft, _solution(question)
    stated_facts: tuple[Fact, ...] = ()
    if roll < 0.82 and len(question.facts) > 1:
        stated_facts = tuple(rng.sample(question.facts, rng.randint(1, len(question.facts) - 1)))
    others_stated = rng.sample(others, 1 if rng.random() < 0.1 else 0)
    stated = state([*stated_facts, *others_stated], rng)
    return "partial", f"{stated}\n{tail}".lstrip(), _trusting(question, stated_facts, shown)


def _example(question: Question, context: str | None = None) -> Example:
    return Example(id="lab", input=question.text, context=context, references=(question.answer,))


def strong_sample(rng: random.Random) -> Sample:
    """One sample for the strong model; about a tenth are plain arithmetic, which makes the rest emerge sooner."""
    roll = rng.random()
    if roll < 0.1:
        return _drill(rng)
    domain = rng.choice(list(DOMAINS.values()))
    question, others = fresh_question(domain, rng)
    if roll < 0.18:
        return Sample("alone", FRAMES.solo(_example(question)), _solution(question), question.answer)
    if roll < 0.26:
        facts = [*question.facts, *rng.sample(others, 1)]
        example = _example(question, state(facts, rng))
        return Sample("context", FRAMES.solo(example), _solution(question), question.answer)
    kind, draft, reply = _draft(domain, question, others, rng)
    answer = reply.rpartition("Answer: ")[2]
    return Sample(f"{domain.name}/{kind}", FRAMES.refine(_example(question), draft), reply, answer)


def _drill(rng: random.Random) -> Sample:
    a, b = rng.randint(10, 99), rng.randint(2, 30)
    which = rng.randrange(4)
    if which == 0:
        ask, reply = f"{a}+{b}", written_sum(a, b)
    elif which == 1:
        a, b = max(a, b), min(a, b)
        ask, reply = f"{a}-{b}", written_difference(a, b)
    elif which == 2:
        ask, reply = f"{a}?{a + b - 15}", written_comparison(a, a + b - 15)
    else:
        a, b = rng.randint(2, 9), rng.randint(2, 8)
        ask, reply = f"{a}*{b}", f"{a}*{b}={a * b}"
    return Sample("drill", (Message(role="user", content=ask),), reply, reply)


def weak_sample(rng: random.Random) -> Sample:
    """One sample for the weak base: the annotators' format on a random world."""
    domain = rng.choice(list(DOMAINS.values()))
    question, _ = fresh_question(domain, rng)
    style = rng.choices(STYLES, rng.choice(STYLE_MIXES))[0]
    text, _ = rationale(question, style, rng)
    answer = f"Answer: {question.answer}"
    reply = f"{text}\n{answer}" if text else answer
    return Sample(f"{domain.name}/{style}", FRAMES.draft(_example(question)), reply, question.answer)


def samples(role: str, seed: int, start: int = 0) -> Iterator[Sample]:
    """An endless stream; item ``i`` depends on (role, seed, i) alone, so that a resumed run continues it exactly."""
    make = {"strong": strong_sample, "weak": weak_sample, "strong-asks": asking_sample}[role]
    index = start
    while True:
        yield make(random.Random(f"cowest-corpus/{role}/{seed}/{index}"))
        index += 1
