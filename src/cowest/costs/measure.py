"""A short measurement of this machine: each local model reads and writes a few of the recipe's own prompts, and trains some steps.

Models are loaded one after another and closed again. Prompts that are read once are not read again: an engine that keeps what
it has read would seem quicker than it is.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

from cowest.assembly.context import Context
from cowest.costs.lengths import Counter
from cowest.costs.speed import Speed
from cowest.costs.systems import known_as
from cowest.costs.work import Work, spread
from cowest.errors import ModelCallError
from cowest.models.tokens import prompt_tokens
from cowest.protocols import ChatModel, Reporter
from cowest.run.progress import QuietReporter
from cowest.stages.learn import sft_examples, sft_texts
from cowest.types import Completion, Message, ModelRef, Sampling

NEW_TOKENS: Final = 48
"""Most tokens that are written to a prompt."""
READ: Final = 8
"""Most prompts that are read for the reading's speed: it hardly depends on how many are read together."""
STEPS: Final = 3
"""Optimizer steps; the first is not timed."""
VARIES: Final = 0.1
"""Share of the time of an answer that is within what reading takes now more, now less."""
CUT: Final = 0.1
"""Share of answers that may be cut off for their mean length to be told."""


def measured(
    work: Sequence[tuple[Context, Work]],
    trained: Iterable[tuple[Context, Counter]],
    known: Mapping[str, Speed],
    reporter: Reporter,
) -> dict[str, Speed]:
    """The speed of each local model with work to do, by what it is known as, as far as it is not ``known``.

    Takes a minute or so for a model of 1.5B on two cores.

    ``trained``: contexts whose weak model will be trained, with how its tokens are counted. Raises ModelNotFoundError,
    MissingExtraError, StageError or ModelCallError as a run does.
    """
    largest: dict[str, tuple[Context, Work]] = {}
    for context, one in work:
        if not one.model.paid and one.calls.high and one.queries:
            key = known_as(one.model)
            if key in known and known[key].new_tokens_per_s is not None:
                continue
            before = largest.get(key)
            if before is None or before[1].calls.expected < one.calls.expected:
                largest[key] = (context, one)
    found = {key: asyncio.run(_answering(context, one, reporter)) for key, (context, one) in largest.items()}
    done = set[str]()
    for context, count in trained:
        key = known_as(context.weak)
        if key not in done and (key not in known or known[key].training_tokens_per_s is None):
            done.add(key)
            rate = _training(context, count, reporter)
            speed = found.get(key) or Speed(model=context.weak.name, how="measured now")
            found[key] = speed.model_copy(update={"training_tokens_per_s": rate})
    return found


async def _answering(context: Context, work: Work, reporter: Reporter) -> Speed:
    source = work.model
    reporter.info(f"measuring {source.name}: loading it")
    examples = spread(work.queries, READ + source.concurrency + 1)
    prompts = [work.prompt(e, context.task.target(e)) for e in examples]
    warm, read, both = prompts[:1], prompts[1 : 1 + READ] or prompts, prompts[1 + READ :] or prompts
    model = source.open()
    try:
        await _ask(model, warm, work.sampling, 2)  # what is loaded, compiled or looked at once is not timed
        reporter.info(f"measuring {source.name}: reading {len(read)} prompts, then answering {len(both)} at a time")
        first = await _ask(model, read, work.sampling, 1)
        second = await _ask(model, both, work.sampling, NEW_TOKENS)
    finally:
        await model.aclose()
        await context.models.aclose()
    if not second.answers:
        return Speed(model=source.name, how=f"could not be measured: {second.failure}")
    told = f"measured now ({len(both)} answers at a time)"
    prompt = fmean(c.usage.input_tokens for c in (*first.answers, *second.answers))
    answer = fmean(c.usage.output_tokens for c in second.answers)
    read_rate = prompt * len(read) / first.seconds
    writing_s = second.seconds - (first.seconds * len(both) / len(read))
    cut = sum(c.finish_reason == "length" for c in second.answers)
    # Where writing took no longer than reading varies by itself, all of the time is a bound.
    writing_s = writing_s if writing_s > VARIES * second.seconds else second.seconds
    return Speed(
        model=source.name,
        how=told,
        prompt_tokens_per_s=read_rate or None,
        new_tokens_per_s=answer * len(both) / writing_s or None,
        answer_tokens=answer if cut <= CUT * len(second.answers) and answer and not work.drafting else None,
    )


@dataclass(frozen=True, slots=True)
class _Timed:
    """What came of some requests. An answer that is empty, as one of an untuned model may be, has taken its time all the same."""

    answers: Sequence[Completion]
    seconds: float
    failure: ModelCallError | None


async def _ask(model: ChatModel, prompts: Sequence[Sequence[Message]], sampling: Sampling, tokens: int) -> _Timed:
    asked, began = sampling.model_copy(update={"max_tokens": min(tokens, sampling.max_tokens)}), time.perf_counter()
    done = await asyncio.gather(*(_one(model, prompt, asked) for prompt in prompts))
    seconds = time.perf_counter() - began
    failed = [one for one in done if isinstance(one, ModelCallError)]
    return _Timed([one for one in done if isinstance(one, Completion)], seconds, failed[0] if failed else None)


async def _one(model: ChatModel, prompt: Sequence[Message], sampling: Sampling) -> Completion | ModelCallError:
    try:
        return await model.generate(prompt, sampling)
    except ModelCallError as error:
        return error


class _Clock(QuietReporter):
    """Notes when each step was done."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def advance(self, n: int = 1) -> None:
        self.steps.append(time.perf_counter())


def _training(context: Context, count: Counter, reporter: Reporter) -> float:
    """Tokens a second of some real steps of SFT, in a folder that is thrown away."""
    from cowest.training.sft import SftRow, train_sft

    c, clock = context.config.sft, _Clock()
    rows = [
        SftRow(prompt=prompt, completion=text)
        for e in spread(sft_examples(context), STEPS * c.batch_size * c.gradient_accumulation)
        for prompt, text in sft_texts(context, e)
        if text is not None
    ]
    reporter.info(f"measuring {context.weak.name}: {STEPS} steps of SFT")
    settings = c.model_copy(update={"max_steps": STEPS, "checkpoint_every": STEPS + 1})
    base: ModelRef = context.weak.base()
    with tempfile.TemporaryDirectory(prefix="cowest-measure-") as folder:
        train_sft(base, rows, settings, Path(folder) / "sft", context.config.seed, clock)
    tokens = sum(min(prompt_tokens(count, r.prompt) + count(r.completion) + 2, c.max_length) for r in rows) / len(rows)
    timed = clock.steps[-1] - clock.steps[0]
    return tokens * c.batch_size * c.gradient_accumulation * (len(clock.steps) - 1) / timed
