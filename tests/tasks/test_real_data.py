"""The published files in COWEST_DATA_DIR: counts, splits, fields, and scores as the benchmarks' own evaluation gives them."""

from __future__ import annotations

import json
import random
import re
import shutil
import string
from collections import Counter
from pathlib import Path

import pytest
from sklearn.metrics import accuracy_score, f1_score

from cowest.errors import DataError
from cowest.recipe.config import IfqaTaskConfig, ProsocialTaskConfig, PubmedqaTaskConfig
from cowest.scoring.metrics import accuracy, exact_match, macro_f1, token_f1
from cowest.scoring.normal import normalise
from cowest.tasks.base import SPLITS, SimpleTask
from cowest.tasks.ifqa import load_ifqa
from cowest.tasks.prosocial import LABELS, load_prosocial
from cowest.tasks.pubmedqa import load_pubmedqa, official_splits


@pytest.fixture(scope="module")
def ifqa(data_dir: Path) -> SimpleTask:
    return load_ifqa(IfqaTaskConfig(kind="ifqa", path=data_dir / "ifqa"))


@pytest.fixture(scope="module")
def pubmedqa(data_dir: Path) -> SimpleTask:
    return load_pubmedqa(PubmedqaTaskConfig(kind="pubmedqa", path=data_dir / "pubmedqa"))


def sizes(task: SimpleTask) -> list[int]:
    return [len(task.examples(split)) for split in SPLITS]


def test_ifqa_is_whole(ifqa: SimpleTask, data_dir: Path) -> None:
    assert sizes(ifqa) == [2400, 700, 700]
    for split, file in (("train", "train"), ("validation", "dev"), ("test", "test")):
        rows = json.loads((data_dir / "ifqa" / f"{file}.json").read_bytes())
        for row, example in zip(rows, ifqa.examples(split), strict=True):
            assert (example.input, example.references) == (row["question"], tuple(row["answers"]))
            assert example.rationale and all(passage.strip() in example.rationale for passage in row["context"])
    assert ifqa.notes == (
        "23 questions of train occur in a later split, too: kept as published (drop_leaked: true leaves them out)",
    )


def test_ifqa_without_leaks(data_dir: Path) -> None:
    task = load_ifqa(IfqaTaskConfig(kind="ifqa", path=data_dir / "ifqa", drop_leaked=True))
    assert sizes(task) == [2377, 700, 700]
    asked = {" ".join(e.input.casefold().split()) for s in ("validation", "test") for e in task.examples(s)}
    assert not asked & {" ".join(e.input.casefold().split()) for e in task.examples("train")}


def test_every_ifqa_target_is_read_back_as_right(ifqa: SimpleTask) -> None:
    for split in SPLITS:
        for example in ifqa.examples(split):
            answer = ifqa.extract(ifqa.target(example), example)
            assert exact_match(answer, example.references) == token_f1(answer, example.references) == 1.0


def squad(text: str) -> str:
    """SQuAD's normalisation as its paper states it: lower case, no ASCII punctuation, no articles, single spaces."""
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", bare).split())


def test_normalisation_is_squads_but_for_the_stated_departures(ifqa: SimpleTask) -> None:
    texts = {r for split in SPLITS for e in ifqa.examples(split) for r in e.references}
    assert len(texts) > 2500
    differ = {text for text in texts if normalise(text) != squad(text)}
    # numbers keep what carries their value (primes, too), names a plus; characters beyond ASCII are folded; nothing else may differ
    stated = re.compile(r"\d[./:*-]\d|\d['\"]|-\.?\d|\d(?:%| percent)|\w\+|[^\x00-\x7f]|(?<!\S)\.\d")
    assert not [text for text in differ if not stated.search(text)]
    assert 0 < len(differ) < len(texts) / 20


