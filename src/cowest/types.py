"""The records that flow through the pipeline: frozen, typed, and the same in memory and on disk.

Order of appearance in a run::

    Example -> Draft -> Refinement -> Score -> Feedback(.gain) -> PreferencePair(.margin)
    Example -> Prediction -> SystemResult

Each record is one JSON line in the run directory (``model_dump_json`` / ``model_validate_json``).
Failure is data: a part that could not be produced is ``None`` beside a reason in ``error``; it is never
an empty string, 0 or NaN.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Role = Literal["system", "user", "assistant"]


def _is_none(value: object) -> bool:
    """Of a field that newer versions add: left out of a file where it says nothing, which is then as it was before."""
    return value is None


def _is_empty(value: object) -> bool:
    return not value


class Record(BaseModel):
    """Base of all records: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str


class Sampling(Record):
    """How a completion is to be sampled. ``temperature`` 0 means greedy decoding.

    ``logprobs`` asks for the log-probabilities of the chosen tokens and of that many alternatives; ``json_schema`` asks for a
    JSON answer of that schema. A model that cannot give one of them answers without it.
    """

    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    max_tokens: int = Field(default=512, ge=1)
    seed: int | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)
    json_schema: dict[str, JsonValue] | None = None


class Given(Sampling):
    """No answer is asked for but a reading: how likely the model is to say ``given`` when it has begun with ``before``.

    The completion's text is ``given``, and its ``logprobs`` has each of its tokens with its natural-log probability at
    temperature 1; a model that cannot do that answers without them. ``max_tokens`` and the seed have no meaning here.
    """

    before: str = ""
    given: str = Field(min_length=1)


class Tool(Record):
    """What a model may call in place of answering, with one text, its ``argument``; ``about`` tells the model what it is for.

    ``mark`` begins the line that is a call where a call is text (:mod:`cowest.models.tools`).
    """

    name: str = Field(pattern=r"^[a-z_]{1,40}$")
    about: str
    argument: str = Field(pattern=r"^[a-z_]{1,40}$")
    mark: str = Field(min_length=1)


class Tooled(Sampling):
    """The model may call ``tool`` in place of answering; its call is the line of text that one without tool calls writes itself.

    ``may_call`` False: it has called in earlier turns, and is to answer now.
    """

    tool: Tool
    may_call: bool = True


class Held(Sampling):
    """The answer is held to ``grammar`` (:mod:`cowest.models.held`), token by token; cut off by ``max_tokens`` it is a beginning.

    Only for a :class:`cowest.protocols.HoldingChatModel`.
    """

    grammar: str


class Request(Record):
    """What one call asks a model."""

    messages: tuple[Message, ...]
    sampling: Sampling


class Usage(Record):
    """What calls consumed; additive. ``cost_usd`` is ``None`` where the price is unknown (never 0).

    ``reasoning_tokens`` are a part of ``output_tokens``: hidden thinking that is paid for. ``estimated_calls`` of the calls came
    without a token count from the endpoint, so that theirs is an approximation.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    estimated_calls: int = 0
    cost_usd: float | None = None

    def __add__(self, other: Usage) -> Usage:
        costs = [u.cost_usd for u in (self, other) if u.calls]
        known = [c for c in costs if c is not None]
        return Usage(
            calls=self.calls + other.calls,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            estimated_calls=self.estimated_calls + other.estimated_calls,
            cost_usd=sum(known) if costs and len(known) == len(costs) else None,
        )


class TokenLogprob(Record):
    """One generated token with its natural-log probability and the likeliest alternatives."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Attempt(Record):
    """One HTTP request of a call. ``outcome`` is ``ok`` or the failure's kind.

    ``usage`` is what the endpoint answered with (``calls`` 1 where it counts as paid, also for an answer that is of no use).
    ``maybe_paid``: the request was sent and its answer never came (time-out, broken connection), so the bill may hold it.
    ``reservation`` is the budget's, see :mod:`cowest.ledger.ledger`. ``at`` is Unix time.
    """

    at: float
    latency_s: float
    outcome: str
    usage: Usage = Usage()
    maybe_paid: bool = False
    reservation: int | None = None


