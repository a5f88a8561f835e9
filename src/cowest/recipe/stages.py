"""The recipe's sections of the other stages: drafts, feedback, pairs, rounds, evaluation; and its prompts."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from cowest.recipe.models import ModelConfig, Section
from cowest.types import Sampling

Format = str
"""The name of a draft format: direct, knowledge, chain_of_thought, or an installed package's."""


Turn = Literal["draft", "revise", "advise", "reply"]
"""What the weak model is asked for where it is trained: a draft, or its turn in an interaction."""


class DraftConfig(Section):
    """Stage sample: K drafts y ~ pi_w(.|x) for each training query (paper, step 2)."""

    format: Format = Field(
        default="chain_of_thought",
        description="What the weak model writes: direct (the answer), knowledge (what it knows), chain_of_thought (both), or an "
        "installed package's format.",
    )
    formats: tuple[Format, ...] = Field(
        default=(),
        description="Formats mixed in one query: draft k is asked for in the k-th, then from the first again, and SFT teaches each "
        "example in all of them. format is one of them, the one of pairs, evaluation and serving. Unset: format alone.",
    )
    turn: Turn = Field(
        default="draft",
        description="What the weak model is trained for. draft: its draft, the first turn of the collaboration. revise, advise, "
        "reply: its turn in collab_critique, collab_advise, collab_consult, after what the strong model has said before it, "
        "which is asked for once a query. docs/interactions.md",
    )
    samples: int = Field(default=4, ge=1, description="K, drafts a query.")
    queries: int | None = Field(
        default=None, ge=1, description="Training queries used; unset: all (with held_out: a third)."
    )
    held_out: bool = Field(
        default=False,
        description="Keep the drafted queries (the last 'queries' of training) out of SFT. A weak model that has learned their "
        "answers by heart drafts better on them than on any new query, and feedback on such drafts misleads.",
    )
    sampling: Sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=256)
    ladder: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(),
        description="Temperatures in place of the one of sampling: draft k of a query takes the k-th, then from the first again.",
    )
    redraw: int = Field(
        default=0,
        ge=0,
        description="Draw a draft again, so many times at most, that says the same as an earlier one of its query but for case, "
        "punctuation and articles; each try takes the ladder's next temperature.",
    )


Watch = Annotated[Literal["warn", "stop", "off"], BeforeValidator(lambda value: "off" if value is False else value)]
Expected = Annotated[
    Literal["off", "logprobs", "samples"], BeforeValidator(lambda value: "off" if value is False else value)
]
Adaptive = Annotated[Literal["off", "contrast"], BeforeValidator(lambda value: "off" if value is False else value)]
_WATCH = (
    "Compare the answers made with a draft with those of the strong model alone, first at 36 queries, then whenever their number "
    "has doubled: one class nearly always, no answer, cut off, drafts ignored or always copied. warn: say so with the numbers and "
    "two examples. stop: end there, with what was paid for kept; the same command with warn goes on."
)


