"""The guarded collaboration: for each query it is decided who answers, from what is known before the next call is paid."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cowest.collaboration.calls import CallFailed, Series, Tally
from cowest.collaboration.draft import ask_for_draft
from cowest.collaboration.guard.evidence import Arm, Evidence, Said, agreement, words_of
from cowest.collaboration.guard.policy import (
    ASKED,
    FREE,
    STRONG_FAILED,
    WEAK_FAILED,
    Candidate,
    Guard,
    next_step,
    reason_of,
)
from cowest.collaboration.refine import ask_to_refine
from cowest.models.window import Window
from cowest.protocols import ChatModel, Frames
from cowest.run.identity import fingerprint
from cowest.systems.calls import predict
from cowest.systems.confidence import confidence_of
from cowest.systems.spec import Parts
from cowest.types import Completion, Example, Prediction, RouteDecision, Sampling

Extract = Callable[[str, Example], str | None]
"""``Task.extract``: the answer in a text."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What is known of a query before the strong model is asked: the evidence, and the texts behind it.

    ``weak`` is None where the weak model's answer was cut off before a word, and ``draft`` where there is none to show.
    """

    evidence: Evidence
    weak: Completion | None
    draft: str | None


@dataclass(frozen=True, slots=True)
class Opinions:
    """Asks the arms, each as the systems ``weak``, ``strong`` and ``collab_aligned`` do, and reads how sure they are.

    ``drafter`` None: the weak model that answers alone drafts, too, so that one call is both. ``samples`` further answers of the
    weak model are drawn as ``sampled`` says, for their agreement. ``logprobs``: ask for them; a weak model that gives none is then
    a failed call of the kind ``no_logprobs``.
    """

    weak: ChatModel
    drafter: ChatModel | None
    open_strong: Callable[[], ChatModel]
    frames: Frames
    extract: Extract
    draft: Sampling
    answer: Sampling
    sampled: Sampling
    samples: int
    logprobs: bool
    seed: int
    weak_window: Window | None = None
    strong_window: Window | None = None

    async def begin(self, example: Example, tally: Tally) -> Opening:
        """All that costs no call of the strong model. Raises CallFailed where the weak model gives nothing to go by."""
        series, window = further_samples(self.seed, example), self.weak_window
        asked = self.frames.draft(example)
        weak = await self._cut_is_none(tally.ask(self.weak, asked, self._told(self.draft), "weak", window))
        drafted = weak
        if self.drafter is not None:
            sampling = self._told(self.draft)
            drafted = await self._cut_is_none(
                ask_for_draft(tally, self.drafter, self.frames, example, sampling, window)
            )
        if self.logprobs and weak is not None and weak.logprobs is None:
            raise CallFailed(
                f"no_logprobs: {self.weak.name} gives no log-probabilities, by which the guard knows how sure it is: set "
                "guard.confidence to false, and guard.samples to 4 or more"
            )
        others: list[Completion] = []
        if self.samples:
            others = await tally.sample(self.weak, asked, self.sampled, series, self.samples, "weak sample", window)
        one = self.said(weak, example)
        question, context = words_of(example)
        evidence = Evidence(
            question_words=question,
            context_words=context,
            agreement=agreement(one.answer, [self.extract(done.text, example) for done in others]),
            draft=self.said(drafted, example),
            arms={"weak": one},
        )
        return Opening(evidence, weak, None if drafted is None else drafted.text)

    async def ask(self, arm: Arm, example: Example, opening: Opening, tally: Tally) -> Completion | None:
        """The answer of an arm; None where it was cut off before a word. Raises CallFailed."""
        if arm == "weak":
            return opening.weak
        sampling, window = self._told(self.answer), self.strong_window
        if arm == "strong":
            asked = self.frames.solo(example)
            return await self._cut_is_none(tally.ask(self.open_strong(), asked, sampling, "solo", window))
        if opening.draft is None:
            return None
        tally.draft = opening.draft
        return await self._cut_is_none(
            ask_to_refine(tally, self.open_strong(), self.frames, example, opening.draft, sampling, window)
        )

    async def only(self, arm: Arm, example: Example, tally: Tally) -> Completion:
        """The answer of an arm that is asked whatever is known: the requests of the system ``weak``, ``strong`` or the pair."""
        if arm == "strong":
            asked = self.frames.solo(example)
            return await tally.ask(self.open_strong(), asked, self.answer, "solo", self.strong_window)
        writer = self.drafter or self.weak if arm == "both" else self.weak
        text = await ask_for_draft(tally, writer, self.frames, example, self.draft, self.weak_window)
        if arm == "weak":
            tally.draft = tally.draft_thinking = None
            return text
        return await ask_to_refine(
            tally, self.open_strong(), self.frames, example, text.text, self.answer, self.strong_window
        )

    def said(self, done: Completion | None, example: Example) -> Said:
        """A text as evidence."""
        if done is None:
            return Said()
        answer = self.extract(done.text, example)
        confidence = confidence_of(done, answer) if answer else None
        return Said(answer=answer, confidence=confidence, sureness=sureness_of(done), words=len(done.text.split()))

    def _told(self, sampling: Sampling) -> Sampling:
        return with_logprobs(sampling, self.logprobs)

    @staticmethod
    async def _cut_is_none(call: Awaitable[Completion]) -> Completion | None:
        try:
            return await call
        except CallFailed as error:
            if error.cut:
                return None
            raise


def with_logprobs(sampling: Sampling, wanted: bool) -> Sampling:
    """How a model is asked that is to say how sure it is of its tokens, where that is ``wanted``."""
    return sampling.model_copy(update={"logprobs": sampling.logprobs or 0}) if wanted else sampling


def further_samples(seed: int, example: Example) -> Series:
    """The seeds of the weak model's further answers: they follow from what is asked, as a server's queries have new ids."""
    turns = [f"{turn.role}: {turn.content}" for turn in example.turns]
    return Series(seed, "guard", fingerprint(example.input, example.context, *turns))


def sureness_of(done: Completion) -> float | None:
    """The geometric mean of the probabilities of a text's tokens; None where the model gave none."""
    if not done.logprobs:
        return None
    return min(1.0, math.exp(sum(token.logprob for token in done.logprobs) / len(done.logprobs)))


