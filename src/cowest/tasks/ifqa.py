"""IfQA (Yu et al., EMNLP 2023): open questions "if ... were otherwise", answered from Wikipedia passages and reasoning.

One published row (``train.json`` 2,400, ``dev.json`` 700, ``test.json`` 700; each an array)::

    {"idx": 7, "question": "If Torvale lay in the west, where would it see the sun set?", "answers": ["at sea", "the sea"],
     "context": ["Torvale is a town on the east coast of ..."]}

Any of ``answers`` is right: EM and token F1 by SQuAD's script, which the authors' evaluation is made of, best over them. The
passages are the rationale: what the weak model learns to write, and what neither model is shown. With ``context_for`` they are
the context, and a weak model that sees them learns to write the sentences that matter (:mod:`cowest.tasks.evidence`).
"""

from __future__ import annotations

from collections.abc import Callable

from cowest.recipe.config import IfqaTaskConfig
from cowest.tasks.answers import MARKER
from cowest.tasks.base import SQUAD_METRICS, SimpleTask
from cowest.tasks.benchmark import Published, finished, joined, read_splits
from cowest.tasks.evidence import evidence
from cowest.tasks.jsonl_rows import Problems, text_field, texts_field
from cowest.tasks.sources import Record, encodable, parse_each
from cowest.types import Example

FILES = {"train": ("train",), "validation": ("dev", "validation"), "test": ("test",)}
PUBLISHED = Published(
    "IfQA",
    {"train": 2400, "validation": 700, "test": 700},
    {"train": "185a3db955ba03cd", "validation": "424abc429d4fab51", "test": "17e0764cc6268cc6"},
)
INSTRUCTION = (
    "The question supposes that something were otherwise than it is. Take that as given and answer the question. Reason "
    f'briefly, then end with a line "{MARKER} ..." that holds only the answer, as short as it can be.'
)


def load_ifqa(config: IfqaTaskConfig) -> SimpleTask:
    """The task. Raises DataError for data that is missing or not as published, ConfigError where no source is given."""
    problems = Problems()
    records, where = read_splits(config, "ifqa", FILES, problems)
    splits = {s: tuple(parse_each(rows, _parser(s, config), problems)) for s, rows in records.items()}
    problems.raise_if_any()
    if config.official and not config.sample:
        PUBLISHED.check(splits, where, problems)
        problems.raise_if_any()
    kept, notes = finished(config, splits)
    return SimpleTask("ifqa", SQUAD_METRICS, (), config.instruction or INSTRUCTION, kept, notes)


def passages_of(config: IfqaTaskConfig) -> tuple[str, ...]:
    """The published passages of every question of all splits, each once: an open book. Raises as :func:`load_ifqa`."""
    problems = Problems()
    records, _ = read_splits(config, "ifqa", FILES, problems)
    found: dict[str, None] = {}
    for rows in records.values():
        for texts in parse_each(rows, lambda _, record: texts_field(record.fields(), "context"), problems):
            found |= dict.fromkeys(encodable(text.strip()) for text in texts if text.strip())
    problems.raise_if_any()
    return tuple(found)


def _parser(split: str, config: IfqaTaskConfig) -> Callable[[int, Record], Example]:
    shown = config.context_for not in (None, "none")
    given = shown and config.documents is None  # else there is none, or it is looked up later
    read = (shown or config.documents is not None) and config.sight in ("weak", "both")

    def parse(position: int, record: Record) -> Example:
        row = record.fields()
        passages = joined((encodable(text) for text in texts_field(row, "context")), "\n\n")
        question = encodable(text_field(row, "question"))
        answers = tuple(encodable(answer) for answer in texts_field(row, "answers"))
        return Example(
            id=f"{split}-{position}",
            input=question,
            context=passages if given else None,
            references=answers,
            rationale=evidence(passages, question, answers) if read and passages else passages,
        )

    return parse
