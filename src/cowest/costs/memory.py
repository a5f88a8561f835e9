"""How much memory the stages of a recipe take that train, or answer from weights on this machine; and whether it is free now.

Nothing is loaded: sizes are those that a model's files tell, lengths those of the recipe's own questions. What a training looks at
again just before it begins (:mod:`cowest.training.loop`) is the same sum with the rows as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cowest.assembly.context import Context
from cowest.assembly.places import model_source
from cowest.assembly.sources import Source
from cowest.assembly.sources.local import LocalSource
from cowest.costs.turns import turned
from cowest.costs.work import spread
from cowest.models.gguf import cached
from cowest.models.shape import ModelShape, model_shape
from cowest.models.tokens import prompt_tokens, token_counter
from cowest.recipe.config import TrainingSettings
from cowest.run.machine import free_memory
from cowest.stages.learn import sft_examples, sft_texts, training_queries
from cowest.stages.loop import rounds_of
from cowest.training.memory import PROGRAM, fitted, training_need
from cowest.types import Example, Message, Record, Sampling

MEASURED: Final = 500
"""Most questions of a stage whose length is counted."""


class MemoryNeed(Record):
    """What one stage takes at most, in bytes, beside what other programs hold.

    ``rows`` sequences (of a training: rows of a batch) of up to ``tokens`` tokens are worked on together. ``fits`` compares with
    ``free``, None where the system does not tell; ``split`` says how a batch that does not fit is done, where it can be.
    """

    domain: str
    stage: str
    model: str
    weights: int
    working: int
    rows: int
    tokens: int
    free: int | None
    fits: bool | None
    split: str | None = None

    @property
    def total(self) -> int:
        """With the program itself."""
        return PROGRAM + self.weights + self.working


def memory_needs(context: Context) -> Iterator[MemoryNeed]:
    """Of one domain: SFT, drafting, the strong model where it runs here, alignment. What other machines do is not among them."""
    weak, strong, c = context.weak, context.strong, context.config
    train = training_queries(context)
    frames = turned(context, rounds_of(c)[0], done=False).frames
    if isinstance(weak, LocalSource) and (shape := _shape(weak)) is not None:
        asked = _longest(weak, [frames.draft(e) for e in spread(train, MEASURED)])
        taught = [_taught(context, e) for e in spread(sft_examples(context), MEASURED)]
        yield _training(context, weak, shape, c.sft, "sft", asked + _longest_text(weak, taught), 1)
        yield _answering(context, weak, shape, "sample", asked, c.draft.sampling, len(train) * c.draft.samples)
        if c.align.objective != "off":
            length = asked + c.draft.sampling.max_tokens
            yield _training(context, weak, shape, c.align, "align", length, c.align.sequences)
    if isinstance(strong, LocalSource) and (shape := _shape(strong)) is not None:
        asked = _longest(strong, [frames.refine(e, "") for e in spread(train, MEASURED)])
        draft = c.draft.sampling.max_tokens
        calls = len(train) * c.draft.samples
        yield _answering(context, strong, shape, "feedback", asked + draft, c.feedback.sampling, calls)


def _shape(source: LocalSource) -> ModelShape | None:
    """None for what is not on this machine yet: a hub name, a GGUF file before its first use."""
    place = Path(model_source(source.config.model))
    found = cached(place) if place.is_file() else place
    return None if found is None else model_shape(str(found))


def _taught(context: Context, example: Example) -> str:
    return max((text or "" for _, text in sft_texts(context, example)), key=len)


def _longest(source: Source, prompts: Sequence[Sequence[Message]]) -> int:
    count, _ = token_counter(source.tokenizer)
    return max((prompt_tokens(count, prompt) for prompt in prompts), default=0)


def _longest_text(source: Source, texts: Sequence[str]) -> int:
    count, _ = token_counter(source.tokenizer)
    return max(map(count, texts), default=0) + 2  # the end of the turn


def _training(
    context: Context,
    source: LocalSource,
    shape: ModelShape,
    settings: TrainingSettings,
    stage: str,
    tokens: int,
    sequences: int,
) -> MemoryNeed:
    decided = _decided(settings, source)
    length, free = min(tokens, settings.max_length), free_memory()
    need = training_need(shape, decided, length, sequences, settings.batch_size)
    split, fits = None, None
    if free is not None:
        left = free - PROGRAM - need.weights
        _, fit = fitted(decided, shape, length, sequences, left, stage)
        fits, split = fit.missing is None, fit.how
    return MemoryNeed(
        domain=context.name,
        stage=stage,
        model=source.name,
        weights=need.weights,
        working=need.trained + need.step,
        rows=settings.batch_size * sequences,
        tokens=length,
        free=free,
        fits=fits,
        split=split,
    )


def _decided(settings: TrainingSettings, source: LocalSource) -> TrainingSettings:
    try:
        from cowest.training.precision import settled
    except ImportError:  # where nothing can be trained, only estimated
        return settings.model_copy(update={"dtype": "float32"}) if settings.dtype == "auto" else settings
    return settled(settings, source.base().base)


def _answering(
    context: Context, source: LocalSource, shape: ModelShape, stage: str, prompt: int, sampling: Sampling, calls: int
) -> MemoryNeed:
    """Weights, the keys and values of a full batch, and its logits: in float32 unless the recipe says otherwise."""
    size = 4 if source.config.dtype in ("auto", "float32") else 2
    rows, tokens, free = min(source.config.batch_size, calls), prompt + sampling.max_tokens, free_memory()
    cache = 2 * shape.layers * shape.kv_heads * shape.head_size * tokens * size
    reading = prompt * size * 4 * max(shape.intermediate, shape.hidden)
    weights, working = shape.parameters * size, rows * (cache + reading + 2 * 4 * shape.vocabulary)
    return MemoryNeed(
        domain=context.name,
        stage=stage,
        model=source.name,
        weights=weights,
        working=working,
        rows=rows,
        tokens=tokens,
        free=free,
        fits=None if free is None else PROGRAM + weights + working <= free,
    )
