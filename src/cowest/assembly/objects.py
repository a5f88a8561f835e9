"""What a script hands to :func:`cowest.api.run` as Python objects, in place of sections of the recipe."""

from __future__ import annotations

from dataclasses import dataclass

from cowest.protocols import ChatModel, DraftFormat, Frames, Scorer, Signal, Task, Tracker
from cowest.systems.spec import SystemSpec


@dataclass(frozen=True, slots=True)
class Objects:
    """Each is None where the recipe says it.

    A model or a task is known by its ``name``, and a task's questions by their contents: an object that has changed should have
    another name, or what it made before is used again. ``weak`` is a model that is not trained here. ``scorer`` gives the scores
    behind the gains; ``metric`` (the name of one that :func:`cowest.scoring.metrics.use_metric` knows) is measured first;
    ``systems`` are evaluated beside the recipe's; ``format`` and ``signal`` are what drafts are, and what they are worth;
    ``frames`` say how queries are put; ``tracker`` hears of losses, scores and counts.
    """

    task: Task | None = None
    weak: ChatModel | None = None
    strong: ChatModel | None = None
    judge: ChatModel | None = None
    compare: tuple[ChatModel, ...] = ()
    scorer: Scorer | None = None
    metric: str | None = None
    systems: tuple[SystemSpec, ...] = ()
    format: DraftFormat | None = None
    signal: Signal | None = None
    frames: Frames | None = None
    tracker: Tracker | None = None


NOTHING = Objects()
