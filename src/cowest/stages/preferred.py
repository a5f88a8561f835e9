"""Systems on questions without references: how often judges prefer their answers to the strong model's alone."""

from __future__ import annotations

from collections.abc import Sequence

from cowest.assembly.context import Context
from cowest.scoring.metrics import PREFERRED
from cowest.scoring.scorer import CUT_OFF
from cowest.scoring.statistics import Outcome
from cowest.stages.comparing import lost
from cowest.stages.verdicts import Pair, Verdicts
from cowest.types import Example, Prediction


def measured(context: Context, queries: Sequence[Example]) -> tuple[str, ...]:
    """The metrics by which answers to these queries are measured, the main one first."""
    return (PREFERRED,) if context.judged(queries) else context.task.metrics


def chosen_by(context: Context, queries: Sequence[Example]) -> str:
    """The metric by which checkpoints are chosen on these queries."""
    return PREFERRED if context.judged(queries) else context.metric


async def ask_judges(
    context: Context,
    label: str,
    name: str,
    queries: Sequence[Example],
    answers: Sequence[Prediction],
    alone: Sequence[Prediction],
) -> tuple[str, ...]:
    """Have answers compared with the strong model's alone to the same queries; ``name`` is that of the verdicts' files.

    Returns warnings of the judges. Raises StageError for a judge that does not answer.
    """
    pairs = [pair for pair in _pairs(context, queries, answers, alone) if pair is not None]
    verdicts = Verdicts(context, name)
    await verdicts.ask(label, pairs)
    return verdicts.tell(label)


def preferred_outcomes(
    context: Context,
    name: str,
    queries: Sequence[Example],
    answers: Sequence[Prediction],
    alone: Sequence[Prediction],
) -> list[Outcome]:
    """What :func:`ask_judges` has found. An answer that cannot be compared is ``failed``, or ``cut`` where it was cut off.

    ``preferred`` of one that was cut off is 0, for who counts it as wrong.
    """
    verdicts, found = Verdicts(context, name).load(), list[Outcome]()
    for example, answer, pair in zip(queries, answers, _pairs(context, queries, answers, alone), strict=True):
        value = None if pair is None else verdicts.preference(pair).value
        why = lost(context, example, answer)
        cut = why is not None and (why.error or "").startswith(CUT_OFF)
        found.append(
            Outcome(
                example_id=example.id,
                answer=None if answer.text is None else context.task.extract(answer.text, example),
                references=example.references,
                failed=value is None and not cut,
                cut=cut,
                preferred=0.0 if cut else value,
            )
        )
    return found


def _pairs(
    context: Context, queries: Sequence[Example], answers: Sequence[Prediction], alone: Sequence[Prediction]
) -> list[Pair | None]:
    """None where one of the two answers cannot be compared."""
    return [
        (e, mine.text or "", other.text or "")
        if lost(context, e, mine) is None and lost(context, e, other) is None
        else None
        for e, mine, other in zip(queries, answers, alone, strict=True)
    ]