def test_em_and_f1_are_squads_on_real_answers(ifqa: SimpleTask) -> None:
    rng = random.Random(5)
    examples = ifqa.examples("test")
    answers = [rng.choice(examples).references[0] for _ in examples]
    answers[::2] = [f"The {e.references[-1].upper()}!" for e in examples[::2]]
    for example, answer in zip(examples, answers, strict=True):
        if any(normalise(t) != squad(t) for t in (answer, *example.references)):
            continue
        assert exact_match(answer, example.references) == any(squad(answer) == squad(r) for r in example.references)
        best = 0.0
        for reference in example.references:
            left, right = squad(answer).split(), squad(reference).split()
            shared = sum((Counter(left) & Counter(right)).values())
            if shared:
                precision, recall = shared / len(left), shared / len(right)
                best = max(best, 2 * precision * recall / (precision + recall))
        assert token_f1(answer, example.references) == pytest.approx(best)


def test_pubmedqa_has_the_official_splits(pubmedqa: SimpleTask, data_dir: Path) -> None:
    truth = json.loads((data_dir / "pubmedqa" / "test_ground_truth.json").read_bytes())
    assert sizes(pubmedqa) == [450, 50, 500]
    assert {e.id: e.references[0] for e in pubmedqa.examples("test")} == truth
    every = {e.id for split in SPLITS for e in pubmedqa.examples(split)}
    assert every == set(json.loads((data_dir / "pubmedqa" / "ori_pqal.json").read_bytes()))
    splits = official_splits()
    assert splits["test"] == set(truth) and len(splits) == 11
    assert set().union(*splits.values()) == every and sum(map(len, splits.values())) == 1000
    for fold in range(10):
        assert len(splits[str(fold)]) == 50
    assert {e.id for e in pubmedqa.examples("validation")} == splits["0"]
    assert pubmedqa.notes == ()


def test_pubmedqa_question_context_and_rationale(pubmedqa: SimpleTask, data_dir: Path) -> None:
    rows = json.loads((data_dir / "pubmedqa" / "ori_pqal.json").read_bytes())
    for split in SPLITS:
        for example in pubmedqa.examples(split):
            row = rows[example.id]
            assert (example.input, example.rationale) == (row["QUESTION"], row["LONG_ANSWER"])
            assert example.context and all(text in example.context for text in row["CONTEXTS"])
            assert row["LONG_ANSWER"] not in example.context
            assert pubmedqa.extract(pubmedqa.target(example), example) == row["final_decision"]
    bare = load_pubmedqa(PubmedqaTaskConfig(kind="pubmedqa", path=data_dir / "pubmedqa", context=False))
    assert all(e.context is None for split in SPLITS for e in bare.examples(split))


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_and_macro_f1_are_scikit_learns(pubmedqa: SimpleTask, seed: int) -> None:
    rng = random.Random(seed)
    said = (
        "Yes.",
        "no",
        "Answer: maybe, since no trial says yes",
        "The answer is maybe.",
        "I cannot say.",
        "yes or no",
        "",
    )
    weights = (9, 5, 2, 1, seed, seed, seed)  # from seed 1 on, some answers are no class
    examples = pubmedqa.examples("test")
    answers = [pubmedqa.extract(rng.choices(said, weights)[0], e) for e in examples]
    references = [e.references for e in examples]
    assert (None in answers) == (seed > 0)
    truth, predicted = [r[0] for r in references], [a or "none" for a in answers]
    own = sum(accuracy(a, r) for a, r in zip(answers, references, strict=True)) / len(answers)
    assert own == accuracy_score(truth, predicted)
    labels = list(pubmedqa.labels)
    theirs = f1_score(truth, predicted, average="macro", labels=labels, zero_division=0)
    assert macro_f1(answers, references, labels) == theirs  # to the last bit
    if None not in answers:  # the authors' evaluation.py names no labels, and would take "none" for a fourth class
        assert theirs == f1_score(truth, predicted, average="macro")


