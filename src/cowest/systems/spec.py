"""What a system is before it is built: its name, what it needs to be there, and the parts that it is made of.

A package that brings a system of its own needs this module only; its entry point is in the group ``cowest.systems``::

    [project.entry-points."cowest.systems"]
    echo = "cowest_echo:ECHO"

    ECHO = SystemSpec("echo", "says the question again", lambda p: Echo(p.strong, p.name))
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cowest.collaboration.guard.policy import Guard
from cowest.models.window import Window
from cowest.protocols import BaselineFrames, ChatModel, Frames, InteractionFrames, Retriever, System, Task
from cowest.recipe.config import Format
from cowest.recipe.table import TableConfig
from cowest.run.identity import derive_seed
from cowest.systems.calls import Ask
from cowest.systems.single import with_shots
from cowest.types import Example, Sampling

Which = Literal["base", "sft", "aligned"]
Index = Literal["bm25", "dense"]
Needs = Literal["nothing", "sft", "sample", "align", "guard"]


@dataclass(frozen=True, slots=True)
class Specialist:
    """A weak model that drafts beside others, and its window."""

    model: ChatModel
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What the system ``name`` is made of. Models, retrievers and drafts are opened when it asks for them.

    ``drafted`` has a draft of the SFT weak model for each drafted training query, by the query's id; ``guard`` what calibration has
    come to.
    """

    name: str
    task: Task
    frames: Callable[[Format], Frames]
    own: Frames
    """In the recipe's own draft format."""
    baseline: BaselineFrames
    interactions: Callable[[], InteractionFrames]
    """Raises ConfigError where the task's models know no such turns."""
    optimised: Callable[[], Frames]
    """``own`` in the words that were found for this system (``SystemSpec.optimises``). Raises ConfigError before they are."""
    open_strong: Callable[[], ChatModel]
    weak: Callable[[Which], ChatModel]
    retriever: Callable[[Index], Retriever]
    drafted: Callable[[], Mapping[str, str]]
    guard: Callable[[], Guard]
    specialists: Callable[[], Mapping[str, Specialist]]
    """The weak models beside the recipe's own (``table.specialists``), by name."""
    draft: Sampling
    answer: Sampling
    sampled: Sampling
    settings: TableConfig
    seed: int
    weak_window: Window | None = None
    strong_window: Window | None = None

    @property
    def strong(self) -> ChatModel:
        """The strong model."""
        return self.open_strong()

    def shots(self, among: Collection[str] | None = None) -> Sequence[Example]:
        """The in-context examples: training queries chosen by the seed; where there are classes, one of each in turn."""
        answered = [e for e in self.task.examples("train") if e.references]
        train = [e for e in answered if among is None or e.id in among]
        random.Random(derive_seed(self.seed, "shots")).shuffle(train)
        if not self.task.labels:
            return train[: self.settings.shots]
        by_label = {label: [e for e in train if e.references[0] == label] for label in self.task.labels}
        deepest = max(map(len, by_label.values()))
        in_turn = [rows[i] for i in range(deepest) for rows in by_label.values() if i < len(rows)]
        return in_turn[: self.settings.shots]

    def with_examples(self, ask: Ask) -> Ask:
        """``ask`` with the in-context examples before it, each answered as SFT targets are."""
        return with_shots(ask, [(ask(e), self.task.target(e)) for e in self.shots()])


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """A system by name, for evaluation, tables, prompts, the report and the server alike.

    Attributes:
        name: In recipes, files, results and the server's model ids.
        about: One line for people; the source is in the docstring of the system's class.
        build: Makes it from its parts.
        needs: How far the weak model has to be made: as it is, tuned, with drafts of the training queries, aligned; or the guard.
        variant: The settings in place of the recipe's with which that is done (``registry.VARIANTS``).
        uses: Which models it asks.
        retrieves: The index that it searches; '' for none.
        live: It puts the frames to the models and no more, so that a server can stream it, and answer where one is down.
        interacts: It puts the turns of :class:`cowest.protocols.InteractionFrames` to the models.
        specialists: It asks the weak models of ``table.specialists``, too.
        optimises: The strong model's prompt that is optimised on training queries before it answers; '' for none.
        label: What it is, in two or three words; '' where the name says it.
        spoken: How a sentence speaks of it.
        aliases: What it was called in older recipes, runs and model ids.
    """

    name: str
    about: str
    build: Callable[[Parts], System]
    needs: Needs = "nothing"
    variant: str = "main"
    uses: Literal["weak", "strong", "both"] = "strong"
    retrieves: Literal["", "bm25", "dense"] = ""
    live: bool = False
    interacts: bool = False
    specialists: bool = False
    optimises: Literal["", "solo", "refine"] = ""
    label: str = ""
    spoken: str = ""
    aliases: tuple[str, ...] = ()
