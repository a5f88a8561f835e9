"""The work of the models on this machine: what is trained, and how fast all of it goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cowest.assembly.context import Context
from cowest.costs.lengths import Texts
from cowest.costs.speed import Speed, noted, together
from cowest.costs.trainings import Training, sft_training, trainings
from cowest.costs.work import ZERO, Range, Work
from cowest.protocols import Reporter
from cowest.types import Record


class Here(Record):
    """All that models on this machine still have to do. ``seconds`` is None where nobody knows how fast the ``unknown`` are."""

    calls: Range = ZERO
    input_tokens: Range = ZERO
    output_tokens: Range = ZERO
    training_tokens: Range = ZERO
    seconds: Range | None = None
    unknown: tuple[str, ...] = ()
    speeds: tuple[Speed, ...] = ()


@dataclass(frozen=True, slots=True)
class Learner:
    """A context whose weak model is trained. ``not_in``: the stages whose trainings another learner makes, or nobody needs."""

    context: Context
    not_in: frozenset[str] = frozenset()

    def trainings(self, texts: Texts) -> Iterator[Training]:
        """Those that are to come."""
        weak = self.context.weak
        if weak.trainable:
            found = trainings(self.context, texts.of(weak), texts.written(self.context, weak))
            yield from (training for training in found if training.made_in not in self.not_in)


def speeds_of(
    work: Sequence[tuple[Context, Work]], learners: Sequence[Learner], texts: Texts, measure: Reporter | None
) -> dict[str, Speed]:
    """What is known of each model's speed, by what it is known as: noted, and with ``measure`` measured where nothing is noted."""
    trained = [learner.context for learner in learners if learner.context.weak.trainable]
    contexts = list({id(c): c for c in (*trained, *(c for c, _ in work))}.values())
    taught = {c.name: sft_training(c, texts.of(c.weak)).tokens.expected for c in trained}
    known = noted(contexts, taught)
    if measure is None:
        return known
    from cowest.costs.measure import measured

    to_train = [
        (learner.context, texts.of(learner.context.weak)) for learner in learners if any(learner.trainings(texts))
    ]
    return together(known, measured(work, to_train, known, measure))
