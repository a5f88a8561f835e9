"""What judges will be asked that compare answers: two calls a pair, and as many again where a verdict cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cowest.assembly.context import Context
from cowest.assembly.sources import Source
from cowest.scoring.compare import Compared, comparison_requests, same_text
from cowest.stages.comparing import lost
from cowest.stages.verdicts import Pair, Verdicts, compared_files
from cowest.types import Example, Message, Refinement, Request

Ask = Callable[[Source, Sequence[Request]], tuple[int, int]]
"""Of these requests to a model: how many calls are to come, and how many answers the ledger has."""


@dataclass(frozen=True, slots=True)
class ToCompare:
    """One judge's calls that are to come, and those that are answered."""

    judge: Source
    low: int
    expected: int
    high: int
    already: int


def to_compare(
    context: Context, names: Sequence[str], most: int, pairs: Sequence[Pair] | None, settled: bool, ask: Ask
) -> Iterator[ToCompare]:
    """By judge; ``pairs`` are the answers where they are known, else there are up to ``most``: equal ones are not compared.

    ``names`` are those of the verdicts' files; ``settled``: the stage is done.
    """
    sources = context.models.sources.compare
    verdicts = Verdicts(context, "")
    for n, judge in enumerate(sources):
        files = [context.run.file(compared_files(name, len(sources))[n], Compared) for name in names]
        done = [r.key for file in files for r in file.load() if r.error is None]
        there = set(done)
        if settled:
            yield ToCompare(judge, 0, 0, 0, 2 * len(done))
        elif pairs is None:
            left = 2 * max(0, most - len(done))
            yield ToCompare(judge, 0, left, 2 * left, 2 * len(done))
        else:
            unique = {verdicts.key(pair): pair for pair in pairs if not same_text(pair[1], pair[2])}
            requests = [
                request
                for key, (example, answer, alone) in unique.items()
                if key not in there
                for request in comparison_requests(context.for_strong(example), answer, alone)
            ]
            to_come, paid = ask(judge, requests)
            yield ToCompare(judge, to_come, to_come, 2 * to_come + paid, paid + 2 * len(there & unique.keys()))


def comparable(
    context: Context, queries: Sequence[Example], alone: Sequence[Refinement], refined: Sequence[Refinement]
) -> list[Pair]:
    """The answers with a draft that can be compared with those alone."""
    examples = {e.id: e for e in queries}
    solo = {r.example_id: r.text or "" for r in alone if lost(context, examples[r.example_id], r) is None}
    return [
        (examples[r.example_id], r.text or "", solo[r.example_id])
        for r in refined
        if r.example_id in solo and lost(context, examples[r.example_id], r) is None
    ]


def comparison_prompt(context: Context) -> Callable[[Example, str], Sequence[Message]]:
    """What a judge is asked, with two answers as long as SFT targets (as the question, where there are none)."""

    def prompt(example: Example, _: str) -> Sequence[Message]:
        text = context.task.target(example) or example.input
        return comparison_requests(context.for_strong(example), text, text)[0].messages

    return prompt
