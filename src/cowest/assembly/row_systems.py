"""From a row to its live system: the parts that it is built of, opened when it asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from cowest.assembly.build import build_baseline_frames, build_frames
from cowest.assembly.context import Context
from cowest.assembly.places import model_path
from cowest.assembly.rows import RETRIEVING, Parts, Row, Which
from cowest.protocols import ChatModel, Frames, Retriever, System
from cowest.recipe.config import Format, with_settings
from cowest.retrieval.bm25 import Bm25Retriever
from cowest.retrieval.dense import DenseRetriever
from cowest.retrieval.documents import documents_of
from cowest.types import Draft


@dataclass(slots=True)
class Retrievers:
    """The indexes over a task's training texts, made once for all rows."""

    made: dict[str, Retriever] = field(default_factory=dict)

    def of(self, kind: Literal["bm25", "dense"], context: Context) -> Retriever:
        """Raises DataError where there is nothing to index."""
        if kind not in self.made:
            documents = documents_of(context.task)
            if kind == "bm25":
                self.made[kind] = Bm25Retriever(documents)
            else:
                from cowest.retrieval.embedding import TransformerEmbedder

                embedder = TransformerEmbedder(model_path(context.config.comparison.embedder))
                self.made[kind] = DenseRetriever(documents, embedder)
        return self.made[kind]


def build_system(
    context: Context,
    row: Row,
    strong: Callable[[], ChatModel],
    weak: Callable[[Which], ChatModel],
    retriever: Callable[[Literal["bm25", "dense"]], Retriever],
    drafted: Callable[[], Mapping[str, str]] | None = None,
) -> System:
    """The row's system from the parts of a context; ``drafted`` stands in for the drafts where none are there yet."""
    config, task = context.config, context.task

    def frames(format_: Format) -> Frames:
        return build_frames(with_settings(config, {"draft.format": format_}), task)

    def drafts() -> Mapping[str, str]:
        rows = context.run.file("drafts.jsonl", Draft).load()
        return {d.example_id: d.text for d in rows if d.index == 0 and d.text is not None}

    settings = config.evaluate
    return row.build(
        Parts(
            name=row.name,
            task=task,
            frames=frames,
            format=config.draft.format,
            baseline=build_baseline_frames(config, task),
            open_strong=strong,
            weak=weak,
            retriever=retriever,
            drafted=drafted or drafts,
            draft=settings.draft,
            answer=settings.answer,
            sampled=config.draft.sampling,
            settings=config.comparison,
            seed=config.seed,
            weak_window=context.weak.window(settings.draft.max_tokens),
            strong_window=context.strong.window(settings.answer.max_tokens),
        )
    )


def check_retrieval(context: Context, rows: tuple[Row, ...]) -> None:
    """Raise DataError where a retrieval row would have nothing to search, ModelNotFoundError for an encoder's missing folder."""
    if any(row.name in RETRIEVING for row in rows):
        documents_of(context.task)
    if any(row.name == "dense" for row in rows):
        model_path(context.config.comparison.embedder)
