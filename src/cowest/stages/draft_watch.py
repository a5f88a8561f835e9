"""A run looks at itself: after the first few dozen answers that were made with a draft, are they of any use?

A frame that suits one strong model makes another answer "no" to every draft, ignore it, or copy it; an accuracy says so when
everything is paid for, and some of it not even then. Here the refined answers are compared with those of the same model alone, with
the drafts' own and with the right ones, at FIRST queries and whenever their number has doubled.

One answer a query counts, that to its first draft: a query's drafts are alike, and their answers are no independent trials. They
count in the order in which they are asked, not in that in which they come: short drafts come first, and are followed more. What is
said is tested, exactly: one-sided binomial tests against a share that is tolerated, McNemar's test where two answers to one query
are compared. The levels are such that a healthy pair is told off in less than one of a hundred runs, all looks together; a test
simulates that. The tolerated shares, and why:

- UNTOLD 25%: weak real models leave 10 to 20% of their texts without an answer, and still are of use;
- ONE_CLASS 85%: below that an answer that is always the same is a leaning; above, it has to be more frequent than among the right
  answers and than among the model's own ones without a draft;
- IGNORED 10%: of the drafts that say otherwise than the model alone, fewer are followed;
- COPIED 97%: of these drafts, more are followed. The lab's strong model, which knows nothing, follows 93 to 96%, and rightly.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel

from cowest.errors import StageError
from cowest.protocols import Task
from cowest.report.naming import visible
from cowest.scoring.statistics import chance_of_as_many
from cowest.scoring.uptake import same
from cowest.stages.watch import Asking
from cowest.types import Example, Prediction, Refinement

FIRST: Final = 36
"""Queries with a refined answer before the first look: "no" to all of them is then certain, and little is paid."""
FEWEST: Final = 12
"""Fewer are not looked at."""
UNTOLD: Final = 0.25
ONE_CLASS: Final = 0.85
IGNORED: Final = 0.10
COPIED: Final = 0.97
SURE: Final = 0.001
"""The level of what is noticed at the first look already."""
FAIRLY_SURE: Final = 0.005
"""The level of ``ignored`` and ``copied``, which only come out after some more."""

Mode = Literal["warn", "stop", "off"]
Kind = Literal["one class", "no answer", "unscored", "ignored", "copied"]
Answer = Refinement | Prediction


@dataclass(frozen=True, slots=True)
class Seen:
    """The answers to one query. ``refined`` and ``alone`` are None where the text names none, or was cut off before one (``lost``).

    ``alone_lost``: None where the model was not asked alone, or that call failed.
    """

    example: Example
    draft: str | None
    refined: str | None
    alone: str | None
    refined_lost: bool
    alone_lost: bool | None
    closed: bool

    @property
    def otherwise(self) -> bool:
        """The draft says otherwise than the model does alone, and it is known what that says with the draft."""
        told = self.draft is not None and self.alone is not None and not self.refined_lost
        return told and not same(self.alone, self.draft, self.closed)

    @property
    def followed(self) -> bool:
        """The refined answer is the draft's."""
        return same(self.refined, self.draft, self.closed)

    def __str__(self) -> str:
        alone = "" if self.alone_lost is None else f", alone {_quoted(self.alone, bool(self.alone_lost))}"
        refined = _quoted(self.refined, self.refined_lost)
        right = _quoted(self.example.references[0])
        return (
            f"{visible(self.example.id)}: right {right}, draft {_quoted(self.draft)}{alone}, with the draft {refined}"
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong: in numbers, and what may mend it. ``examples`` show it."""

    kind: Kind
    text: str
    advice: str
    examples: Sequence[Seen]

    def __str__(self) -> str:
        shown = "; ".join(map(str, self.examples[:2]))
        return f"{self.text}. {self.advice}{f'. For example {shown}' if shown else ''}"


@dataclass(frozen=True, slots=True)
class Limits:
    """The setting of the answers' length, its value, and whether a text in which no answer is found is wrong (``reads``)."""

    setting: str
    max_tokens: int
    reads: bool = True


def findings(seen: Sequence[Seen], labels: Sequence[str], limits: Limits) -> list[Finding]:
    """What is wrong with refined answers, the plainest first; nothing for a healthy pair."""
    looks = (
        _unscored(seen, limits),
        _no_answer(seen) if limits.reads else None,
        _one_class(seen, labels),
        _ignored(seen),
        _copied(seen),
    )
    return [found for found in looks if found is not None]


_FRAME: Final = "`cowest prompts RECIPE collab` shows how it is asked; prompts.refine and prompts.solo set other frames"

_WEAK: Final = "So do the drafts: look at the balance of the training data, and at sft.max_steps or sft.epochs"


def _unscored(seen: Sequence[Seen], limits: Limits) -> Finding | None:
    """Answers that were cut off, with the draft or alone, so that nothing can be compared."""
    lost = [s for s in seen if s.refined_lost or s.alone_lost]
    if chance_of_as_many(len(lost), len(seen), UNTOLD) >= SURE:
        return None
    refined, alone = sum(s.refined_lost for s in seen), sum(bool(s.alone_lost) for s in seen)
    which = f"with the draft {refined}, alone {alone}"
    return Finding(
        "unscored",
        f"{len(lost)} of {len(seen)} queries cannot be scored: cut off before an answer, {which}",
        f"Raise {limits.setting} from {limits.max_tokens} to {2 * limits.max_tokens} or more, or ask for shorter reasoning in both "
        "frames (prompts.solo, prompts.refine)",
        lost,
    )


def _no_answer(seen: Sequence[Seen]) -> Finding | None:
    told = [s for s in seen if not s.refined_lost]
    silent = [s for s in told if s.refined is None]
    fewer_alone = [s for s in told if s.alone_lost is False]
    news = sum(s.refined is None and s.alone is not None for s in fewer_alone)
    lost = sum(s.refined is not None and s.alone is None for s in fewer_alone)
    many = chance_of_as_many(len(silent), len(told), UNTOLD) < SURE
    if not many and not (news > lost and chance_of_as_many(news, news + lost, 0.5) < SURE):
        return None
    alone = f" (alone {sum(s.alone is None for s in fewer_alone)} of {len(fewer_alone)})" if fewer_alone else ""
    return Finding(
        "no answer",
        f"no answer can be read out of {len(silent)} of {len(told)} texts that were made with a draft{alone}",
        f"Ask for an answer line in the refine frame as in the other: {_FRAME}",
        silent,
    )


def _one_class(seen: Sequence[Seen], labels: Sequence[str]) -> Finding | None:
    """One class nearly always, though it is not so often right, and the model alone does not say it so often."""
    told = [s for s in seen if s.refined is not None and s.refined in labels]
    if len(labels) < 2 or not told:
        return None
    top, n = Counter(s.refined for s in told).most_common(1)[0]
    if n <= ONE_CLASS * len(told):
        return None

    def more_often_than(other: Callable[[Seen], bool], among: Sequence[Seen]) -> bool:
        more = sum(s.refined == top and not other(s) for s in among)
        fewer = sum(s.refined != top and other(s) for s in among)
        return more > fewer and chance_of_as_many(more, more + fewer, 0.5) < SURE

    asked_alone = [s for s in told if s.alone_lost is False]
    right = [s for s in told if top in s.example.references]
    if not more_often_than(lambda s: top in s.example.references, told):
        return None
    if asked_alone and not more_often_than(lambda s: s.alone == top, asked_alone):
        return None
    drafted = [s for s in told if s.draft is not None]
    same_draft = [s for s in drafted if s.draft == top]
    said = [f"right {_of(right, told)}", f"the drafts say it {_of(same_draft, drafted)}"]
    if asked_alone:
        said.insert(1, f"alone it says so {_of([s for s in asked_alone if s.alone == top], asked_alone)}")
    return Finding(
        "one class",
        f"with a draft the strong model says {_quoted(top)} {_of([s for s in told if s.refined == top], told)} ({', '.join(said)})",
        _WEAK if len(same_draft) > ONE_CLASS * len(drafted) else f"The refine frame may not suit this model: {_FRAME}",
        [s for s in told if s.refined == top and top not in s.example.references],
    )


def _ignored(seen: Sequence[Seen]) -> Finding | None:
    """Where the draft says otherwise than the model alone, it is never followed, and the model's own answer stays."""
    differ = [s for s in seen if s.otherwise]
    followed = [s for s in differ if s.followed]
    stayed = [s for s in differ if same(s.refined, s.alone, s.closed)]
    if len(stayed) < 0.8 * len(differ):  # a third answer is no sign that the draft was not read
        return None
    if chance_of_as_many(len(differ) - len(followed), len(differ), 1 - IGNORED) >= FAIRLY_SURE:
        return None
    return Finding(
        "ignored",
        f"the drafts are ignored: where one says otherwise than the strong model alone, it is followed {_of(followed, differ)}, "
        f"and the answer stays as it is alone {_of(stayed, differ)}",
        f"Such drafts are worth nothing, and make no pairs: {_FRAME}",
        [s for s in stayed if not s.followed],
    )


def _copied(seen: Sequence[Seen]) -> Finding | None:
    differ = [s for s in seen if s.otherwise]
    followed = [s for s in differ if s.followed]
    if chance_of_as_many(len(followed), len(differ), COPIED) >= FAIRLY_SURE:
        return None
    wrong = [s for s in followed if not any(same(s.draft, right, s.closed) for right in s.example.references)]
    return Finding(
        "copied",
        f"the drafts are copied: where one says otherwise than the strong model alone, its answer is taken "
        f"{_of(followed, differ)}, {len(wrong)} wrong ones among them",
        "The pair is then as good as the weak model alone; say in the refine frame that a draft may be wrong and is to be checked: "
        + _FRAME,
        wrong or followed,
    )


def _of(some: Sequence[Seen], all_: Sequence[Seen]) -> str:
    return f"{len(some)} of {len(all_)} times"


def _quoted(answer: str | None, lost: bool = False) -> str:
    if answer is None:
        return "cut off" if lost else "no answer"
    text = visible(" ".join(answer.split()))
    return json.dumps(text if len(text) <= 40 else f"{text[:37]}...", ensure_ascii=False)


class DraftWatch:
    """Looks at a stage's refined answers as they come, and warns or stops once for each kind of finding.

    Args:
        context: The task, and where to say it.
        label: What is being done.
        mode: ``feedback.watch`` or ``evaluate.watch``; ``setting`` is its name.
        limits: The settings that findings name.
        items: What is looked at, in the order in which it is asked: the query by the draft's id (of a Refinement) or its own.
        drafts: The draft's text of an answer; None where it has none.
        alone: The same strong model's answers without a draft, by the query's id; empty where it is not asked, None where they come
            among the others (a Refinement without a draft's id). A query is then looked at when both are there.
        in_order: All items are asked; else :meth:`then` says which are next.
    """

    def __init__(
        self,
        context: Asking,
        label: str,
        mode: Mode,
        setting: str,
        limits: Limits,
        items: Mapping[str, Example],
        drafts: Callable[[Answer], str | None],
        alone: Mapping[str, Answer] | None,
        in_order: bool = True,
    ) -> None:
        self._context, self._label, self._mode, self._setting, self._limits = context, label, mode, setting, limits
        self._items, self._drafts, self._waits = items, drafts, alone is None
        self._alone = dict[str, Answer](alone or {})
        self._ahead, self._came = deque(items if in_order else ()), dict[str, Answer]()
        self._seen = list[Seen]()
        self._next = FIRST
        self._told: dict[Kind, str] = {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was said."""
        return tuple(self._told.values())

    def see(self, record: BaseModel) -> None:
        """Take note of an answer, and look where it is time. Raises StageError for a finding where the mode is ``stop``."""
        if self._mode == "off" or not isinstance(record, Refinement | Prediction):
            return
        if isinstance(record, Refinement) and record.draft_id is None:
            self._alone[record.example_id] = record
        else:
            about = record.draft_id if isinstance(record, Refinement) else record.example_id
            self._came.setdefault(about or "", record)
        self._go_on()

    def then(self, keys: Iterable[str]) -> None:
        """These items are asked next; raises as :meth:`see` does, since their answers may be there."""
        self._ahead += keys
        self._go_on()

    def _go_on(self) -> None:
        while self._ahead and (key := self._ahead[0]) in self._came:
            example = self._items[key]
            if self._waits and example.id not in self._alone:
                break
            seen = self._read(example, self._came[key])
            self._seen += [] if seen is None else [seen]
            self._ahead.popleft()
        if len(self._seen) >= self._next:
            self._next = 2 * len(self._seen)
            self.look()

    def look(self) -> None:
        """Say what is wrong with the answers so far. Raises StageError where the mode is ``stop``."""
        seen = self._seen
        if self._mode == "off" or len(seen) < FEWEST:
            return
        found = [f for f in findings(seen, self._context.task.labels, self._limits) if f.kind not in self._told]
        for finding in found:
            self._told[finding.kind] = f"{finding} ({len(seen)} queries looked at)"
        if found and self._mode == "stop":
            raise StageError(
                f"{self._context.label}{self._label}: stopped by {self._setting}: stop. {' '.join(map(str, found))}. What was "
                f"paid for is kept; mend it and run again, or go on as it is with --set {self._setting}=warn"
            )
        for finding in found:
            self._context.reporter.info(
                f"{self._context.label}{self._label}: warning: {self._told[finding.kind]}. Ctrl-C stops here, and what was paid "
                f"for is kept ({self._setting}: stop does so by itself)"
            )

    def _read(self, example: Example, record: Answer) -> Seen | None:
        """None where it failed, there is no draft, or nothing to tell a right answer by."""
        draft = self._drafts(record)
        if record.error is not None or draft is None or not example.references:
            return None
        task, alone = self._context.task, self._alone.get(example.id)
        alone = None if alone is None or alone.error is not None else alone
        refined = _answer(task, example, record)
        by_itself = None if alone is None else _answer(task, example, alone)
        return Seen(
            example=example,
            draft=task.extract(draft, example),
            refined=refined,
            alone=by_itself,
            refined_lost=_lost(record, refined),
            alone_lost=None if alone is None else _lost(alone, by_itself),
            closed=bool(task.labels or example.choices),
        )


def _answer(task: Task, example: Example, record: Answer) -> str | None:
    return None if record.text is None else task.extract(record.text, example)


def _lost(record: Answer, answer: str | None) -> bool:
    """Whether it was cut off before an answer."""
    return record.text is None or (record.truncated and answer is None)