class FeedbackConfig(Section):
    """Stage feedback: refine every draft, solo once a query, gain = score(refined) - score(solo) (steps 3 to 5)."""

    how: ClassVar[frozenset[str]] = frozenset({"mode", "watch"})

    metric: str | None = Field(default=None, description="The metric behind the score; unset: the task's first.")
    scorer: str | None = Field(
        default=None, description="What scores answers, in place of the metric: an installed package's scorer, by name."
    )
    sampling: Sampling = Sampling(temperature=0.0, max_tokens=512)
    mode: Literal["live", "batch"] = Field(
        default="live", description="batch: through the provider's batch API, within a day and at a lower price."
    )
    judge: ModelConfig | None = Field(
        default=None,
        description="A model that scores answers against the reference, instead of the metric (the paper's E).",
    )
    compare: tuple[ModelConfig, ...] = Field(
        default=(),
        description="Models that judge without a reference: each compares the answer made with a draft with the strong model's "
        "alone, in both orders. A draft is then worth how often its answer is preferred, and questions need no answers.",
    )
    watch: Watch = Field(default="warn", description=_WATCH)
    expect: Expected = Field(
        default="off",
        description="What a draft is worth: off: the score of one answer. logprobs: the expected score over the classes, from the "
        "log-probabilities of the answer's tokens, at no further call (sampling.logprobs alternatives of each, unset: 5); where "
        "answers are open, the probability of the reference in the answer's place, a reading for each by a local strong model. "
        "samples: the mean score of further answers, for endpoints without log-probabilities, and for open answers there.",
    )
    samples: int = Field(
        default=4, ge=1, description="expect: samples. Further answers to each request, alone and with each draft."
    )
    sample_temperature: float = Field(default=1.0, gt=0, description="expect: samples. Their temperature.")
    adaptive: Adaptive = Field(
        default="off",
        description="contrast: a query's drafts are refined one after another, in lots over the queries, until it gives a pair, "
        "and no more; drafts that are alike are refined once. With mode: batch a lot is a batch. off: every draft of every query.",
    )
    alike: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="adaptive: contrast. Drafts with the same answer whose words overlap by this (F1) are alike; 1: same words. "
        "Less saves more, and takes two that differ in one number of many words for one.",
    )
    calls: int | None = Field(
        default=None,
        ge=1,
        description="adaptive: contrast. Most strong calls of a round, first where a pair is likely, as the answers so far tell.",
    )

    @model_validator(mode="after")
    def _lots_want_answers(self) -> FeedbackConfig:
        if self.adaptive == "off" and self.calls is not None:
            raise ValueError("feedback.calls is a limit of `adaptive: contrast`; add that, or leave calls out")
        return self


class PairsConfig(Section):
    """Stage pairs: gains -> (x, chosen, rejected) (step 6)."""

    rule: Literal["paper", "ordered"] = Field(
        default="ordered",
        description="paper: chosen has gain > 0, rejected gain <= 0. ordered: any two drafts whose gains differ by "
        "min_margin or more, which also teaches not to hurt where the strong model is right alone.",
    )
    min_margin: float = Field(default=0.05, gt=0, description="Least difference of gains (rule ordered).")
    max_per_query: int = Field(default=4, ge=1, description="Most pairs of one query, widest margin first.")
    limit: int | None = Field(
        default=None,
        ge=1,
        description="Most pairs in all, chosen at random; a smaller choice is a part of a larger one.",
    )
    signal: str = Field(
        default="collaboration",
        description="What makes a draft chosen; installed packages add signals. collaboration: its gain. outcome: the score of the "
        "refined answer, which needs no answers of the strong model alone. better: what the refined answer has more than the "
        "better of the strong model alone and the draft. draft: the score of the draft alone, as in RLWF, which never asks what "
        "the strong model makes of it; checkpoints are then chosen by the weak model's own score. docs/signals.md: which when.",
    )
    price_per_word: float = Field(
        default=0.0,
        ge=0,
        description="Taken off a draft's worth for each of its words, in units of the score: of two that help alike, the shorter "
        "one is chosen.",
    )
    price_per_usd: float = Field(
        default=0.0,
        ge=0,
        description="The same for each USD that the draft's tokens cost in the strong model's prompt, in units of the score; wants "
        "a price of that model.",
    )
    collected_weight: float = Field(
        default=1.0,
        gt=0,
        description="How much a pair of `cowest collect` (task.collected: what people preferred) counts in alignment, beside 1 for "
        "a pair of drafts.",
    )


