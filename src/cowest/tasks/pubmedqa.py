"""PubMedQA, PQA-L (Jin et al., EMNLP 2019): does an abstract answer its title's question with yes, no or maybe?

One published record of ``ori_pqal.json`` (1,000, by PubMed id; ``test_ground_truth.json`` maps the 500 test ids to labels)::

    "21645374": {"QUESTION": "Do mitochondria play a role in ...?", "CONTEXTS": ["Programmed cell death is ...", "..."],
                 "LABELS": ["BACKGROUND", "RESULTS"], "LONG_ANSWER": "Results depicted ...", "final_decision": "yes"}

``CONTEXTS`` is the abstract without its conclusion, ``LONG_ANSWER`` the conclusion: the rationale. Unless ``context_for: none`` the
abstract is shown beside the question (the benchmark's reasoning-required setting). The hub has no splits: the test ids
ship with cowest, and so do the ten cross-validation folds of the other 500 (``pubmedqa_splits.txt``), as the authors'
``split_dataset.py`` (seed 0) makes them: its test ids are exactly the published ones. Fold ``fold`` is the validation split.
Metrics as in the authors' ``evaluation.py``: accuracy and scikit-learn's macro-F1; an answer that is no class is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from cowest.recipe.config import PubmedqaTaskConfig
from cowest.tasks.base import CLASS_METRICS, SimpleTask, class_instruction
from cowest.tasks.benchmark import Published, finished, folder_of
from cowest.tasks.hub import hub_records
from cowest.tasks.jsonl_rows import Place, Problems, RowError, kind_of, text_field, texts_field
from cowest.tasks.sources import Record, encodable, parse_each, read_keyed
from cowest.types import Example

LABELS: Final = ("yes", "no", "maybe")
PUBLISHED = Published("PubMedQA's PQA-L", {"all": 1000}, {"all": "8fd984b44a7b93ca"})


def load_pubmedqa(config: PubmedqaTaskConfig) -> SimpleTask:
    """The task. Raises DataError for data that is missing or not as published, ConfigError where no source is given."""
    problems, official = Problems(), config.official and not config.sample
    folder, assigned, shown = (
        folder_of(config, "pubmedqa"),
        official_splits(),
        config.context and config.sight != "none",
    )
    test: Collection[str] = assigned["test"]
    if folder is None:
        where: Place | str = f"{config.hub}: pqa_labeled"
        rows = hub_records(config.hub or "", "pqa_labeled", {"all": ("train",)})["all"]
        examples = parse_each(rows, _parser(_hub_row, shown), problems)
    else:
        where = Place(folder / "ori_pqal.json")
        records = read_keyed(where.path, problems)
        examples = parse_each(records, _parser(_file_row, shown), problems)
        truth = read_keyed(folder / "test_ground_truth.json", problems)
        problems.raise_if_any()
        _check_truth(truth, examples, where, problems)
        test = {record.key for record in truth}
        if official and test != assigned["test"]:
            what = f"holds {len(test):,} ids, and not just the 500 published ones; fetch it again"
            problems.add(Place(folder / "test_ground_truth.json"), f"{what}, or set official: false")
    problems.raise_if_any()
    if official:
        PUBLISHED.check({"all": tuple(examples)}, {"all": where}, problems)
        absent = frozenset().union(*assigned.values()) - {example.id for example in examples}
        if absent and len(examples) == PUBLISHED.rows["all"]:
            what = f"{len(absent):,} published PubMed ids are not there, such as {min(absent)}; fetch it again"
            problems.add(where, f"{what}, or set official: false")
        problems.raise_if_any()
    validation = assigned[str(config.fold)] if official else _every_tenth(examples, test, config.fold)
    kept, notes = finished(config, _split(examples, test, validation))
    return SimpleTask("pubmedqa", CLASS_METRICS, LABELS, config.instruction or class_instruction(LABELS), kept, notes)


def official_splits() -> Mapping[str, frozenset[str]]:
    """The published PubMed ids of ``test``, and of each fold ("0" to "9") of the rest."""
    lines = Path(__file__).with_name("pubmedqa_splits.txt").read_text(encoding="ascii").splitlines()
    return {name: frozenset(ids.split()) for name, ids in (line.split(" ", 1) for line in lines)}


def _file_row(record: Record) -> tuple[str, Mapping[str, object]]:
    return record.key, record.fields()


def _hub_row(record: Record) -> tuple[str, Mapping[str, object]]:
    """The hub's row under the file's field names; its abstract is nested, its id a number."""
    row = record.fields()
    nested = row.get("context")
    if not isinstance(nested, dict):
        raise RowError(f'"context" is {kind_of(nested)}; the dataset is not laid out as PubMedQA on the hub')
    renamed = {"QUESTION": row.get("question"), "CONTEXTS": nested.get("contexts"), "LABELS": nested.get("labels")}
    more = {"LONG_ANSWER": row.get("long_answer"), "final_decision": row.get("final_decision")}
    return str(row.get("pubid")), {k: v for k, v in (renamed | more).items() if v is not None}


def _parser(
    read: Callable[[Record], tuple[str, Mapping[str, object]]], with_context: bool
) -> Callable[[int, Record], Example]:
    def parse(position: int, record: Record) -> Example:
        pmid, row = read(record)
        sections, texts = texts_field(row, "LABELS"), texts_field(row, "CONTEXTS")
        if len(sections) != len(texts):
            raise RowError(f'"LABELS" has {len(sections)} names for {len(texts)} "CONTEXTS"; fetch the file again')
        abstract = "\n".join(f"{name}: {text}" for name, text in zip(sections, texts, strict=True))
        return Example(
            id=pmid,
            input=encodable(text_field(row, "QUESTION")),
            context=encodable(abstract) if with_context else None,
            references=(_label(row.get("final_decision"), "final_decision"),),
            rationale=encodable(text_field(row, "LONG_ANSWER")),
        )

    return parse


def _label(value: object, name: str) -> str:
    if not isinstance(value, str) or value not in LABELS:
        shown = repr(value[:40]) if isinstance(value, str) else kind_of(value)
        raise RowError(f'"{name}" is {shown}, and not yes, no or maybe; fetch the file again')
    return value


def _check_truth(truth: Sequence[Record], examples: Sequence[Example], data: Place, problems: Problems) -> None:
    """Every test id is in the data, with the same label."""
    labels = {example.id: example.references[0] for example in examples}
    for record in truth:
        try:
            label = _label(record.value, record.key)
        except RowError as error:
            problems.add(record.place, str(error))
            continue
        if record.key not in labels:
            problems.add(record.place, f'"{record.key}" is not in {data}; take both files from the same copy')
        elif labels[record.key] != label:
            what = f'"{record.key}" is {label!r} here and {labels[record.key]!r} in {data}'
            problems.add(record.place, f"{what}; fetch both files again")


def _every_tenth(examples: Sequence[Example], test: Collection[str], fold: int) -> set[str]:
    """Validation for data of one's own, of which no folds are published."""
    rest = [example.id for example in examples if example.id not in test]
    return set(rest[fold % len(rest) :: 10]) if rest else set()


def _split(
    examples: Sequence[Example], test: Collection[str], validation: Collection[str]
) -> dict[str, tuple[Example, ...]]:
    return {
        "train": tuple(e for e in examples if e.id not in test and e.id not in validation),
        "validation": tuple(e for e in examples if e.id in validation),
        "test": tuple(e for e in examples if e.id in test),
    }