def opinions_of(p: Parts, weak: ChatModel, drafter: ChatModel | None, samples: int, logprobs: bool) -> Opinions:
    """The arms of a run, made of the parts of any system that has both models."""
    return Opinions(
        weak=weak,
        drafter=drafter,
        open_strong=p.open_strong,
        frames=p.own,
        extract=p.task.extract,
        draft=p.draft,
        answer=p.answer,
        sampled=p.sampled,
        samples=samples,
        logprobs=logprobs,
        seed=p.seed,
        weak_window=p.weak_window,
        strong_window=p.strong_window,
    )


def build_guarded(p: Parts) -> Guarded:
    """The row ``guarded`` or ``cascade`` of a run that has a guard."""
    guard = p.guard()
    drafter = None if guard.drafter == guard.weak else p.weak(guard.drafter)
    opinions = opinions_of(p, p.weak(guard.weak), drafter, guard.samples, guard.confidence)
    return Guarded(opinions, guard, guard.certificate(p.name).candidate, p.name)


@dataclass(frozen=True, slots=True)
class Guarded:
    """Implements :class:`cowest.protocols.System`: a query goes the way that a certified policy chooses for it.

    The weak model answers first; then it is decided whether its answer is taken, or the strong model asked, alone or with the
    draft; then whether one of the answers is taken, or the other way of asking tried, too
    (:mod:`cowest.collaboration.guard.policy`). The prediction's ``route`` says who answered, and which calls were made before.
    Where the weak model fails, the strong one answers alone (``weak_failed``).

    For a server: ``falls_back``, and where the strong model fails, the weak one's answer is taken (``strong_failed``); ``seen`` is
    told what is known of each query before the strong model is asked.
    """

    opinions: Opinions
    guard: Guard
    candidate: Candidate
    name: str
    falls_back: bool = False
    seen: Callable[[Evidence], None] | None = None

    async def answer(self, example: Example) -> Prediction:
        """Answer one query."""
        route: list[RouteDecision] = []

        async def steps(example: Example, tally: Tally) -> Completion:
            return await self._steps(example, tally, route)

        made = await predict(example, self.name, steps)
        return made.model_copy(update={"route": route[-1]}) if route else made

    async def _steps(self, example: Example, tally: Tally, route: list[RouteDecision]) -> Completion:
        only = self.candidate.only
        if only is not None and self.seen is None:  # nothing of the query is needed to decide
            route.append(RouteDecision(who=only, reason=ASKED[() if only == FREE else (only,)]))
            return await self.opinions.only(only, example, tally)
        try:
            opening = await self.opinions.begin(example, tally)
        except CallFailed:
            route.append(RouteDecision(who="strong", reason=WEAK_FAILED))
            return await self.opinions.only("strong", example, tally)
        evidence, said = opening.evidence, dict[Arm, Completion | None](weak=opening.weak)
        if self.seen is not None:
            self.seen(evidence)
        while not (step := next_step(self.guard.judged, self.candidate, evidence)).done:
            try:
                done = await self.opinions.ask(step.arm, example, opening, tally)
            except CallFailed:
                instead: Arm = "strong" if said.get("strong") is not None else "weak"
                other = said.get(instead)
                if not self.falls_back or other is None:
                    raise
                route.append(RouteDecision(who=instead, reason=STRONG_FAILED))
                tally.draft = None
                return other
            said[step.arm] = done
            arms = {**evidence.arms, step.arm: self.opinions.said(done, example)}
            evidence = evidence.model_copy(update={"arms": arms})
        route.append(RouteDecision(who=step.arm, reason=reason_of(evidence)))
        if step.arm != "both":
            tally.draft = None
        final = said[step.arm]
        if final is None:
            raise CallFailed(f"cut_off: {step.arm}: cut off before a word", cut=True)
        return final