class RoundsConfig(Section):
    """The loop: sample, feedback, pairs and align again, with the weak model that the rounds before have left."""

    most: int = Field(default=1, ge=1, description="Rounds at most. 1 is the paper's: one, offline.")
    stop: Literal["no_gain", "test", "never"] = Field(
        default="no_gain",
        description="When the loop ends before. no_gain: after a round whose best checkpoint scores no higher on the validation "
        "queries than the best so far. test: after one that is not shown to be better (paired test, p < 0.05). never: only after "
        "a round without pairs.",
    )
    strong_calls: int | None = Field(
        default=None,
        ge=1,
        description="Most different strong calls of feedback, rounds together: no further round that could take more. The first is "
        "always made whole.",
    )
    queries: Literal["same", "next"] = Field(
        default="same",
        description="same: every round drafts for the same training queries. next: each for the next draft.queries of them, from "
        "the first again when all are used up; with draft.held_out those of all rounds are kept out of SFT.",
    )
    pairs: Literal["fresh", "all"] = Field(
        default="fresh", description="A round learns from its own pairs, or from those of earlier rounds, too."
    )
    choose: Literal["each", "last"] = Field(
        default="each",
        description="each: every round scores its checkpoints on validation queries, and the best model so far drafts in the next. "
        "last: only the last round does; each before it leaves its last checkpoint unasked, so that short rounds (new drafts every "
        "align.max_steps steps: semi-online) cost no validation calls. Wants `stop: never`.",
    )
    reference: Literal["previous", "sft"] = Field(
        default="previous",
        description="What a round's alignment starts from and is pulled to: the best model of the rounds before, or the SFT model "
        "(then with `pairs: all`, so that it learns again what earlier rounds have taught).",
    )


class EvaluateConfig(Section):
    """Stage evaluate: the systems on held-out test queries."""

    how: ClassVar[frozenset[str]] = frozenset({"watch"})

    systems: tuple[str, ...] = Field(
        default=("weak", "strong", "collab", "collab_aligned"),
        min_length=1,
        description="Any that `cowest table --list` names, but those with a weak model of their own.",
    )
    queries: int | None = Field(default=None, ge=1, description="Test queries used; unset: all.")
    draft: Sampling = Field(default=Sampling(temperature=0.0, max_tokens=256), description="How a draft is decoded.")
    answer: Sampling = Field(default=Sampling(temperature=0.0, max_tokens=512), description="How the strong model is.")
    watch: Watch = Field(default="warn", description=_WATCH)


class GuardConfig(Section):
    """`cowest guard`: whom to ask, learned and certified on queries that trained nothing. docs/guard.md."""

    risk: float = Field(
        default=0.02,
        gt=0,
        lt=1,
        description="How much worse than the better model alone, in units of the score (0 to 1).",
    )
    delta: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="With which probability, over calibration sets, the promise may fail to hold.",
    )
    samples: int = Field(
        default=4,
        ge=0,
        le=64,
        description="Further answers of the weak model, drawn as draft.sampling says: how many of them agree tells how sure it is.",
    )
    confidence: bool = Field(
        default=True, description="Ask both models for log-probabilities, which the weak model has to give then."
    )
    queries: int | None = Field(
        default=None, ge=1, description="Calibration queries at most; unset: all that there are."
    )

    @model_validator(mode="after")
    def _something_to_go_by(self) -> GuardConfig:
        if not self.confidence and self.samples < 2:
            raise ValueError(
                f"guard.confidence: false leaves the agreement of samples to go by, and guard.samples is {self.samples}: set it to "
                "4 or more"
            )
        return self


class InteractionPrompts(Section):
    """Your own turns of the interactions (docs/interactions.md).

    ``{input}``, ``{context}`` and ``{instruction}`` are filled in, and what each turn is about.
    """

    critique: str | None = Field(default=None, description="The strong model on {draft}.")
    revise: str | None = Field(default=None, description="The weak model with its {draft} and the {critique}.")
    advise: str | None = Field(default=None, description="The weak model on the strong one's {attempt}.")
    decide: str | None = Field(default=None, description="The strong model with its {attempt} and the {advice}.")
    consult: str | None = Field(
        default=None, description="The strong model, which may ask up to {questions} times by a line 'ASK: ...'."
    )
    consulted: str | None = Field(default=None, description="The weak model, asked the {question}.")
    several: str | None = Field(default=None, description="The strong model with several {drafts}.")


class PromptsConfig(Section):
    """Your own frames. ``{input}``, ``{context}``, ``{instruction}`` and (in refine) ``{draft}`` are filled in."""

    draft: str | None = None
    solo: str | None = None
    refine: str | None = None
    reasons: bool = Field(
        default=True,
        description="Without templates: the strong model thinks in words before it answers, alone and with a draft alike. false: "
        "it answers at once, which small models do better (try both on training questions: python -m benchmarks.frames).",
    )
    interactions: InteractionPrompts = InteractionPrompts()
