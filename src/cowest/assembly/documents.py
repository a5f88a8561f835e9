"""The context of a task's questions as the recipe wants it: taken away, or looked up in the user's own documents."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from cowest.assembly.places import model_path
from cowest.errors import ConfigError
from cowest.models.gguf import cache_folder
from cowest.protocols import Retriever, Task
from cowest.recipe.tasks import DocumentsConfig, IfqaTaskConfig, TaskSection
from cowest.retrieval.bm25 import Bm25Retriever
from cowest.retrieval.dense import DenseRetriever
from cowest.retrieval.documents import Document, split_text
from cowest.retrieval.folder import read_folder
from cowest.run.identity import fingerprint, hash_model
from cowest.tasks.base import SPLITS, OtherContexts, notes_of
from cowest.tasks.ifqa import passages_of
from cowest.types import Example


def with_contexts(task: Task, config: TaskSection) -> Task:
    """The task with the contexts that its section asks for; the task itself where that changes nothing.

    Raises DataError or ConfigError for documents that cannot be read or searched.
    """
    if config.sight == "none":
        shown = {e.id: None for split in SPLITS for e in task.examples(split) if e.context is not None}
        return OtherContexts(task, notes_of(task), shown) if shown else task
    if config.documents is None:
        return task
    found = Documents.of(config)
    every = [e for split in SPLITS for e in task.examples(split)]
    contexts = dict(zip((e.id for e in every), found.contexts(every), strict=True))
    none = sum(contexts[e.id] == e.context for e in every)
    what = f"{len(found.passages):,} passages of {found.where} looked up by {found.retriever_name} for {config.sight}"
    note = f"{what}; for {none:,} of {len(every):,} questions nothing was found"
    return OtherContexts(task, (*notes_of(task), note), contexts, tuple(d.text for d in found.passages))


class Documents:
    """The user's documents, and what is looked up in them. The index is made when the first question is asked."""

    def __init__(self, settings: DocumentsConfig, where: str, passages: Sequence[Document]) -> None:
        self._settings, self.where, self.passages = settings, where, tuple(passages)
        self.retriever_name = settings.retriever
        self._retriever: Retriever | None = None

    @classmethod
    def of(cls, config: TaskSection) -> Documents:
        """Those of a task's section, which must have some. Raises DataError or ConfigError."""
        settings = config.documents
        if settings is None:
            raise ConfigError("task.documents is not set")
        if settings.folder is not None:
            return cls(settings, str(settings.folder), read_folder(settings.folder, settings.passage_chars))
        if not isinstance(config, IfqaTaskConfig):
            raise ConfigError("task.documents: give folder, where your documents are (only ifqa has some of its own)")
        found = {
            text: Document(f"{number}/{part}", text)
            for number, passages in enumerate(passages_of(config))
            for part, text in enumerate(split_text(passages, settings.passage_chars))
        }
        return cls(settings, "IfQA's own passages", tuple(found.values()))

    def looked_up(self, example: Example) -> Example:
        """The question with passages before its own context."""
        return example.model_copy(update={"context": self.contexts([example])[0]})

    def contexts(self, examples: Sequence[Example]) -> list[str | None]:
        """Each question's context: the passages that were found, best first, then what it had before."""
        return [
            "\n\n".join([*texts, *([e.context] if e.context else [])]) or None
            for e, texts in zip(examples, self._found([e.input for e in examples]), strict=True)
        ]

    def _found(self, queries: Sequence[str]) -> list[list[str]]:
        if self._settings.retriever == "bm25":
            return [self._search(query) for query in queries]
        return self._remembered(queries)

    def _search(self, query: str) -> list[str]:
        if self._retriever is None:
            self._retriever = self._indexed()
        return [passage.text for passage in self._retriever.search(query, self._settings.passages)]

    def _indexed(self) -> Retriever:
        if self._settings.retriever == "bm25":
            return Bm25Retriever(self.passages)
        from cowest.retrieval.embedding import TransformerEmbedder

        return DenseRetriever(self.passages, TransformerEmbedder(model_path(self._settings.embedder)))

    def _remembered(self, queries: Sequence[str]) -> list[list[str]]:
        """Dense look-ups take a minute for some thousand questions, and every command needs them: they are kept in the cache."""
        if len(queries) == 1:
            return [self._search(queries[0])]
        numbers = {document.text: i for i, document in enumerate(self.passages)}
        model = hash_model(model_path(self._settings.embedder))
        key = fingerprint([d.text for d in self.passages], list(queries), model, self._settings.passages, length=32)
        file = cache_folder() / "retrieved" / f"{key}.json"
        try:
            kept = json.loads(file.read_text(encoding="ascii"))
            return [[self.passages[i].text for i in row] for row in kept]
        except (OSError, ValueError, TypeError, IndexError):
            pass  # not there, or not whole: looked up again
        found = [self._search(query) for query in queries]
        rows = [[numbers[text] for text in texts] for texts in found]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps(rows), encoding="ascii")
            part.replace(file)
        except OSError:
            pass  # a cache that cannot be written only costs time
        return found