def test_prosocials_real_rows(data_dir: Path, tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        shutil.copy(data_dir / "prosocial" / "sample.json", tmp_path / f"{name}.json")
    task = load_prosocial(ProsocialTaskConfig(kind="prosocial", path=tmp_path, official=False))
    assert sizes(task) == [5, 5, 5] and task.labels == LABELS
    third, fourth = task.examples("test")[2:4]
    assert third.references == ("__needs_caution__",) and third.context and third.context.count("Speaker:") == 2
    assert third.rationale == "It's wrong to act in a sexist way."
    assert fourth.context is None and fourth.rationale and len(fourth.rationale.splitlines()) == 2
    assert task.notes[0].startswith("5 questions of train occur in a later split")


@pytest.mark.parametrize("file", ["train.json", "dev.json", "test.json"])
def test_an_altered_ifqa_is_refused(data_dir: Path, tmp_path: Path, file: str) -> None:
    folder = Path(shutil.copytree(data_dir / "ifqa", tmp_path / "ifqa", copy_function=shutil.copyfile))
    folder.chmod(0o755)
    config = IfqaTaskConfig(kind="ifqa", path=folder)
    rows = json.loads((folder / file).read_bytes())
    (folder / file).write_text(json.dumps(rows), encoding="utf-8")
    load_ifqa(config)  # other spacing, the same content
    changed = [*rows[:7], {**rows[7], "answers": ["something else"]}, *rows[8:]]
    (folder / file).write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(
        DataError, match=rf"{file}: a question or an answer is not the one that IfQA was published with"
    ):
        load_ifqa(config)
    (folder / file).write_text(json.dumps(rows[:-1]), encoding="utf-8")
    with pytest.raises(DataError, match=rf"{file}: {len(rows) - 1:,} rows, and IfQA has {len(rows):,} here; fetch it"):
        load_ifqa(config)
    loaded = load_ifqa(config.model_copy(update={"official": False}))
    assert sum(sizes(loaded)) == 3799


def test_one_split_in_the_place_of_another_is_refused(data_dir: Path, tmp_path: Path) -> None:
    for name, source in (("train", "train"), ("dev", "test"), ("test", "dev")):
        shutil.copyfile(data_dir / "ifqa" / f"{source}.json", tmp_path / f"{name}.json")
    with pytest.raises(DataError) as caught:
        load_ifqa(IfqaTaskConfig(kind="ifqa", path=tmp_path))
    told = str(caught.value).splitlines()
    assert len(told) == 2 and "dev.json: a question" in told[0] and "test.json: a question" in told[1]


def test_an_altered_pubmedqa_is_refused(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "pubmedqa"
    rows, truth = (json.loads((source / f"{n}.json").read_bytes()) for n in ("ori_pqal", "test_ground_truth"))
    config = PubmedqaTaskConfig(kind="pubmedqa", path=tmp_path)

    def told(rows: dict[str, object], truth: dict[str, str]) -> str:
        (tmp_path / "ori_pqal.json").write_text(json.dumps(rows, indent=4), encoding="utf-8")
        (tmp_path / "test_ground_truth.json").write_text(json.dumps(truth, indent=4), encoding="utf-8")
        with pytest.raises(DataError) as caught:
            load_pubmedqa(config)
        return str(caught.value).replace(f"{tmp_path}/", "")

    some = next(iter(truth))
    other = {"yes": "no", "no": "yes", "maybe": "no"}[truth[some]]
    assert told(rows, {**truth, some: other}).startswith(f'test_ground_truth.json:2: "{some}" is {other!r} here and ')
    fewer = {k: v for k, v in truth.items() if k != some}
    assert "test_ground_truth.json: holds 499 ids, and not just the 500 published ones" in told(rows, fewer)
    trained = next(k for k in rows if k not in truth)
    assert "ori_pqal.json: 999 rows, and PubMedQA's PQA-L has 1,000" in told(
        {k: v for k, v in rows.items() if k != trained}, truth
    )
    renamed = {("1" if k == trained else k): v for k, v in rows.items()}
    assert f"1 published PubMed ids are not there, such as {trained}" in told(renamed, truth)
    asked = {**rows, trained: {**rows[trained], "QUESTION": "Is it so?"}}
    assert "ori_pqal.json: a question or an answer is not the one that PubMedQA's PQA-L was published" in told(
        asked, truth
    )
