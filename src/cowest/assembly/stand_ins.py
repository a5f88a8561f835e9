"""A system without its models: what it would ask, of whom, in which order. For ``cowest prompts``, estimates and tests.

The models are stand-ins that keep what they are asked and answer as a good model would: a draft or an answer is the query's
SFT target, a judgement is "yes", a choice is 1. So the messages are the real ones, but for the texts of models in them. Where a
system may do more or less, ``busy`` stand-ins have it do more: sampled drafts differ, and a model that may ask asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Literal

from cowest.assembly.context import Context
from cowest.assembly.systems import Retrievers, build_system, optimised_frames
from cowest.collaboration.guard.evidence import ARMS, Arm
from cowest.collaboration.guard.policy import Candidate, Certificate, Guard, Judgement, Judgements, Predictor
from cowest.models.tools import call_text
from cowest.protocols import ChatModel, Frames, Retriever, Task
from cowest.recipe.config import RunConfig
from cowest.systems.optimised import optimised_file
from cowest.systems.spec import Index, SystemSpec, Which
from cowest.types import Completion, Example, Message, Passage, Prediction, Sampling, TokenLogprob, Tooled, Usage


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a system, for ``example``.

    ``model`` is "strong", the weak model's stage ("weak (base)", "weak (sft)", "weak (aligned)"), or "specialist NAME".
    """

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    example: Example


@dataclass(slots=True)
class StandIn:
    """Implements :class:`cowest.protocols.ChatModel`. ``sure`` is the probability that its tokens claim to have."""

    name: str
    task: Task
    example: Example
    asked: list[Asked] = field(default_factory=list)
    sure: float = 1.0
    busy: bool = True

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Keep the request and answer it."""
        self.asked.append(Asked(self.name, tuple(messages), sampling, self.example))
        text = self._text(sampling)
        return Completion(
            text=text,
            usage=Usage(calls=1, cost_usd=0.0),
            logprobs=_logprobs(text, self.sure) if sampling.logprobs is not None else None,
        )

    def _text(self, sampling: Sampling) -> str:
        if self.busy and isinstance(sampling, Tooled) and sampling.may_call:
            return call_text(sampling.tool, f"{len(self.asked)}. {self.example.input}")
        target = self.task.target(self.example)
        draws = self.busy and sampling.temperature > 0 and self.name.startswith("weak")
        return f"{len(self.asked)}. {target}" if draws else target

    async def aclose(self) -> None:
        """Nothing to release."""


def _logprobs(text: str, sure: float) -> tuple[TokenLogprob, ...]:
    words = text.split(" ")
    tokens = [word if i == 0 else f" {word}" for i, word in enumerate(words)]
    return tuple(TokenLogprob(token=token, logprob=log(sure)) for token in tokens)


class _Nearest:
    """In place of a dense index, whose encoder need not be here: the passages that BM25 finds."""

    def __init__(self, bm25: Callable[[], Retriever]) -> None:
        self._bm25 = bm25

    def search(self, query: str, k: int) -> Sequence[Passage]:
        return self._bm25().search(query, k)


def stand_in_guard(config: RunConfig, sure: float) -> Guard:
    """A guard that asks the weak model alone; for ``sure`` below 1/2 one that asks for all evidence, and the strong model twice."""
    weak: Literal["base", "sft"] = "sft" if config.weak.trainable else "base"
    aligns = config.weak.trainable and config.align.objective != "off"
    best: dict[str, Arm] = {
        "weak": "both",
        "weak+strong": "strong",
        "weak+both": "strong",
        "weak+strong+both": "strong",
    }
    states = {state: _judgement(arm) for state, arm in best.items()}
    costs: dict[Arm, float] = {"weak": 0.0, "strong": 1.0, "both": 1.0}
    judged = Judgements(states=states, costs=costs, base="weak")
    candidate = Candidate(only="weak") if sure >= 0.5 else Candidate()
    any_ = Certificate(candidate=candidate, kept=False, p=1.0, score=0.0, calls=0.0, cost=0.0, answered={})
    return Guard(
        risk=config.guard.risk,
        delta=config.guard.delta,
        judged=judged,
        guarded=any_,
        cascade=any_,
        tried=(),
        alone={},
        learned_from=0,
        certified_on=0,
        weak=weak,
        drafter="aligned" if aligns else weak,
        samples=config.guard.samples,
        confidence=config.guard.confidence,
    )


def _judgement(best: Arm) -> Judgement:
    """What expects most of one arm, whatever is known of the query."""
    arms = {arm: Predictor(bias=1.0 if arm == best else -1.0, weights=()) for arm in ARMS}
    return Judgement(names=(), means=(), scales=(), arms=arms)


async def dry_run(
    context: Context, spec: SystemSpec, example: Example, retrievers: Retrievers, sure: float = 1.0, busy: bool = True
) -> tuple[Prediction, list[Asked]]:
    """Answer one query with stand-ins.

    ``sure`` below FLARE's threshold makes it look things up, and below 1/2 a guard asks the strong model both ways.
    """
    asked: list[Asked] = []

    def strong() -> StandIn:
        return StandIn("strong", context.task, example, asked, sure, busy)

    def weak(which: Which) -> StandIn:
        return StandIn(f"weak ({which})", context.task, example, asked, sure, busy)

    def retriever(kind: Index) -> Retriever:
        def bm25() -> Retriever:
            return retrievers.of("bm25", context)

        return bm25() if kind == "bm25" else _Nearest(bm25)

    def drafted() -> Mapping[str, str]:
        return {e.id: context.task.target(e) for e in context.task.examples("train")}

    def specialists() -> Mapping[str, ChatModel]:
        names = context.models.sources.specialists
        return {n: StandIn(f"specialist {n}", context.task, example, asked, sure, busy) for n in names}

    def guard() -> Guard:
        return stand_in_guard(context.config, sure)

    def optimised() -> Frames:
        there = context.path(optimised_file(spec.name)).is_file()
        return optimised_frames(context, spec.name) if there else context.frames

    system = build_system(
        context, spec, strong, weak, retriever, drafted, specialists, guard=guard, optimised=optimised
    )
    return await system.answer(example), asked
