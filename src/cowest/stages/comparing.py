"""Feedback without references: judges compare each answer that was made with a draft with the strong model's alone.

A draft is worth how often its answer is preferred (``Score.value`` from 0 to 1, the mean over the judges); the answer alone,
compared with itself, is worth 1/2. Where questions have references all the same, these tell how far the judges can be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from cowest.assembly.context import Context
from cowest.collaboration.feedback import NOT_ASKED
from cowest.run.freshness import Depends
from cowest.run.store import JsonlFile
from cowest.scoring.compare import ALWAYS, TIE, Compared, Habits, compare_answers, comparison_key, habits, same_text
from cowest.scoring.powered import Agreement, Estimate, agreement, powered_mean
from cowest.scoring.scorer import cut_score
from cowest.stages.base import Filling, filled
from cowest.types import Draft, Example, Feedback, Record, Refinement, Score

SMALL = 0.05
"""Of the pairs: as many without a verdict are not spoken of."""
Pair = tuple[Example, str, str]
"""A question, the answer that is compared, the strong model's alone."""
Work = tuple[Example, Draft, Refinement, Refinement]


class JudgeNote(Habits):
    """How one judge has judged, and how far the references agree, where there are some."""

    model: str
    agreement: Agreement | None = None


class Judging(Record):
    """What the judges of a feedback came to: ``judging.json``.

    ``agreement``: of their mean with the references. ``gain``: E(y*, x) - E(z, x) by the metric, a mean over queries, from the
    references where there are some and the judges elsewhere. ``equal``: drafts after which the answer is that without a draft.
    """

    judges: tuple[JudgeNote, ...]
    equal: int
    agreement: Agreement | None = None
    gain: Estimate | None = None


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
    """The judges' verdicts on pairs of answers, which :meth:`ask` gets."""

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
        records = [found[self.key(pair)] for found in self._by_judge]
        known = [record.preference for record in records if record.preference is not None]
        if not known:
            return Score(value=None, error=f"judge: {records[0].error}")
        return Score(value=fmean(known))

    def said(self, pair: Pair) -> list[float | None]:
        """What each judge says of two answers that differ."""
        return [found[self.key(pair)].preference for found in self._by_judge]

    def notes(self, agreements: Sequence[Agreement | None] = ()) -> tuple[JudgeNote, ...]:
        """How each judge has judged."""
        agreed = agreements or [None] * len(self._by_judge)
        return tuple(
            JudgeNote(model=model.name, **habits(list(found.values())).model_dump(), agreement=agreement_)
            for model, found, agreement_ in zip(self._context.models.compare(), self._by_judge, agreed, strict=True)
        )

    def tell(self) -> tuple[str, ...]:
        """Say how each has judged. Returns the warnings."""
        warnings = list[str]()
        for note in self.notes():
            all_, lost = note.compared + note.failed, f", {note.failed} without a verdict" if note.failed else ""
            self._context.reporter.info(
                f"{self._context.label}judge {note.model}: {note.compared} pairs compared, better {note.better}, worse "
                f"{note.worse}, ties {note.ties} (in {note.inconsistent} the two orders disagree); of {note.sided} verdicts for one "
                f"answer {note.first} are for the one shown first{lost}"
            )
            if note.always is not None:
                warnings.append(
                    f"judge {note.model} prefers {note.always} in more than {ALWAYS:.0%} of {2 * note.compared} verdicts: it hardly "
                    "tells answers apart. Another model in feedback.compare, or several, helps"
                )
            if note.failed > SMALL * all_:
                warnings.append(
                    f"judge {note.model} gave no verdict on {note.failed} of {all_} pairs; `cowest run` asks again"
                )
        return tuple(warnings)


def _key_of(record: Compared) -> str:
    return record.key


async def compared_feedback(
    context: Context, name: str, work: Sequence[Work]
) -> tuple[list[Feedback], Judging, tuple[str, ...]]:
    """Every draft's feedback by the judges; ``name`` is that of their files. Beside it what they came to, and warnings."""
    tokens = context.config.feedback.sampling.max_tokens
    lost = [(_lost(context, e, refined, tokens), _lost(context, e, alone, tokens)) for e, _, refined, alone in work]
    pairs = [
        (e, refined.text or "", alone.text or "") if missing == (None, None) else None
        for (e, _, refined, alone), missing in zip(work, lost, strict=True)
    ]
    verdicts = Verdicts(context, name)
    await verdicts.ask("feedback", [pair for pair in pairs if pair is not None])
    records = [_feedback(item, verdicts, pair, missing) for item, pair, missing in zip(work, pairs, lost, strict=True)]
    warnings = verdicts.tell()
    judging = await _judging(context, verdicts, [pair for pair in pairs if pair is not None])
    _tell_references(context, judging)
    return records, judging, warnings