class Completion(Record):
    """A model's answer to one request. ``latency_s`` is wall-clock seconds, retries included; not the wait for a free place.

    ``usage`` is that of this answer alone; what failed attempts before it cost is in ``attempts``, whose last is this one.
    ``thinking`` is what a server has split off from the text. A model without such a server writes it into its text, from which
    :func:`cowest.models.answer.visible` takes it.
    """

    text: str
    thinking: str | None = None
    finish_reason: str = "stop"
    usage: Usage = Usage()
    latency_s: float = 0.0
    logprobs: tuple[TokenLogprob, ...] | None = None
    attempts: tuple[Attempt, ...] = ()

    @property
    def whole(self) -> str:
        """The text with the thinking in it, as a model without a server's parser writes it: what the ledger keeps."""
        return self.text if self.thinking is None else f"<think>\n{self.thinking}\n</think>\n\n{self.text}"


class Example(Record):
    """One query x with its reference answers (any of which is right); none where judges compare answers (``feedback.compare``).

    ``turns`` came before the query in a conversation, oldest first: every frame puts them before its own
    (:func:`cowest.models.turns.in_conversation`). ``target`` is the whole text to be learned, where the data has one that is no
    rationale and answer (a row of ``messages`` that ends with the assistant's).
    """

    id: str
    input: str
    turns: tuple[Message, ...] = Field(default=(), exclude_if=_is_empty)
    context: str | None = None
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    rationale: str | None = None
    target: str | None = Field(default=None, exclude_if=_is_none)
    metadata: dict[str, str] = Field(default_factory=dict)


class Passage(Record):
    """A text that a retriever found; a higher ``score`` is better, and scores of one search only compare with each other."""

    id: str
    text: str
    score: float


class Draft(Record):
    """The weak model's y ~ pi_w(.|x); ``index`` counts the samples of one query from 0.

    ``thinking`` was hidden before the text, and goes to nobody. ``truncated`` as in :class:`Refinement`. ``redrawn``: how often it
    was drawn again, since it was like an earlier one (``draft.redraw``); ``usage`` is that of all tries.
    """

    id: str
    example_id: str
    index: int
    text: str | None
    thinking: str | None = None
    truncated: bool = False
    error: str | None = None
    usage: Usage = Usage()
    latency_s: float = 0.0
    redrawn: int = Field(default=0, exclude_if=_is_empty)


class Classes(Record):
    """How probable each class was where an answer stands in its text: characters ``start`` to ``end``. They add up to 1."""

    start: int
    end: int
    probabilities: dict[str, float]


class Sample(Record):
    """A further answer to the same request, drawn at a temperature; ``truncated`` and ``error`` as in :class:`Refinement`."""

    text: str | None
    truncated: bool = False
    error: str | None = None


class Likelihood(Record):
    """How likely the model is to give a reference in place of its own answer: exp of the mean log-probability of its tokens.

    ``value`` is in (0, 1]; None where it could not be read, and ``error`` says why.
    """

    reference: str
    value: float | None = Field(ge=0, le=1)
    error: str | None = None


class Refinement(Record):
    """The strong model's answer: y* ~ pi_s(.|x, y) with a draft, z ~ pi_s(.|x) where ``draft_id`` is None.

    ``classes``, ``samples`` or ``likelihoods`` are there where the expected score is asked for (``feedback.expect``); ``usage`` is
    then that of all calls.

    ``truncated``: the text was cut off at max_tokens; where it holds no answer it is unscored, not wrong. ``text`` is None and
    ``error`` too where it was cut off within its ``thinking``: that is no failed call, and it is not asked again.
    """

    example_id: str
    draft_id: str | None
    text: str | None
    thinking: str | None = None
    truncated: bool = False
    error: str | None = None
    usage: Usage = Usage()
    latency_s: float = 0.0
    classes: Classes | None = Field(default=None, exclude_if=_is_none)
    samples: tuple[Sample, ...] = Field(default=(), exclude_if=_is_empty)
    likelihoods: tuple[Likelihood, ...] = Field(default=(), exclude_if=_is_empty)


