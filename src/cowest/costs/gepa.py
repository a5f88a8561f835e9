"""What optimising a prompt will cost: all the calls that it may make, unless it ends before, as answers and as reflections.

One call of eight is taken for a reflection. The weak model drafts once for a query. What the ledger has of the answers
(the task's own instruction was asked before) is not taken off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cowest.assembly.context import Context
from cowest.costs.work import Range, Work
from cowest.run.freshness import inputs_of, judge
from cowest.stages.gepa import GEPA, gepa_stages, most_calls, queries_of
from cowest.stages.loop import begun
from cowest.stages.optimising import Trial, trials_file
from cowest.systems.spec import SystemSpec
from cowest.training.prompt_search import MINIBATCH, TEMPLATE
from cowest.types import Example, Message

_STEP = 2 * MINIBATCH + 2
"""Calls for each reflection: itself, the answers before and after it, and those of the choosing queries, spread."""
_WRITTEN = 300
"""Tokens of a proposal that are expected: the prompt asks for 2,000 characters at most."""


def gepa_work(context: Context, specs: Sequence[SystemSpec], counted: bool) -> Iterator[Work]:
    """The calls of the stages ``gepa SYSTEM``; ``counted`` as in :func:`cowest.stages.gepa.gepa_stages`.

    Raises DataError where there are too few queries.
    """
    optimised = [spec for spec in specs if spec.optimises]
    stages = gepa_stages(context.config, begun(context), optimised, counted)
    for spec, stage in zip(optimised, stages, strict=True):
        inputs, done = inputs_of(context.run, stage), list[Trial]()
        if None not in inputs.values():
            verdict = judge(context.run, stage, stage.depends(context), inputs)
            if verdict.settled:
                continue
            done = context.run.file(trials_file(spec.name), Trial).load() if verdict.kept else []
        yield from _search(context, spec, most_calls(context, counted), done)


def _search(context: Context, spec: SystemSpec, most: int, done: Sequence[Trial]) -> Iterator[Work]:
    c, frames, weak = context.config, context.frames, context.weak
    learning, choosing = queries_of(context, most)
    queries, reflected = [*learning, *choosing], sum(not trial.example_id for trial in done)
    answered, drafted = len(done) - reflected, len({trial.example_id for trial in done if trial.draft is not None})
    share = most // _STEP
    thoughts = Range(low=0, expected=share, high=share)
    answers = Range(low=len(choosing), expected=most - share, high=most - share)

    def refine(example: Example, draft: str) -> Sequence[Message]:
        return frames.refine(example, draft)

    def alone(example: Example, _: str) -> Sequence[Message]:
        return frames.solo(example)

    def draft(example: Example, _: str) -> Sequence[Message]:
        return frames.draft(example)

    def reflect(example: Example, _: str) -> Sequence[Message]:
        shown = context.for_strong(example)
        row = "\n\n".join((shown.input, shown.context or "", context.task.target(example), example.references[0]))
        text = "\n\n".join((TEMPLATE, context.task.instruction, *[row] * MINIBATCH))
        return [Message(role="user", content=text)]

    both = spec.optimises == "refine"
    if both:
        drafts = Range(low=len(choosing), expected=min(len(queries), most), high=min(len(queries), most)).less(drafted)
        yield Work(
            GEPA, f"{spec.name} drafts", weak, drafts, drafted, queries, draft, c.evaluate.draft, drafting=True
        )  # fmt: skip
    yield Work(
        GEPA,
        f"{spec.name} answers",
        context.strong,
        answers.less(answered),
        answered,
        queries,
        refine if both else alone,
        c.evaluate.answer,
        drafted=c.evaluate.draft if both else None,
    )
    model = context.models.sources.reflects or context.strong
    left = thoughts.less(reflected)
    yield Work(
        GEPA, f"{spec.name} reflections", model, left, reflected, queries, reflect, c.comparison.gepa.sampling,
        written=_WRITTEN,
    )  # fmt: skip