def _feedback(item: Work, verdicts: Verdicts, pair: Pair | None, lost: tuple[Score | None, Score | None]) -> Feedback:
    example, draft, _, _ = item
    no_pair = Score(value=None, error=f"{NOT_ASKED}: there is no answer of the strong model alone to compare with")
    refined = verdicts.preference(pair) if pair is not None else lost[0] or no_pair
    return Feedback(
        example_id=example.id,
        draft_id=draft.id,
        refined=refined,
        solo=lost[1] or Score(value=TIE),
        weak=Score(value=None, error=f"{NOT_ASKED}: judges compare what the strong model answers"),
    )


def _lost(context: Context, example: Example, answer: Refinement, max_tokens: int) -> Score | None:
    """Why an answer cannot be compared; None where it can. One cut off before its end may have been as good as any."""
    if answer.text is None and answer.error is not None:
        return Score(value=None, error=answer.error)
    if answer.text is not None and not answer.truncated:
        return None
    found = None if answer.text is None else context.task.extract(answer.text, example)
    score = cut_score(Score(value=None if found is None else TIE, answer=found), max_tokens)
    return score if score.value is None else None


async def _judging(context: Context, verdicts: Verdicts, pairs: Sequence[Pair]) -> Judging:
    scorer = context.metric_scorer()
    truth, sayings, equal = list[float](), list[list[float | None]](), 0
    by_query: dict[str, tuple[list[float], list[float]]] = {}
    for pair in pairs:
        example, answer, alone = pair
        judged = verdicts.preference(pair).value
        same = same_text(answer, alone)
        equal += same
        gains, words = by_query.setdefault(example.id, ([], []))
        if judged is None:
            continue
        words.append(judged - TIE)
        if not example.references:
            continue
        with_draft, without = [(await scorer.score(example, text)).value for text in (answer, alone)]
        if with_draft is None or without is None:
            continue
        gains.append(with_draft - without)
        if not same:
            truth.append(with_draft - without)
            sayings.append([*verdicts.said(pair), judged])
    labelled = [(fmean(gains), fmean(words)) for gains, words in by_query.values() if gains]
    beyond = [fmean(words) for gains, words in by_query.values() if words and not gains]
    agreed = [_agreement(truth, [row[n] for row in sayings]) for n in range(len(sayings[0]))] if sayings else []
    return Judging(
        judges=verdicts.notes(agreed[:-1]),
        equal=equal,
        agreement=agreed[-1] if agreed else None,
        gain=powered_mean([y for y, _ in labelled], [f for _, f in labelled], beyond),
    )


def _agreement(truth: Sequence[float], said: Sequence[float | None]) -> Agreement:
    known = [(y, f - TIE) for y, f in zip(truth, said, strict=True) if f is not None]
    return agreement([y for y, _ in known], [f for _, f in known])


def _tell_references(context: Context, judging: Judging) -> None:
    found, gain = judging.agreement, judging.gain
    if found is None or found.agree.share is None:
        return
    kappa = "" if found.kappa is None else f", kappa {found.kappa:.2f}"
    said = (
        f"the judges say as the references do (better, worse, equal) on {found.agree.n} of {found.agree.of} pairs with references: "
        f"{found.agree.share:.0%} [{found.agree.ci_low:.0%}, {found.agree.ci_high:.0%}]{kappa}; the opposite on {found.opposite}"
    )
    if gain is not None:
        said += (
            f". Mean gain by {context.metric}: {gain.mean:+.3f} [{gain.ci_low:+.3f}, {gain.ci_high:+.3f}] (references of "
            f"{gain.labelled} queries, the judges' word on {gain.judged} others)"
        )
    context.reporter.info(f"{context.label}feedback: {said}")


def judging_counts(judging: Judging) -> dict[str, int]:
    """The numbers for the manifest; ``judge_n`` is the n-th of ``feedback.compare``."""
    counts = {"answers_equal": judging.equal}
    for n, note in enumerate(judging.judges, start=1):
        values = note.model_dump(exclude={"model", "agreement"})
        counts |= {f"judge_{n}_{key}": value for key, value in values.items()}
    if judging.agreement is not None:
        counts |= {
            "references_compared": judging.agreement.agree.of,
            "references_agree": judging.agreement.agree.n,
            "references_opposite": judging.agreement.opposite,
        }
    return counts