class Score(Record):
    """E(answer, x). ``value`` is None where no score could be given, and ``error`` says why.

    ``expected``: the mean score of the answers that the model may give, by their probabilities, where that was asked for
    (``feedback.expect``) and could be told. It stands for ``value`` in what a draft is ``worth``.
    """

    value: float | None
    expected: float | None = Field(default=None, exclude_if=_is_none)
    answer: str | None = None
    explanation: str | None = None
    error: str | None = None

    @property
    def worth(self) -> float | None:
        """The expected score where there is one, else the score of the one answer."""
        return self.value if self.expected is None else self.expected


class Feedback(Record):
    """Scores of one draft's refinement, of the strong model alone and of the draft itself."""

    example_id: str
    draft_id: str
    refined: Score
    solo: Score
    weak: Score

    @property
    def gain(self) -> float | None:
        """Collaborative feedback E(y*, x) - E(z, x) (paper, step 5); None when a part is unscored."""
        if self.refined.worth is None or self.solo.worth is None:
            return None
        return self.refined.worth - self.solo.worth


class PreferencePair(Record):
    """(x, y+, y-) in TRL's conversational preference format, with the gains that made it.

    ``weight``: how much it counts in alignment, beside others (None: 1).
    """

    example_id: str
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    chosen_gain: float
    rejected_gain: float
    weight: float | None = Field(default=None, exclude_if=_is_none)

    @property
    def margin(self) -> float:
        """chosen_gain - rejected_gain, in units of the scorer."""
        return self.chosen_gain - self.rejected_gain


class LabelledDraft(Record):
    """(x, y) and whether y is one to write, in TRL's conversational unpaired preference format.

    ``worth`` is what the signal says of the draft, ``baseline`` what it was compared with, both in units of the scorer.
    """

    example_id: str
    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    label: bool
    worth: float
    baseline: float


class ModelRef(Record):
    """A weak model on disk or on the hub: a base and, where one was trained, a PEFT adapter."""

    base: str
    adapter: str | None = None


class Checkpoint(Record):
    """A usable model after ``step`` optimizer steps."""

    step: int
    model: ModelRef


class Alignment(Record):
    """What an alignment came to; ``counts`` are for the stage: pairs (or rows) that max_length cut or took."""

    checkpoints: list[Checkpoint]
    counts: dict[str, int]


class RouteFacts(Record):
    """What a route may know beyond the query. Offline the defaults hold, but for ``turns``.

    ``turns``: how many came before the question. ``plain``: one plain text is asked for (no tools, no schema, not several answers),
    so that the weak model could give it. ``weak_up`` and ``strong_up`` are False while a server leaves that model alone after
    failures.
    """

    turns: int = Field(default=0, ge=0)
    plain: bool = True
    weak_up: bool = True
    strong_up: bool = True


class RouteDecision(Record):
    """Who answers a query: the weak model alone, the strong one alone, or both together.

    ``reason`` is one word of the route's own, for counting: what a user wrote has no place in it.
    """

    who: Literal["weak", "strong", "both"]
    reason: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")


class Prediction(Record):
    """What a System answered to one example.

    ``draft`` is the text that the strong model was given to make its answer from, where there was one: the weak model's, or its
    own first attempt (self-refine).
    ``truncated``: the answer (or the draft that it needed) was cut off at max_tokens; where the text holds no answer, or there
    is none, it is counted as cut, neither right nor wrong. ``thinking`` was hidden before the text, ``draft_thinking`` before the
    draft. ``truncated_context``: passages, in-context examples or earlier turns were left out of a prompt, since they did
    not fit the model's window (:mod:`cowest.models.window`). ``route``: who answered, where that was decided for each query.
    ``answer``, ``score`` and ``references`` stand in the files of an evaluation, for whoever reads them: what was read out of the
    text, what that is worth by the task's first metric of single queries, and what is right. Results are computed from the text.
    """

    example_id: str
    system: str
    text: str | None
    thinking: str | None = None
    truncated: bool = False
    truncated_context: bool = False
    draft: str | None = None
    draft_thinking: str | None = None
    error: str | None = None
    usage: Usage = Usage()
    latency_s: float = 0.0
    route: RouteDecision | None = Field(default=None, exclude_if=_is_none)
    answer: str | None = Field(default=None, exclude_if=_is_none)
    score: float | None = Field(default=None, exclude_if=_is_none)
    references: tuple[str, ...] | None = Field(default=None, exclude_if=_is_none)
