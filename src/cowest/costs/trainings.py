"""The tokens that SFT and alignment still have to learn from, before either has begun."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from statistics import fmean

from cowest.assembly.context import Context
from cowest.assembly.sources import Source
from cowest.costs.lengths import SAMPLED, Counter, Written, bounded
from cowest.costs.turns import turned
from cowest.costs.work import Range, spread
from cowest.costs.workload import current_stages
from cowest.models.tokens import prompt_tokens
from cowest.recipe.config import TrainingSettings
from cowest.run.freshness import count_lines
from cowest.stages.learn import sft_examples, sft_texts, training_queries
from cowest.stages.loop import begun, rounds_of
from cowest.stages.rounds import Round, in_round
from cowest.training.objectives import LABELS, PAIRS, as_online, drafts_drawn, online_steps

END_TOKENS = 2
"""What ends a turn."""


@dataclass(frozen=True, slots=True)
class Training:
    """A training that is to come: its optimizer steps, and the tokens that go forward and back through the model in them.

    ``read`` tokens only go forward: those of the reference, which DPO asks once about each pair. ``number``: of the round.
    """

    stage: str
    model: Source
    steps: Range
    tokens: Range
    read: Range
    number: int = 1

    @property
    def made_in(self) -> str:
        """The name of the stage that trains."""
        return in_round(self.stage, self.number)


def trainings(context: Context, count: Counter, written: Written) -> Iterator[Training]:
    """SFT and alignment, where they are to come. ``count`` and ``written`` are by the weak model's tokenizer."""
    if not context.weak.trainable:
        return
    current = current_stages(context)
    if not _trained(context, "sft", current, "sft"):
        yield sft_training(context, count)
    if context.config.align.objective == "off":
        return
    so_far = begun(context)
    for round_ in rounds_of(context.config):
        if _trained(context, round_.file("align"), current, round_.stage("align")):
            if round_.number == len(so_far):
                return  # the loop has ended
            continue
        training = _align(context, count, written, current, round_)
        yield (
            training
            if round_.number <= len(so_far)
            else replace(
                training,
                steps=_or_none(training.steps),
                tokens=_or_none(training.tokens),
                read=_or_none(training.read),
            )
        )


def _or_none(found: Range) -> Range:
    """Of a round that may not come."""
    return found.model_copy(update={"low": 0.0})


def _trained(context: Context, folder: str, current: Collection[str], stage: str) -> bool:
    return stage in current and (context.path(folder) / "summary.json").is_file()


def sft_training(context: Context, count: Counter) -> Training:
    """The whole of SFT, whether it is done or not."""
    c, examples = context.config.sft, sft_examples(context)
    some = spread(examples, 10 * SAMPLED)
    lengths = [
        prompt_tokens(count, prompt) + count(text) + END_TOKENS
        for e in some
        for prompt, text in sft_texts(context, e)
        if text is not None
    ]
    rows = len(examples) * len(lengths) / len(some)
    steps = _steps(c, rows)
    mean = fmean(min(n, c.max_length) for n in lengths) if lengths else 0.0
    tokens = steps * c.batch_size * c.gradient_accumulation * mean
    return Training("sft", context.weak, _exactly(steps), _exactly(tokens), _exactly(0))


def _align(context: Context, count: Counter, written: Written, current: Collection[str], round_: Round) -> Training:
    mine = turned(context, round_, round_.stage("openings") in current)
    c, queries = context.config.align, training_queries(mine, round_)
    prompt = fmean(prompt_tokens(count, mine.frames.draft(e)) for e in spread(queries)) + END_TOKENS
    draft = bounded(written.drafts, fmean(written.drafts), context.config.draft.sampling.max_tokens)
    if as_online(context.objective) is not None:
        return _online(context, prompt, draft, len(queries), round_)
    found = (
        _labels(context, current, round_) if c.objective in ("kto", "rejection") else _pairs(context, current, round_)
    )
    # Sequences that are trained on, and that are only read: the reference's, and KTO's drafts for another query.
    trained, again = (2 if c.compares else 1), (1 if c.objective == "kto" else 0)
    seen = 2 if c.compares or c.objective == "kto" else 0
    steps, rows, tokens, read = list[float](), c.batch_size * c.gradient_accumulation, list[float](), list[float]()
    for bound in ("low", "expected", "high"):
        n, length = getattr(found, bound), min(prompt + getattr(draft, bound), c.max_length)
        steps.append(_steps(c, n))
        tokens.append(steps[-1] * rows * length * trained)
        read.append((seen * n + again * steps[-1] * rows) * length)
    return Training("align", context.weak, _range(steps), _range(tokens), _range(read), round_.number)


def _online(context: Context, prompt: float, draft: Range, queries: int, round_: Round) -> Training:
    """Each draft is learned from once, and the reference reads it."""
    c = context.config.align
    drawn, steps = drafts_drawn(c, queries), _exactly(online_steps(c, queries))
    tokens = _range([drawn * (prompt + getattr(draft, bound)) for bound in ("low", "expected", "high")])
    return Training("align", context.weak, steps, tokens, tokens, round_.number)


def _pairs(context: Context, current: Collection[str], round_: Round) -> Range:
    """How many there are, once they are there; before, anything from none to the most, and half of that."""
    file = context.path(round_.file(PAIRS))
    if round_.stage("pairs") in current and file.is_file():
        return _exactly(count_lines(file))
    c, k = context.config.pairs, context.config.draft.samples
    most = len(training_queries(context, round_)) * min(c.max_per_query, k * (k - 1) // 2)
    most = most if c.limit is None else min(most, c.limit)
    rounds = 1 if round_.pooled is None else round_.number
    return Range(low=0, expected=rounds * most / 2, high=rounds * most)


def _labels(context: Context, current: Collection[str], round_: Round) -> Range:
    """The same of labelled drafts: of all drafts, or the best of each query."""
    file, queries = context.path(round_.file(LABELS)), len(training_queries(context, round_))
    best = context.config.align.objective == "rejection"
    if round_.stage("pairs") in current and file.is_file():
        n = count_lines(file)
        return Range(low=0, expected=min(n, queries) / 2, high=min(n, queries)) if best else _exactly(n)
    most = (queries if best else queries * context.config.draft.samples) * (
        1 if round_.pooled is None else round_.number
    )
    return Range(low=0, expected=most / 2, high=most)


def _steps(settings: TrainingSettings, rows: float) -> float:
    if rows == 0:
        return 0
    if settings.max_steps is not None:
        return settings.max_steps
    return math.ceil(rows / (settings.batch_size * settings.gradient_accumulation)) * settings.epochs


def _exactly(n: float) -> Range:
    return Range(low=n, expected=n, high=n)


def _range(values: list[float]) -> Range:
    low, expected, high = values
    return Range(low=low, expected=expected, high=high)
