"""The rows of a comparison: every system of the paper's table, by name, and what each needs to be there.

A row's system is built from :class:`Parts`; which weak model it has is a matter of its ``variant`` (a few settings of the recipe,
with which SFT, drafts, feedback, pairs and alignment are made) and of how far that has to be trained (``needs``). Rows of one
variant share all of its stages, and variants share every stage that their settings do not touch (:mod:`cowest.table.run`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from cowest.errors import ConfigError
from cowest.models.window import Window
from cowest.protocols import BaselineFrames, ChatModel, Frames, Retriever, System, Task
from cowest.recipe.config import Format, RunConfig, with_settings
from cowest.recipe.problems import did_you_mean
from cowest.recipe.table import TableConfig
from cowest.run.identity import derive_seed
from cowest.systems.best_of_k import BestOfK
from cowest.systems.calls import Ask
from cowest.systems.collaboration import Collaboration
from cowest.systems.flare import Flare
from cowest.systems.retrieval import Retrieval
from cowest.systems.self_rag import SelfRag
from cowest.systems.self_refine import SelfRefine
from cowest.systems.single import SingleCall, with_shots
from cowest.systems.supericl import SuperIcl
from cowest.systems.votes import SelfConsistency
from cowest.types import Example, Message, Sampling

Which = Literal["base", "sft", "aligned"]
Needs = Literal["nothing", "sft", "sample", "align"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What the system ``name`` is made of. Models, retrievers and drafts are opened when it asks for them.

    ``drafted`` has a draft of the SFT weak model for each drafted training query, by the query's id.
    """

    name: str
    task: Task
    frames: Callable[[Format], Frames]
    format: Format
    baseline: BaselineFrames
    open_strong: Callable[[], ChatModel]
    weak: Callable[[Which], ChatModel]
    retriever: Callable[[Literal["bm25", "dense"]], Retriever]
    drafted: Callable[[], Mapping[str, str]]
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

    @property
    def own(self) -> Frames:
        """The frames in the variant's draft format."""
        return self.frames(self.format)

    def shots(self, among: Collection[str] | None = None) -> Sequence[Example]:
        """The in-context examples: training queries chosen by the seed; where there are classes, one of each in turn."""
        train = [e for e in self.task.examples("train") if among is None or e.id in among]
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
class Row:
    """A system of the table. ``about`` is one line for people; the source is in the docstring of its class."""

    name: str
    about: str
    build: Callable[[Parts], System]
    needs: Needs = "nothing"
    variant: str = "main"
    uses: Literal["weak", "strong", "both"] = "strong"


VARIANTS: Mapping[str, Mapping[str, JsonValue]] = {
    "main": {},
    "direct": {"draft.format": "direct"},
    "knowledge": {"draft.format": "knowledge"},
    "cot": {"draft.format": "chain_of_thought"},
    "rlwf": {"pairs.signal": "draft", "pairs.rule": "ordered"},
    "positives": {"align.objective": "positives"},
}
"""The settings that a variant has in place of the recipe's."""


def _single(which: Which, format_: Format | None, shots: bool = False) -> Callable[[Parts], System]:
    """The weak model alone, asked for a draft in some format."""

    def build(p: Parts) -> System:
        ask: Ask = p.frames(format_ or p.format).draft
        ask = p.with_examples(ask) if shots else ask
        return SingleCall(p.weak(which), ask, p.draft, p.name, window=p.weak_window)

    return build


def _strong(ask: Callable[[Parts], Ask]) -> Callable[[Parts], System]:
    return lambda p: SingleCall(p.strong, ask(p), p.answer, p.name, window=p.strong_window)


def _collaboration(which: Which) -> Callable[[Parts], System]:
    return lambda p: Collaboration(p.weak(which), p.strong, p.own, p.draft, p.answer, p.name)


def _retrieval(kind: Literal["bm25", "dense"]) -> Callable[[Parts], System]:
    return lambda p: Retrieval(
        p.strong, p.retriever(kind), p.own.solo, p.answer, p.settings.passages, p.name, window=p.strong_window
    )


def _weak_votes(p: Parts) -> System:
    n, labels = p.settings.samples, p.task.labels
    return SelfConsistency(
        p.weak("sft"), p.own.draft, p.task.extract, p.sampled, n, p.seed, p.name, labels, p.weak_window
    )


def _strong_votes(p: Parts) -> System:
    sampling = p.answer.model_copy(update={"temperature": p.settings.temperature})
    n, labels = p.settings.samples, p.task.labels
    return SelfConsistency(p.strong, p.own.solo, p.task.extract, sampling, n, p.seed, p.name, labels, p.strong_window)


def _self_refine(p: Parts) -> System:
    return SelfRefine(p.strong, p.own.solo, p.baseline.self_refine, p.answer, p.name, window=p.strong_window)


def _flare(p: Parts) -> System:
    s, found = p.settings, p.retriever("bm25")
    return Flare(
        p.strong,
        found,
        p.own.solo,
        p.answer,
        s.passages,
        s.flare_threshold,
        s.flare_rounds,
        p.name,
        window=p.strong_window,
    )


