"""What the report shows, as plain records. The report stage fills them from a run directory; nothing here reads a disk.

Scores are in units of the scorer (0 to 1 for the metrics shipped); the page shows metric means as percentages.
``None`` always means "not scored", with the reason in ``error``; lists may be empty, and the part is then left out.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cowest.results import MetricValue, Results
from cowest.scoring.compare import Habits
from cowest.scoring.powered import Agreement, Estimate
from cowest.types import Message, Record


class AnswerView(Record):
    """What one system said to one query. ``value`` is the main metric's score, ``draft`` the weak model's text."""

    text: str | None
    answer: str | None = None
    value: float | None = None
    draft: str | None = None
    error: str | None = None


class QueryView(Record):
    """One test query with every system's answer, by system name. ``turns`` came before it in its conversation."""

    example_id: str
    input: str
    turns: tuple[Message, ...] = ()
    context: str | None = None
    references: tuple[str, ...]
    answers: dict[str, AnswerView]


class CurvePoint(Record):
    """What the trainer logged at one step, under TRL's names (``loss``, ``rewards/margins``, ``logps/chosen``)."""

    step: int
    values: dict[str, float]


class TrainingCurve(Record):
    """The log of one training stage, in order of steps."""

    stage: Literal["sft", "align"]
    points: list[CurvePoint]


class CheckpointView(Record):
    """An alignment checkpoint and the collaboration score on validation queries by which one was chosen."""

    step: int
    score: float | None
    selected: bool = False


class PipelineCounts(Record):
    """One line of the way from drafts to pairs; ``note`` says why records were dropped."""

    label: str
    value: int
    note: str | None = None


class JudgeView(Habits):
    """One judge that compared answers: its habits, and how far it agrees with the references, where there are some."""

    model: str
    agreement: Agreement | None = None


class JudgingView(Record):
    """What the judges of one round's feedback came to (``judging.json``); ``metric`` is the unit of ``gain``."""

    number: int
    metric: str
    judges: tuple[JudgeView, ...]
    equal: int
    agreement: Agreement | None = None
    gain: Estimate | None = None


class GuardRow(Record):
    """A system beside the guard's rows on the test queries: per query its calls to the strong model, tokens and USD.

    ``answered`` is the share of queries that each arm answers; empty for a system that decides nothing.
    """

    name: str
    score: MetricValue
    calls: float
    tokens: float
    cost_usd: float | None = None
    answered: dict[str, float] = Field(default_factory=dict)


class GuardPoint(Record):
    """A policy that was tried: its mean score and strong calls on the certifying queries, and whether the promise holds for it."""

    score: float
    calls: float
    kept: bool
    name: str = ""


class GuardView(Record):
    """What `cowest guard` has come to; ``points`` are every policy, the three single systems and the two rows, with their names."""

    promised: bool
    told: tuple[str, ...]
    metric: str
    rows: tuple[GuardRow, ...]
    points: tuple[GuardPoint, ...]


class TaskReport(Record):
    """All that is shown about one task. ``gains`` are the collaborative feedback of the training drafts."""

    results: Results
    curves: list[TrainingCurve] = Field(default_factory=list)
    checkpoints: list[CheckpointView] = Field(default_factory=list)
    gains: list[float] = Field(default_factory=list)
    counts: list[PipelineCounts] = Field(default_factory=list)
    judging: list[JudgingView] = Field(default_factory=list)
    guard: GuardView | None = None
    queries: list[QueryView] = Field(default_factory=list)
    main_metric: str


class RunReport(Record):
    """The whole page: one section per task."""

    title: str
    subtitle: str = ""
    tasks: list[TaskReport]
    notes: list[str] = Field(default_factory=list)
