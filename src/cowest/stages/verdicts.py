"""Judges' verdicts on pairs of answers: asked once, kept in a file a judge, and what they show of the judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from cowest.assembly.context import Context
from cowest.run.freshness import Depends
from cowest.run.store import JsonlFile
from cowest.scoring.compare import ALWAYS, TIE, Compared, Habits, compare_answers, comparison_key, habits, same_text
from cowest.scoring.powered import Agreement
from cowest.stages.base import Filling, filled
from cowest.types import Example, Score

SMALL = 0.05
"""Of the pairs: as many without a verdict are not spoken of."""
Pair = tuple[Example, str, str]
"""A question, the answer that is compared, the strong model's alone."""


class JudgeNote(Habits):
    """How one judge has judged, and how far the references agree, where there are some."""

    model: str
    agreement: Agreement | None = None


def judges_depend(context: Context) -> Depends:
    """What comparisons follow from: the judges, in their order."""
    sources = context.models.sources.compare
    found = Depends({"feedback.compare": len(sources)}, {"feedback.compare": 0})
    for n, source in enumerate(sources):
        found |= source.identity(f"feedback.compare.{n}")
    return found


def compared_files(name: str, judges: int) -> tuple[str, ...]:
    """Where the verdicts of so many judges are, one file each."""
    return tuple(f"{name}-{n}.jsonl" for n in range(1, judges + 1))


class Verdicts:
    """The judges' verdicts on pairs of answers: :meth:`ask` gets them, :meth:`load` reads those that are there."""

    def __init__(self, context: Context, name: str) -> None:
        self._context = context
        self._files = compared_files(name, len(context.models.sources.compare))
        self._by_judge: list[dict[str, Compared]] = []

    async def ask(self, label: str, pairs: Sequence[Pair]) -> None:
        """Have every different pair compared by every judge; those in the files already are kept.

        Raises StageError for a judge that does not answer, or never so that it can be read.
        """
        unique = {self.key(pair): pair for pair in pairs if not same_text(pair[1], pair[2])}
        fillings = [self._filling(n, label, unique) for n in range(len(self._files))]
        await filled(f"{label}: compare answers", self._context, fillings)
        self._by_judge = [{r.key: r for r in filling.records()} for filling in fillings]

    def load(self) -> Verdicts:
        """The verdicts that are in the files, without asking anybody."""
        files = [self._context.run.file(name, Compared) for name in self._files]
        self._by_judge = [{r.key: r for r in file.load()} for file in files]
        return self

    def _filling(self, n: int, label: str, unique: Mapping[str, Pair]) -> Filling[str, Compared]:
        model = self._context.models.compare()[n]

        async def make(key: str) -> Compared:
            example, answer, alone = unique[key]
            return await compare_answers(model, self._context.for_strong(example), answer, alone)

        file: JsonlFile[Compared] = self._context.run.file(self._files[n], Compared)
        kept = [record for record in file.load() if record.key in unique]
        file.replace(kept)  # of other answers, where a stage is made again
        return Filling(f"{label}: judge {model.name}", self._context, file, list(unique), str, _key_of, make)

    def key(self, pair: Pair) -> str:
        """How a pair is known."""
        example, answer, alone = pair
        return comparison_key(self._context.for_strong(example), answer, alone)

    def preference(self, pair: Pair) -> Score:
        """The mean of what the judges say, 1 for the answer and 0 for the one alone; unscored where none could say."""
        if same_text(pair[1], pair[2]):
            return Score(value=TIE, explanation="the answer is that without a draft")
        records = [found.get(self.key(pair)) for found in self._by_judge]
        known = [r.preference for r in records if r is not None and r.preference is not None]
        if not known:
            why = next((r.error for r in records if r is not None), "was not asked")
            return Score(value=None, error=f"judge: {why}")
        return Score(value=fmean(known))

    def said(self, pair: Pair) -> list[float | None]:
        """What each judge says of two answers that differ."""
        return [found[self.key(pair)].preference for found in self._by_judge]

    def notes(self, agreements: Sequence[Agreement | None] = ()) -> tuple[JudgeNote, ...]:
        """How each judge has judged."""
        agreed = agreements or [None] * len(self._by_judge)
        return tuple(
            JudgeNote(model=source.name, **habits(list(found.values())).model_dump(), agreement=agreement_)
            for source, found, agreement_ in zip(
                self._context.models.sources.compare, self._by_judge, agreed, strict=True
            )
        )

    def tell(self, label: str) -> tuple[str, ...]:
        """Say how each has judged. Returns the warnings."""
        warnings = list[str]()
        for note in self.notes():
            all_, lost = note.compared + note.failed, f", {note.failed} without a verdict" if note.failed else ""
            self._context.reporter.info(
                f"{self._context.label}{label}: judge {note.model}: {note.compared} pairs compared, better {note.better}, "
                f"worse {note.worse}, ties {note.ties} (in {note.inconsistent} the two orders disagree); of {note.sided} "
                f"verdicts for one answer {note.first} are for the one shown first{lost}"
            )
            if note.always is not None:
                warnings.append(
                    f"judge {note.model} prefers {note.always} in more than {ALWAYS:.0%} of {2 * note.compared} verdicts: it "
                    "hardly tells answers apart. Another model in feedback.compare, or several, helps"
                )
            if note.failed > SMALL * all_:
                warnings.append(
                    f"judge {note.model} gave no verdict on {note.failed} of {all_} pairs; `cowest run` asks again"
                )
        return tuple(warnings)


def _key_of(record: Compared) -> str:
    return record.key