def _self_rag(p: Parts) -> System:
    found, passages = p.retriever("bm25"), p.settings.passages
    return SelfRag(p.strong, found, p.own.solo, p.baseline, p.answer, passages, p.name, window=p.strong_window)


def _supericl(p: Parts) -> System:
    """The examples show what the tuned model predicted on them, right or wrong: its drafts are there already."""
    drafted, shots = p.drafted(), list[tuple[Sequence[Message], str]]()
    for example in p.shots(among=drafted):
        label = p.task.extract(drafted[example.id], example)
        if label is not None:
            shots.append((p.baseline.predicted(example, label, None), p.task.target(example)))

    def ask(example: Example, label: str, confidence: float | None) -> Sequence[Message]:
        return with_shots(lambda e: p.baseline.predicted(e, label, confidence), shots)(example)

    weak, extract = p.weak("sft"), p.task.extract
    return SuperIcl(weak, p.strong, p.own.draft, ask, extract, p.draft, p.answer, p.name, window=p.strong_window)


def _best_of_k(p: Parts) -> System:
    weak, k = p.weak("sft"), p.settings.samples
    return BestOfK(weak, p.strong, p.own, p.baseline.choose, p.sampled, p.answer, k, p.seed, p.name)


ROWS: tuple[Row, ...] = (
    Row("weak_zero_shot", "the weak model as it is, asked for the answer alone", _single("base", "direct"), uses="weak"),
    Row("weak_few_shot", "the same with in-context examples", _single("base", None, shots=True), uses="weak"),
    Row("weak_cot", "the weak model as it is, asked to reason", _single("base", "chain_of_thought"), uses="weak"),
    Row("weak_sft", "the tuned weak model alone", _single("sft", None), "sft", uses="weak"),
    Row("weak_self_consistency", "its sampled answers, by majority", _weak_votes, "sft", uses="weak"),
    Row("strong_zero_shot", "the strong model, asked for the answer alone", _strong(lambda p: p.baseline.zero_shot)),
    Row("strong_few_shot", "with in-context examples", _strong(lambda p: p.with_examples(p.own.solo))),
    Row("strong_cot", "the strong model alone, asked to reason (the paper's strong row)", _strong(lambda p: p.own.solo)),
    Row("strong_self_consistency", "its sampled answers, by majority", _strong_votes),
    Row("strong_self_refine", "it criticises and mends its own answer: two calls", _self_refine),
    Row("bm25", "the strong model with training texts found by BM25", _retrieval("bm25")),
    Row("dense", "the same, found by a dense encoder", _retrieval("dense")),
    Row("flare", "FLARE: looks up what it is unsure of", _flare),
    Row("self_rag", "Self-RAG's judgements, prompted", _self_rag),
    Row("supericl", "SuperICL: the tuned weak model's label beside in-context examples", _supericl, "sample", uses="both"),
    Row("rlwf", "RLWF: the weak model tuned on scores of its drafts alone, answering alone",
        _single("aligned", None), "align", "rlwf", uses="weak"),
    Row("sft_positives", "collaboration with a weak model tuned on the chosen drafts only",
        _collaboration("aligned"), "align", "positives", uses="both"),
    Row("best_of_k", "the strong model picks one of K drafts and refines it", _best_of_k, "sft", uses="both"),
    Row("collab_direct", "collaboration, drafts are bare answers", _collaboration("sft"), "sft", "direct", uses="both"),
    Row("collab_direct_aligned", "the same after alignment", _collaboration("aligned"), "align", "direct", uses="both"),
    Row("collab_knowledge", "collaboration, drafts are knowledge", _collaboration("sft"), "sft", "knowledge", uses="both"),
    Row("collab_knowledge_aligned", "the same after alignment", _collaboration("aligned"), "align", "knowledge", uses="both"),
    Row("collab_cot", "collaboration, drafts are chains of thought", _collaboration("sft"), "sft", "cot", uses="both"),
    Row("collab_cot_aligned", "the same after alignment: CoWest", _collaboration("aligned"), "align", "cot", uses="both"),
)  # fmt: skip
"""In the order of the table."""

BY_NAME: Mapping[str, Row] = {row.name: row for row in ROWS}
RETRIEVING = frozenset({"bm25", "dense", "flare", "self_rag"})


def find_rows(names: Sequence[str], where: str = "table.rows") -> tuple[Row, ...]:
    """The rows with these names (all, for none). Raises ConfigError for an unknown one, or one that is named twice."""
    for name in names:
        if name not in BY_NAME:
            hint = did_you_mean(name, BY_NAME)
            raise ConfigError(f"{where}: there is no row {name!r}; {hint or 'there are: ' + ', '.join(BY_NAME)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}: a row is named twice")
    return tuple(BY_NAME[name] for name in names) or ROWS


def variant_of(config: RunConfig, row: Row) -> tuple[str, RunConfig]:
    """The variant of a single-task recipe in which a row's weak model is made; ``main`` where it changes nothing."""
    changed = with_settings(config, VARIANTS[row.variant])
    same = (
        changed.model_dump() == config.model_dump()
    )  # which fields were given, and which are defaults, does not matter
    return ("main", config) if same else (row.variant, changed)
